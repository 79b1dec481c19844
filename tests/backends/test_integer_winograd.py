"""Winograd's method on integers: exact on every instruction set that multiplies pairs of 16 bits."""

import numpy as np
import pytest
from graphwright.backends.target import resolve_target
from graphwright.backends.tvm.kernels.integer_winograd import choose_integer_winograd
from graphwright.backends.tvm.kernels.interface import Conv2dSpec
from graphwright.backends.tvm.lower import lower
from graphwright.ir.shapes import infer_shapes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .quantized_models import Graph, tensor
from .test_integer import assert_within_a_step
from .test_integer_volumes import convolution

TARGETS = [
    name for name in ("x86-64-v2", "x86-64-v3", "skylake-avx512") if not resolve_target(name).why_not_here()
]
SETTINGS = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def check(through_tvm, model, target, seed=0):
    shape = tuple(model.graph.inputs[0].shape)
    data = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    # Small ones are quicker directly.
    asked = {"algorithm": "F(2,3)"}
    results, expected, lowered = through_tvm(model, {"x": data}, target=target, schedules=lambda _: asked)
    (kernel,) = [kernel for kernel in lowered.kernels if kernel.kind == "integer conv"]
    assert_within_a_step(*results.values(), *expected.values())
    assert len(np.unique(*expected.values())) > 9
    return kernel


@st.composite
def cases(draw):
    shape = (
        draw(st.sampled_from([1, 3])),
        2 * draw(st.integers(16, 30)),
        *draw(st.tuples(*[st.integers(8, 19)] * 2)),
    )
    return {
        "shape": shape,
        "outputs": draw(st.integers(16, 70)),
        "kernel": (3, 3),
        "data": draw(st.sampled_from([("uint8", 0), ("uint8", 100), ("int8", -3)])),
        "pads": [draw(st.integers(0, 2)) for _ in range(4)],
        "seed": draw(st.integers(0, 99)),
    }


@SETTINGS
@given(cases(), st.sampled_from(TARGETS))
def test_convolutions_of_any_size_are_right(through_tvm, case, target):
    assert "winograd F(2,3)" in check(through_tvm, convolution(**case), target, case["seed"]).note


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "case",
    [
        {"kernel": (3, 3, 3), "pads": [1] * 6},
        {"kernel": (1, 3, 3), "pads": [0, 1, 1, 0, 1, 1]},
        {"kernel": (3, 3, 3), "pads": [0, 1, 1, 2, 1, 0], "strides": [2, 1, 1], "dilations": [2, 1, 1]},
    ],
    ids=["volume", "planes", "strided depth"],
)
def test_volumes_are_images_whose_channels_are_those_of_several_planes(through_tvm, case, target):
    kernel = check(through_tvm, convolution((2, 32, 6, 9, 12), 24, **case), target)
    assert "conv3d winograd F(2,3)" in kernel.note


@pytest.mark.parametrize("shape", [(1, 64, 56, 56), (1, 512, 7, 7)], ids=["chunks", "one chunk"])
def test_weights_are_transformed_once_or_for_each_block(through_tvm, shape):
    kernel = check(through_tvm, convolution(shape, 64, (3, 3), pads=[1] * 4), "x86-64-v3")
    assert "winograd" in kernel.note


def extreme(channels: int):
    g, x = Graph(), tensor("x", (1, channels, 4, 4))
    w = np.full((16, channels, 3, 3), -128, np.int8)
    weight = g.dq(g.constant(w), 1 / 128, 0, "int8")
    return g.model({"x": x}, g("Conv", g.qdq(x, 1.0, 0), weight, pads=[1] * 4))


def test_the_largest_sums_fit(through_tvm):
    """As many channels as it takes, and all numbers as large as they can be."""
    most = 1826
    results, expected, lowered = through_tvm(
        extreme(most), {"x": np.full((1, most, 4, 4), 255, np.float32)}, target="x86-64-v3"
    )
    assert any("winograd" in kernel.note for kernel in lowered.kernels)
    np.testing.assert_allclose(*results.values(), *expected.values(), rtol=1e-6)
    assert np.abs(*expected.values()).max() == 255 * 9 * most


@pytest.mark.parametrize(
    ("changes", "target"),
    [
        ({"in_channels": 1828}, "x86-64-v3"),
        ({"in_channels": 33}, "x86-64-v3"),
        ({"in_channels": 8}, "x86-64-v3"),
        ({"stride": (2, 2)}, "x86-64-v3"),
        ({"kernel": (5, 5)}, "x86-64-v3"),
        ({"groups": 2}, "x86-64-v3"),
        ({"pads": (0, 0, -1, 0)}, "x86-64-v3"),
        ({}, "cascadelake"),
        ({}, "armv8-a"),
    ],
)
def test_where_it_does_not_apply(changes, target):
    plain = {"batch": 1, "in_channels": 64, "height": 20, "width": 20, "out_channels": 64, "kernel": (3, 3)}
    types = ("uint8", "int8")
    assert choose_integer_winograd(Conv2dSpec(**plain), types, resolve_target("x86-64-v3")) is not None
    assert choose_integer_winograd(Conv2dSpec(**{**plain, **changes}), types, resolve_target(target)) is None


def test_weights_stay_bytes():
    model = convolution((1, 64, 28, 28), 64, (3, 3), pads=[1] * 4)
    infer_shapes(model)
    lowered = lower(model, resolve_target("x86-64-v3"))
    weights = sum(array.nbytes for array in lowered.weights if array.ndim > 1)
    assert weights == 64 * 64 * 9
