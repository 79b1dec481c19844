"""Anchors over three axes: numbers against the reference, and which kernels serve them."""

from __future__ import annotations

import pytest
from graphwright.backends.target import resolve_target
from graphwright.ir.compare import compare

TARGETS = [name for name in ("host", "x86-64-v3") if resolve_target(name).runs_here]

# name: (operator with its attributes, shape of x, shape of the weights, shape of y, kernel)
CASES = {
    "whole": ("Conv<pads = [1,1,1,1,1,1]>", (1, 6, 5, 9, 11), (20, 6, 3, 3, 3), (1, 20, 5, 9, 11), "conv3d"),
    "winograd": (
        "Conv<pads = [1,1,1,1,1,1]>",
        (2, 16, 4, 8, 8),
        (32, 16, 3, 3, 3),
        (2, 32, 4, 8, 8),
        "volume winograd",
    ),
    "winograd_strided": (
        "Conv<pads = [1,1,1,1,1,1], strides = [2,1,1]>",
        (1, 32, 7, 12, 12),
        (32, 32, 3, 3, 3),
        (1, 32, 4, 12, 12),
        "volume winograd",
    ),
    "winograd_inside": (
        "Conv<pads = [0,1,1,0,1,1]>",
        (1, 32, 5, 12, 12),
        (32, 32, 3, 3, 3),
        (1, 32, 3, 12, 12),
        "volume winograd",
    ),
    "first": (
        "Conv<pads = [1,3,3,1,3,3], strides = [1,2,2]>",
        (2, 3, 4, 17, 15),
        (24, 3, 3, 7, 7),
        (2, 24, 4, 9, 8),
        "conv3d",
    ),
    "space": (
        "Conv<pads = [0,1,1,0,1,1]>",
        (2, 16, 3, 9, 9),
        (24, 16, 1, 3, 3),
        (2, 24, 3, 9, 9),
        "winograd",
    ),
    "time": (
        "Conv<pads = [1,0,0,1,0,0], strides = [2,1,1]>",
        (2, 16, 6, 9, 9),
        (24, 16, 3, 1, 1),
        (2, 24, 3, 9, 9),
        "conv2d",
    ),
    "point": ("Conv", (2, 16, 3, 5, 7), (24, 16, 1, 1, 1), (2, 24, 3, 5, 7), "conv2d_1x1"),
    "shortcut": ("Conv<strides = [2,2,2]>", (2, 16, 5, 9, 9), (24, 16, 1, 1, 1), (2, 24, 3, 5, 5), "conv3d"),
    "depthwise": (
        "Conv<pads = [1,1,1,1,1,1], group = 24>",
        (2, 24, 4, 9, 9),
        (24, 1, 3, 3, 3),
        (2, 24, 4, 9, 9),
        "depthwise3d",
    ),
    "multiplied": (
        "Conv<pads = [1,1,1,1,1,1], strides = [1,2,2], group = 8>",
        (1, 8, 4, 9, 9),
        (16, 1, 3, 3, 3),
        (1, 16, 4, 5, 5),
        "depthwise3d",
    ),
    "grouped": (
        "Conv<pads = [0,1,1,1,2,2], dilations = [1,2,2], group = 6>",
        (1, 24, 4, 9, 9),
        (36, 4, 3, 3, 3),
        (1, 36, 3, 8, 8),
        "conv3d",
    ),
    "beyond_borders": (
        "Conv<pads = [9,9,9,9,9,9], dilations = [9,9,9], group = 12>",
        (1, 12, 3, 5, 40),
        (12, 1, 3, 3, 3),
        (1, 12, 3, 5, 40),
        "depthwise3d",
    ),
    "doubled": (
        "ConvTranspose<strides = [2,2,2]>",
        (2, 12, 3, 4, 5),
        (12, 20, 2, 2, 2),
        (2, 20, 6, 8, 10),
        "conv_transpose3d",
    ),
    "overlapping": (
        "ConvTranspose<strides = [2,2,2], pads = [1,1,1,1,1,1]>",
        (1, 12, 3, 4, 5),
        (12, 9, 4, 4, 4),
        (1, 9, 6, 8, 10),
        "conv_transpose3d",
    ),
    "one_more": (
        "ConvTranspose<strides = [2,2,1], pads = [1,1,0,1,1,0], output_padding = [1,0,0], group = 3>",
        (2, 12, 2, 3, 5),
        (12, 2, 3, 3, 3),
        (2, 6, 4, 5, 7),
        "conv_transpose3d",
    ),
    "many_borders": (
        "ConvTranspose<dilations = [1,4,4]>",
        (1, 4, 2, 3, 60),
        (4, 6, 3, 9, 9),
        (1, 6, 4, 35, 92),
        "conv_transpose3d",
    ),
    "many_phases": (
        "ConvTranspose<strides = [3,3,3]>",
        (1, 4, 2, 2, 3),
        (4, 5, 3, 3, 3),
        (1, 5, 6, 6, 9),
        "",
    ),
    "maximum": (
        "MaxPool<kernel_shape = [3,3,3], strides = [2,2,2], pads = [1,1,1,1,1,1]>",
        (2, 20, 5, 9, 9),
        None,
        (2, 20, 3, 5, 5),
        "max_pool3d",
    ),
    "maximum_of_few": (
        "MaxPool<kernel_shape = [1,2,2], strides = [1,2,2]>",
        (1, 3, 4, 9, 9),
        None,
        (1, 3, 4, 4, 4),
        "max_pool3d",
    ),
    "average": (
        "AveragePool<kernel_shape = [3,3,3], strides = [1,2,2], pads = [1,1,1,1,1,1]>",
        (1, 20, 4, 9, 9),
        None,
        (1, 20, 4, 5, 5),
        "average_pool3d",
    ),
    "average_with_padding": (
        "AveragePool<kernel_shape = [2,3,3], pads = [1,1,1,0,1,1], count_include_pad = 1>",
        (1, 5, 4, 6, 6),
        None,
        (1, 5, 4, 6, 6),
        "average_pool3d",
    ),
}


