"""Integer convolutions over three axes, and grouped ones of several images, on every instruction set."""

import numpy as np
import pytest
from graphwright.tools.int8_exactness import instruction_sets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .quantized_models import Graph, output_scale, tensor

SETS = list(instruction_sets())
SETTINGS = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def check(through_tvm, model, name, seed, variety=9):
    data = np.random.default_rng(seed).normal(size=tuple(model.graph.inputs[0].shape)).astype(np.float32)
    results, expected, lowered = through_tvm(model, {"x": data}, target=instruction_sets()[name])
    kernels = [kernel for kernel in lowered.kernels if kernel.kind in ("integer conv", "conv")]
    in_float = name == "avx2" and is_swept(model)
    said = "take longer by vpmaddwd" in kernels[0].note
    assert len(kernels) == 1 and (said if in_float else kernels[0].note.startswith("int8 ")), [
        (each.kind, each.note) for each in lowered.kernels
    ]
    ((found,), (wanted,)) = results.values(), expected.values()
    steps = np.abs(found.astype(np.int64) - wanted.astype(np.int64))
    assert steps.max() <= 1 and (steps > 0).sum() <= max(1, steps.size // 1000)
    assert len(np.unique(wanted)) >= variety
    return kernels[0]


def is_swept(model):
    """Whether it is a convolution of single channels over several planes and within them."""
    (node,) = [node for node in model.graph if node.op_type == "Conv"]
    outputs, depth, planes, *window = (*node.inputs[1].producer().inputs[0].shape, 1)[:5]
    single = depth == 1 and node.attributes.get_int("group", 1) == outputs > 1
    volume = len(node.inputs[1].producer().inputs[0].shape) == 5
    return volume and single and planes > 1 and max(window) > 1


def convolution(shape, outputs, kernel, weights=("int8", 0), data=("uint8", 100), seed=0, **attributes):
    g = Graph(seed)
    x = tensor("x", shape)
    groups = attributes.get("group", 1)
    weight, scale = g.weight((outputs, shape[1] // groups, *kernel), 0, *weights)
    bias = g.bias(scale * np.float32(0.02), outputs)
    y = g("Conv", g.qdq(x, 0.02, data[1], data[0]), weight, bias, **attributes)
    terms = shape[1] // groups * int(np.prod(kernel))
    return g.model({"x": x}, g.q(g("Relu", y), output_scale(terms) / (16 if weights[0] == "int4" else 1), 3))


@st.composite
def volumes(draw):
    groups = draw(st.sampled_from([1, 1, 2, "depthwise"]))
    channels = draw(st.sampled_from([20, 3])) if groups == "depthwise" else groups * draw(st.integers(1, 20))
    outputs = channels if groups == "depthwise" else groups * draw(st.integers(1, 20))
    kernel = [draw(st.integers(1, 3)) for _ in range(3)]
    dilations = [draw(st.sampled_from([1, 1, 2])) for _ in range(3)]
    size = [draw(st.integers(5, 9)) for _ in range(3)]
    return {
        "shape": (draw(st.sampled_from([1, 3])), channels, *size),
        "outputs": outputs,
        "kernel": kernel,
        "weights": draw(st.sampled_from([("int8", 0), ("uint8", 120), ("int4", 0)])),
        "data": draw(st.sampled_from([("uint8", 0), ("uint8", 100), ("int8", -3)])),
        "group": channels if groups == "depthwise" else groups,
        "pads": [draw(st.integers(0, 2)) for _ in range(6)],
        "strides": [draw(st.sampled_from([1, 1, 2])) for _ in range(3)],
        "dilations": dilations,
        "seed": draw(st.integers(0, 99)),
    }


@SETTINGS
@given(volumes(), st.sampled_from(SETS))
def test_volumes_are_integer_and_right(through_tvm, case, name):
    check(through_tvm, convolution(**case), name, case["seed"], variety=1)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    "case",
    [
        {"kernel": (3, 3, 3), "pads": [1] * 6},
        {"kernel": (3, 3, 3), "pads": [1] * 6, "group": 4},
        {"kernel": (3, 3, 3), "pads": [2] * 6, "dilations": [2, 2, 2], "group": 2},
        {"kernel": (3, 1, 1), "pads": [1, 0, 0, 1, 0, 0], "strides": [2, 1, 1]},
        {"kernel": (1, 3, 3), "pads": [0, 1, 1, 0, 1, 1], "strides": [1, 2, 2]},
        {"kernel": (2, 2, 2), "strides": [2, 2, 2], "group": 32},
    ],
    ids=["dense", "grouped", "dilated", "depth", "planes", "depthwise"],
)
def test_batches_of_volumes(through_tvm, case, name):
    kernel = check(through_tvm, convolution((3, 32, 6, 9, 10), 32, **case), name, 4)
    words = {"amx": "tdpb", "vnni": "vpdpbusd"}
    if name in words and case.get("group") != 32 and not (name == "amx" and case.get("group")):
        assert words[name] in kernel.note, kernel.note
    assert "3d" in kernel.note


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("groups", [2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("size", [1, 3])
def test_grouped_convolutions_of_three_images(through_tvm, groups, size, name):
    model = convolution((3, 64, 14, 14), 128, (size, size), pads=[size // 2] * 4, group=groups)
    check(through_tvm, model, name, 5)


@pytest.mark.parametrize("name", SETS)
def test_strided_grouped_convolutions_of_three_wide_images(through_tvm, name):
    model = convolution(
        (3, 128, 28, 28), 256, (3, 3), ("int8", 0), ("int8", 0), pads=[1] * 4, group=2, strides=[2, 2]
    )
    check(through_tvm, model, name, 6)
