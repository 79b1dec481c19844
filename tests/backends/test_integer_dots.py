"""Products of int8 for CUDA: the instruction is in the code, and the arithmetic around it is right."""

import re
import subprocess

import graphwright as gw
import numpy as np
import pytest
from graphwright.backends import cuda
from graphwright.backends.cross import find_nvcc
from graphwright.backends.tvm import integer, integer_dots, integer_wide, strategy

from .quantized_models import layer
from .test_integer import assert_within_a_step, convolution, product
from .test_integer_transposed import transposed
from .test_integer_wide import CONVOLUTION, FORMS
from .test_integer_wide import check as check_wide
from .test_integer_wide import convolution as wide_convolution


def case(**given):
    """A convolution as `test_integer` draws them."""
    plain = {"rank": 2, "groups": 1, "channels": 8, "outputs": 12, "size": [9, 7], "kernel": [3, 3]}
    plain |= {"pads": [1, 0, 2, 1], "strides": [1, 2], "dilations": [1, 1], "dtype": "int8", "zero_point": 3}
    plain |= {"out_dtype": "uint8", "weights": ("int8", 0), "per_channel": True, "bias": "int32"}
    return plain | {"tail": "Relu", "seed": 1} | given


def dense(kind, k=30):
    plain = {"kind": kind, "m": 5, "k": k, "n": 11, "batch": 2, "dtypes": ("uint8", "uint8")}
    plain |= {"zero_points": (100, 0), "weights": ("int8", 0), "per_channel": True, "bias": True, "seed": 1}
    return plain


MODELS = {
    "conv": lambda: convolution(case()),
    "conv of uint8": lambda: convolution(case(dtype="uint8", zero_point=100)),
    "grouped, uneven": lambda: convolution(case(groups=3, channels=15, outputs=6, dilations=[2, 1])),
    "depthwise": lambda: convolution(case(groups=16, channels=16, outputs=16)),
    "1-D": lambda: convolution(case(rank=1, size=[20], kernel=[5], pads=[2, 2], strides=[2], dilations=[1])),
    "transposed": lambda: transposed((1, 10, 5, 6), 7, (4, 3), strides=[2, 2], pads=[1, 1, 0, 1]),
    "transposed, grouped": lambda: transposed((2, 6, 5, 6), 4, (3, 3), strides=[2, 3], group=2),
    "transposed, 3-D": lambda: transposed((1, 5, 3, 4, 3), 4, (2, 3, 2), strides=[2, 2, 1]),
    "gemm": lambda: product(dense("gemm")),
    "gemm, transposed": lambda: product(dense("gemm_t", k=32)),
    "matmul": lambda: product(dense("matmul")),
}


class Dots(strategy.CpuStrategy):
    """What CUDA is given, for a CPU."""

    convolution_layout = strategy.PlainStrategy.convolution_layout

    def _emit(self, spec, _target):
        return strategy.emit_plain(spec, dots=True)


def four_products(one, other):
    from tvm import tirx

    def byte(word, number):
        up = tirx.shift_left(word, tirx.const(24 - 8 * number, "int32"))
        return tirx.shift_right(up, tirx.const(24, "int32"))

    return sum((byte(one, i) * byte(other, i) for i in range(1, 4)), byte(one, 0) * byte(other, 0))


@pytest.fixture
def used(monkeypatch):
    """The words that were multiplied, by arithmetic that a CPU has; products go the way of CUDA."""
    found = []

    def dot(one, other):
        found.append(one)
        return four_products(one, other)

    monkeypatch.setattr(integer_dots, "_dot", dot)
    monkeypatch.setitem(strategy._STRATEGIES, "llvm", Dots)
    monkeypatch.setitem(integer._SIGNED, "x86", True)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_words_hold_the_right_numbers(through_tvm, used, name):
    results, expected, _ = through_tvm(MODELS[name]())
    assert used
    assert_within_a_step(*results.values(), *expected.values())


@pytest.mark.parametrize("form", ["dense", "grouped", "depthwise", "line"])
def test_bytes_of_16_bit_activations_are_words(through_tvm, used, monkeypatch, form):
    monkeypatch.setattr(integer_wide, "_kinds", lambda *_: [integer_wide.HIGH, integer_wide.LOW])
    check_wide(through_tvm, wide_convolution(CONVOLUTION | FORMS[form]), "host")
    assert len(used) >= 2


def test_cuda_code_of_16_bit_activations_holds_dp4a(monkeypatch):
    monkeypatch.setattr(cuda, "find_nvcc", lambda: None)
    exe = gw.compile(wide_convolution(CONVOLUTION), "cuda", pipeline="eliminate-dead", check=False)
    assert cuda_source(exe.library.read_bytes()).count("__dp4a(") >= 2


def test_weights_become_words():
    weights = np.arange(-6, 6, dtype=np.int8).reshape(2, 6)
    words = integer_dots.pack_words(weights, 1)
    assert words.shape == (2, 2) and words.dtype == np.int32
    assert words.view(np.int8).reshape(2, 8)[:, :6].tolist() == weights.tolist()
    assert not words.view(np.int8).reshape(2, 8)[:, 6:].any()


@pytest.mark.parametrize("name", ["conv", "transposed", "matmul", "gemm"])
def test_cuda_code_holds_dp4a(tmp_path, monkeypatch, name):
    monkeypatch.setattr(cuda, "find_nvcc", lambda: None)
    exe = gw.compile(MODELS[name](), "cuda", check=False)
    source = cuda_source(exe.library.read_bytes())
    assert "__dp4a(" in source
    if find_nvcc() is None:
        return
    (tmp_path / "kernels.cu").write_text(source)
    command = [str(find_nvcc()), "-ptx", "-arch=sm_90", "kernels.cu", "-o", "kernels.ptx"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert re.search(r"dp4a\.s32\.s32", (tmp_path / "kernels.ptx").read_text())


def cuda_source(library: bytes) -> str:
    """The CUDA source that a library holds."""
    start = library.index(b'extern "C" __global__')
    begin = library.rfind(b"\0", 0, start) + 1
    # What follows the source is no text.
    return re.split(rb"[\x00-\x08]", library[begin:])[0].decode()


def test_layers_of_one_channel_per_group_compile_for_cuda(monkeypatch):
    monkeypatch.setattr(cuda, "find_nvcc", lambda: None)
    assert "__dp4a(" in cuda_source(gw.compile(layer(64), "cuda", check=False).library.read_bytes())