def dims(shape) -> str:
    return "float[" + ",".join(map(str, shape)) + "]"


@pytest.mark.parametrize("target", TARGETS)
def test_layers_over_three_axes(through_tvm, build_model, target):
    inputs, outputs, nodes, weights = [], [], [], {}
    for name, (operator, x, w, y, _) in CASES.items():
        inputs.append(f"{dims(x)} x_{name}")
        outputs.append(f"{dims(y)} {name}")
        if w is None:
            nodes.append(f"{name} = {operator}(x_{name})")
            continue
        bias = (w[0] if operator.startswith("Conv<") or operator == "Conv" else y[1],)
        weights |= {f"w_{name}": w, f"b_{name}": bias}
        inputs += [f"{dims(w)} w_{name}", f"{dims(bias)} b_{name}"]
        nodes.append(f"c_{name} = {operator}(x_{name}, w_{name}, b_{name}) {name} = Relu(c_{name})")
    model = build_model(
        f"g ({', '.join(inputs)}) => ({', '.join(outputs)}) {{ {' '.join(nodes)} }}", **weights
    )
    for node in model.graph:
        node.name = node.outputs[0].name
    results, expected, lowered = through_tvm(model, target=target)
    for name, wanted in expected.items():
        assert results[name].shape == wanted.shape, name
        assert compare(wanted, results[name]).max_rel <= 2e-5, name
    notes = {node: kernel.note for kernel in lowered.kernels for node in kernel.nodes}
    if target == "x86-64-v3":
        assert {name: kernel in notes[name] for name, (*_, kernel) in CASES.items()} == dict.fromkeys(
            CASES, True
        )
        assert not notes["many_phases"]


def test_a_residual_block_stays_channels_last(through_tvm, build_model):
    model = build_model(
        """g (float[2,8,3,6,6] x, float[16,8,3,3,3] w1, float[16,16,3,1,1] w2, float[16,8,1,1,1] w3) => (float[2,16] y) {
          c1 = Conv<pads = [1,1,1,1,1,1]>(x, w1) r1 = Relu(c1) c2 = Conv<pads = [1,0,0,1,0,0]>(r1, w2)
          s = Conv(x, w3) a = Add(c2, s) r2 = Relu(a) m = GlobalAveragePool(r2) y = Flatten(m) }""",
        w1=(16, 8, 3, 3, 3),
        w2=(16, 16, 3, 1, 1),
        w3=(16, 8, 1, 1, 1),
    )
    results, expected, lowered = through_tvm(model)
    assert compare(expected["y"], results["y"]).max_rel <= 1e-5
    # One copy, of what comes in in ONNX's order; the addition sits in an anchor's kernel.
    calls = {kernel.name: kernel.calls for kernel in lowered.kernels}
    assert sum(calls.values()) == 5, calls
    assert sum(count for name, count in calls.items() if name.startswith("identity")) == 1
