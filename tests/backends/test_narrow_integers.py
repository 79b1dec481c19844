"""Integer weights of few levels: int8 to kernels, a few bits each in the artifact, in Python and in C++."""

import struct
import subprocess

import graphwright as gw
import numpy as np
import pytest
from graphwright.backends.narrow_integers import narrow_bytes, read_narrow
from graphwright.backends.weights import ALIGNMENT, layout_number, read_weights, stored_bytes, write_weights
from graphwright.ir.errors import ToolError
from graphwright.ir.reference import run_reference
from hypothesis import given, settings
from hypothesis import strategies as st

from .quantized_models import Graph, tensor


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-128, 127), min_size=1, max_size=16, unique=True),
    st.integers(1024, 3000),
    st.integers(0, 9),
)
def test_numbers_of_few_levels_are_restored(levels, size, seed):
    array = np.random.default_rng(seed).choice(np.array(levels, np.int8), size)
    payload = narrow_bytes(array)
    np.testing.assert_array_equal(read_narrow(payload, size), array)
    assert len(payload) <= size // 2 + 32
    with pytest.raises(ValueError, match="its own size|truncated"):
        read_narrow(payload, size + 17)


def test_other_tensors_stay_as_they_are():
    rng = np.random.default_rng(0)
    assert narrow_bytes(rng.integers(-8, 9, 5000).astype(np.int8)) is None
    late = np.zeros(9000, np.int8)
    late[5000:5017] = np.arange(17)
    assert narrow_bytes(late) is None
    assert narrow_bytes(np.zeros(1023, np.int8)) is None
    assert narrow_bytes(np.zeros(5000, np.int16)) is None


@pytest.fixture
def stored(tmp_path):
    rng = np.random.default_rng(1)
    arrays = [rng.integers(-8, 8, (64, 5, 16, 4)).astype(np.int8), rng.normal(size=7).astype(np.float32)]
    arrays.append(rng.integers(-1, 2, 2000).astype(np.int8))
    write_weights(tmp_path / "w.bin", arrays)
    return arrays, tmp_path / "w.bin"


def test_a_file_holds_them_in_few_bits_in_python_and_in_cpp(stored, reader, tmp_path):
    arrays, path = stored
    found = read_weights(path)
    subprocess.run([str(reader), str(path), str(tmp_path / "plain.bin")], check=True, timeout=60)
    for theirs in (found, read_weights(tmp_path / "plain.bin")):
        assert layout_number(theirs) == layout_number(arrays)
        for expected, given_back in zip(arrays, theirs, strict=True):
            assert given_back.dtype == expected.dtype and given_back.ctypes.data % ALIGNMENT == 0
            np.testing.assert_array_equal(given_back, expected)
    assert path.stat().st_size < 0.56 * sum(each.nbytes for each in arrays)
    assert (tmp_path / "plain.bin").stat().st_size >= sum(each.nbytes for each in arrays)
    assert stored_bytes(arrays[0]) == 64 * 5 * 16 * 4 // 2 + 20


def test_damaged_payloads_end_in_one_line(stored, reader, tmp_path):
    arrays, path = stored
    whole = path.read_bytes()
    ternary = whole.index(narrow_bytes(arrays[2]))
    fours = whole.index(narrow_bytes(arrays[0]))
    table = 8
    changes = [
        (fours, "<I", 17), (fours, "<I", 1), (fours, "<I", 3), (ternary + 25, "<B", 255),
        (table + 1, "<B", 16), (table + 24, "<q", 1 << 40), (table + 16, "<Q", 19),
    ]  # fmt: skip
    for place, form, value in changes:
        broken = bytearray(whole)
        struct.pack_into(form, broken, place, value)
        (tmp_path / "broken.bin").write_bytes(broken)
        with pytest.raises(ToolError, match=r"broken\.bin"):
            read_weights(tmp_path / "broken.bin")
        ended = subprocess.run(
            [str(reader), str(tmp_path / "broken.bin"), str(tmp_path / "out.bin")],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1, (place, form, value)


def network():
    """int4 weights behind 8-bit activations: dense, grouped and depthwise convolutions, and a product."""
    g = Graph(3)
    x = tensor("x", (2, 32, 10, 10))
    spread, data = 1.0, g.qdq(x, 0.03, 128)
    for channels, groups, size in ((48, 1, 3), (48, 3, 3), (48, 48, 3), (64, 1, 1)):
        before = 32 if groups == size // 3 == 1 else 48
        weight, _ = g.weight((channels, before // groups, size, size), 0, "int4")
        y = g("Relu", g("Conv", data, weight, None, pads=[size // 2] * 4, group=groups))
        # Weights have a standard deviation of some 0.07.
        spread *= 0.07 * (before // groups * size * size) ** 0.5
        data = g.qdq(y, spread / 80, 0)
    weight, _ = g.weight((6400, 32), 1, "uint4", 8)
    y = g("MatMul", g("Flatten", data), weight)
    return g.model({"x": x}, g.q(y, spread * 0.07 * 80 / 200, 128))


def test_int4_weights_run_as_integers_and_stay_small(tmp_path):
    model = network()
    made = gw.compile(model, target="x86", pipeline="")
    kinds = [kernel["kind"] for kernel in made.report.kernels if kernel["flops"] > 10_000]
    assert kinds and all(kind.startswith("integer") for kind in kinds), kinds
    feeds = {"x": np.random.default_rng(5).normal(size=(2, 32, 10, 10)).astype(np.float32)}
    (expected,) = run_reference(model, feeds).values()
    made.save(tmp_path / "artifact")
    again = gw.load_executable(tmp_path / "artifact")
    for found in (made(feeds["x"]), again(feeds["x"])):
        apart = np.abs(found.astype(np.int32) - expected.astype(np.int32))
        assert apart.max() <= 1 and (apart > 0).mean() <= 0.05
    assert len(np.unique(expected)) > 20
    numbers = sum(v.const_value.size for v in model.graph.initializers.values() if v.const_value.size > 300)
    assert (tmp_path / "artifact" / "weights.bin").stat().st_size < 0.56 * numbers + 4096
