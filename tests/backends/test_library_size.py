"""What a library and its weights take: nothing that no run reads, and of int8 and int4 what their bits ask for."""

import ctypes
import struct
import subprocess

import graphwright as gw
import numpy as np
import pytest
from graphwright.backends.code_sizes import code_sizes
from graphwright.backends.cross import compiler_for
from graphwright.backends.target import host_target
from graphwright.backends.tvm import build
from graphwright.backends.tvm.byte_code import COMPILING, program_of, source_of
from graphwright.ir.compare import compare
from graphwright.ir.reference import run_reference

from .quantized_models import Graph, tensor

_NO_BITS = 8
_SYMBOL = "__tvm_ffi__library_bin"


def sections(path):
    """Bytes that each section of an ELF file takes in it, by name."""
    data = path.read_bytes()
    (table,) = struct.unpack_from("<Q", data, 0x28)
    width, count, names = struct.unpack_from("<HHH", data, 0x3A)
    found = [struct.unpack_from("<IIQQQQIIQQ", data, table + index * width) for index in range(count)]
    start = found[names][4]

    def name(offset):
        return data[start + offset : data.index(b"\0", start + offset)].decode()

    return {name(each[0]): 0 if each[1] == _NO_BITS else each[5] for each in found if each[1]}


def program_in(library, size):
    """What TVM finds in a loaded library."""
    return bytes((ctypes.c_ubyte * size).in_dll(ctypes.CDLL(str(library)), _SYMBOL))


def layers(count):
    """Matrices of different shapes, so that each is a kernel of its own."""
    g = Graph(0)
    x = y = tensor("x", (4, 16))
    for index in range(count):
        width = 17 + index
        y = g("Softmax", g("MatMul", y, g.constant(np.eye(16 + index, width, dtype=np.float32))))
    return g.model({"x": x}, y)


@pytest.mark.parametrize("target", ["host", "arm"])
def test_libraries_hold_nothing_that_no_run_reads(request, cnn, tmp_path, target):
    if target == "arm":
        request.getfixturevalue("arm_tools")
    folder = gw.compile(cnn, target=target).save(tmp_path / "artifact")
    library = folder / "model.so"
    held = sections(library)
    assert held[".text"] > 1000
    assert not {name for name in held if name.startswith((".symtab", ".strtab", ".debug", ".note.gnu.build"))}
    # Between segments nothing is filled up to pages, which are 64 KiB on ARM.
    headers = 64 * (len(held) + 1) + 64 + 56 * struct.unpack_from("<H", library.read_bytes(), 56)[0]
    assert library.stat().st_size - sum(held.values()) - headers < 1024


def test_code_is_counted_by_kernel(cnn, tmp_path, monkeypatch):
    objects = []

    def counted(path):
        objects.append(sections(path)[".text"])
        return code_sizes(path)

    monkeypatch.setattr(build, "code_sizes", counted)
    compiled = gw.compile(cnn, batch_sizes=(1, 4))
    rows = compiled.report.batches.rows
    (text,) = objects
    assert all(row.code_bytes > 500 for row in rows)
    # Functions begin at multiples of 16 bytes; what is shared is counted for both.
    assert 0.8 * text <= sum(row.code_bytes for row in rows) <= 1.5 * text
    assert text < compiled.report.library_bytes
    assert not any("_compute_" in name for name in code_sizes(compiled.library))


@pytest.mark.parametrize(
    "content",
    [
        b"a",
        b"abcab" * 3,
        bytes(70_000),
        np.random.default_rng(0).bytes(70_000),
        b"".join(bytes([n % 251]) * (n % 300) for n in range(900)),
        np.random.default_rng(0).geometric(0.2, 20_000).astype("<i8").tobytes(),
        bytes(range(256)) * 300,
    ],
    ids=["byte", "short", "zeros", "random", "runs", "words", "period"],
)
def test_a_library_gives_back_the_program_that_it_was_built_with(content, tmp_path):
    source, library = tmp_path / "byte_code.cc", tmp_path / "lib.so"
    source.write_text(source_of(content), encoding="utf-8")
    warnings = ["-Wall", "-Wextra", "-Werror"]
    command = [
        compiler_for(host_target()),
        "-shared",
        "-fPIC",
        *warnings,
        *COMPILING,
        "-o",
        str(library),
        str(source),
    ]
    subprocess.run(command, check=True, timeout=60)
    assert program_in(library, len(content)) == content


def test_programs_are_packed_where_that_pays(tmp_path, monkeypatch):
    programs = []

    def kept(module):
        programs.append(program_of(module))
        return programs[-1]

    monkeypatch.setattr(build, "program_of", kept)
    model = layers(24)
    compiled = gw.compile(model, pipeline="")
    feeds = {"x": np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)}
    assert compare(run_reference(model, feeds), compiled.run(feeds)).max_rel <= 1e-4
    loaded = gw.load_executable(compiled.save(tmp_path / "artifact"))
    assert compare(run_reference(model, feeds), loaded.run(feeds)).max_rel <= 1e-4
    (program,) = programs
    assert len(program) >= build.LEAST
    assert program_in(compiled.library, len(program)) == program
    assert sections(compiled.library)[".rodata"] < len(program) / 3
    assert compiled.report.library_bytes - sections(compiled.library)[".text"] < len(program)


def test_packed_programs_run_on_other_processors(cnn, monkeypatch, arm_tools):
    monkeypatch.setattr(build, "LEAST", 0)
    compiled = gw.compile(cnn, target="arm", check="qemu")
    assert compiled.report.check.checked and ".bss" in sections(compiled.library)


def network(kind):
    """Eight hundred thousand weights in a few layers; `kind` of them: float, int8 or int4 behind 8-bit data."""
    g = Graph(1)
    x = tensor("x", (1, 64, 8, 8))
    y = x
    for before, channels, size in ((64, 256, 3), (256, 256, 3), (256, 256, 1)):
        shape = (channels, before, size, size)
        if kind == "float":
            weight = g.constant(
                (g.random.standard_normal(shape) / np.sqrt(before * size**2)).astype(np.float32)
            )
        else:
            y = g.qdq(y, 0.05, 128)
            weight, _ = g.weight(shape, 0, kind)
        bias = g.constant(g.random.standard_normal(channels).astype(np.float32))
        y = g("Relu", g("Conv", y, weight, bias, pads=[size // 2] * 4))
    return g.model({"x": x}, y)


def test_int8_and_int4_artifacts_take_what_their_bits_ask_for(tmp_path):
    model = network("float")
    models = {
        "float": model,
        "int8": network("int8"),
        "a8w4": network("int4"),
        "int4": gw.optimize(model, "quantize-weights{form=int4}").model,
    }
    sizes, weights = {}, {}
    for kind, each in models.items():
        folder = gw.compile(each, pipeline="").save(tmp_path / kind)
        weights[kind] = (folder / "weights.bin").stat().st_size
        sizes[kind] = weights[kind] + (folder / "model.so").stat().st_size
    assert weights["int8"] <= 0.255 * weights["float"]
    # Four bits; behind floats fewer for those that are frequent, and a scale for 64 of them.
    assert weights["a8w4"] <= 0.131 * weights["float"]
    assert weights["int4"] <= 0.138 * weights["float"]
    assert sizes["int8"] <= 0.265 * sizes["float"]
    assert sizes["a8w4"] <= 0.145 * sizes["float"] and sizes["int4"] <= 0.15 * sizes["float"]
