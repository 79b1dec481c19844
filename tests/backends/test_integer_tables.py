"""Chains of element-wise operators between quantizers as tables: equal to the reference, to the bit."""

import re

import numpy as np
import pytest
from graphwright.backends.target import resolve_target

from .quantized_models import Graph, tensor
from .test_integer import TARGETS, assert_within_a_step, disassembled


def silu(g, x):
    return g("Mul", x, g("Sigmoid", x))


def quantized_silu(g, x):
    """With quantizers inside, as files have them."""
    numbers = x.producer().inputs[0]
    again = g.dq(numbers, 0.05, 100, numbers.producer().inputs[2].const_value.dtype.numpy().name)
    return g("Mul", again, g.qdq(g("Sigmoid", x), 1 / 255, 0))


CHAINS = {
    "silu": silu,
    "quantized silu": quantized_silu,
    "gelu": lambda g, x: g("Gelu", x),
    "tanh of a sum": lambda g, x: g("Tanh", g("Add", x, g.constant(np.full((1, 1), 0.3, np.float32)))),
    "mish of a clip": lambda g, x: g("Mish", g("Clip", x, g.constant(np.float32(-1)))),
}


def model(chain, shape, dtype="uint8", out="uint8"):
    g = Graph()
    x = tensor("x", shape)
    y = CHAINS[chain](g, g.qdq(x, 0.05, 100, dtype))
    return g.model({"x": x}, g.q(y, 0.021, -5 if out == "int8" else 30, out))


def tables(lowered):
    return [
        kernel.note
        for kernel in lowered.kernels
        for _ in kernel.nodes_per_call
        if kernel.kind == "integer table"
    ]


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize(("dtype", "out"), [("uint8", "uint8"), ("int8", "int8"), ("int8", "uint8")])
def test_a_chain_becomes_a_table(through_tvm, chain, dtype, out):
    every = (np.arange(-140, 160, dtype=np.float32) * np.float32(0.05)).reshape(3, 100)
    results, expected, lowered = through_tvm(model(chain, (3, 100), dtype, out), {"x": every})
    assert len(tables(lowered)) == 1
    np.testing.assert_array_equal(*results.values(), *expected.values())


@pytest.mark.parametrize(
    "shape", [(1,), (63,), (64,), (5, 13), (16385,), (2, 3, 17, 19), (40, 1000), (4, 1 << 14)]
)
@pytest.mark.parametrize("target", TARGETS)
def test_every_byte_is_looked_up(through_tvm, shape, target):
    results, expected, lowered = through_tvm(model("silu", shape), target=target)
    assert len(tables(lowered)) == 1
    np.testing.assert_array_equal(*results.values(), *expected.values())


def test_tables_lie_between_convolutions(through_tvm):
    g = Graph(5)
    x = tensor("x", (1, 8, 9, 9))
    w, _ = g.weight((16, 8, 1, 1))
    y = g.q(g("Conv", g.qdq(x, 0.02, 3), w, None), 0.05, 100)
    both = [g.dq(y, 0.05, 100) for _ in range(2)]
    y = g.qdq(g("Mul", both[0], g("Sigmoid", both[1])), 0.03, 10)
    w, _ = g.weight((16, 1, 3, 3))
    y = g("Conv", y, w, None, group=16, pads=[1, 1, 1, 1])
    results, expected, lowered = through_tvm(g.model({"x": x}, g.q(y, 0.05, 100)))
    assert [kernel.kind for kernel in lowered.kernels].count("integer table") == 1
    assert_within_a_step(*results.values(), *expected.values())


def test_what_depends_on_two_tensors_or_on_channels_is_computed(through_tvm):
    g = Graph(5)
    x, z = tensor("x", (1, 8, 9)), tensor("z", (1, 8, 9))
    y = g("Mul", g.qdq(x, 0.05, 100), g("Sigmoid", g.qdq(z, 0.05, 100)))
    y = g("Tanh", g("Mul", g.qdq(y, 0.03, 10), g.constant(np.linspace(0, 1, 8, dtype=np.float32)[:, None])))
    results, expected, lowered = through_tvm(g.model({"x": x, "z": z}, g.q(y, 1 / 255, 100)))
    assert not tables(lowered)
    assert_within_a_step(*results.values(), *expected.values())


def test_long_chains_are_several_tables(through_tvm):
    g = Graph()
    x = tensor("x", (10, 100))
    y = x
    for number in range(30):
        y = g("Tanh", g.qdq(y, 0.01 + number / 1000, 120))
    results, expected, lowered = through_tvm(g.model({"x": x}, g.q(y, 0.01, 100)))
    assert len(tables(lowered)) == 4
    np.testing.assert_array_equal(*results.values(), *expected.values())


@pytest.mark.parametrize(
    ("target", "note", "instruction"),
    [
        ("sapphirerapids", "vpermi2b", r"vperm[it]2b"),
        ("x86-64-v3", "loads", r"movzb"),
    ],
)
def test_x86_code_holds_the_permutation(tmp_path, target, note, instruction):
    code = disassembled(model("silu", (40, 1000)), resolve_target(target), tmp_path)
    assert re.search(instruction, code)
    assert bool(re.search("vperm[it]2b", code)) == (note == "vpermi2b")
