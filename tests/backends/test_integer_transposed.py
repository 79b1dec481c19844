"""Integer transposed convolutions against ONNX Runtime with its optimizations off, on every instruction set."""

import graphwright as gw
import numpy as np
import pytest
from graphwright.backends.target import host_target
from graphwright.backends.tvm.lower import lower
from graphwright.ir.compare import compare
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import run_reference
from graphwright.ir.shapes import infer_shapes
from graphwright.tools.int8_exactness import instruction_sets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .quantized_models import Graph, output_scale, tensor

SETS = list(instruction_sets())
SETTINGS = settings(
    max_examples=16, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def transposed(shape, per_group, kernel, weights=("int8", 0), data=("uint8", 100), seed=0, **attributes):
    """DQ, DQ -> ConvTranspose -> Relu -> Q with an int32 bias, or without one."""
    g = Graph(seed)
    x = tensor("x", shape)
    groups = attributes.get("group", 1)
    per_channel, has_bias = attributes.pop("per_channel", True), attributes.pop("bias", True)
    weight, scale = g.weight((shape[1], per_group, *kernel), 1 if per_channel else None, *weights)
    wide = np.tile(scale, groups) if per_channel else scale
    bias = g.bias(wide * np.float32(0.02), per_group * groups) if has_bias else None
    y = g("ConvTranspose", g.qdq(x, 0.02, data[1], data[0]), weight, bias, **attributes)
    strides = attributes.get("strides", [1] * len(kernel))
    terms = (
        shape[1]
        // groups
        * int(np.prod([-(-taps // step) for taps, step in zip(kernel, strides, strict=True)]))
    )
    return g.model({"x": x}, g.q(g("Relu", y), output_scale(terms) / (16 if weights[0] == "int4" else 1), 3))


def check(through_tvm, model, name, seed=0, variety=9):
    data = np.random.default_rng(seed).normal(size=tuple(model.graph.inputs[0].shape)).astype(np.float32)
    results, expected, lowered = through_tvm(model, {"x": data}, target=instruction_sets()[name])
    kernels = [kernel for kernel in lowered.kernels if kernel.kind == "integer convtranspose"]
    assert len(kernels) == 1 and kernels[0].note.startswith("int8 "), [
        (each.kind, each.note) for each in lowered.kernels
    ]
    ((found,), (wanted,)) = results.values(), expected.values()
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    steps = np.abs(found.astype(np.int64) - wanted.astype(np.int64))
    assert steps.max() <= 1 and (steps > 0).sum() <= max(1, steps.size // 1000)
    assert len(np.unique(wanted)) >= variety
    return kernels[0]


@st.composite
def cases(draw):
    rank = draw(st.sampled_from([1, 2, 2, 2, 3, 3]))
    groups = draw(st.sampled_from([1, 1, 2, "depthwise"]))
    channels = draw(st.sampled_from([3, 20])) if groups == "depthwise" else groups * draw(st.integers(1, 9))
    kernel = [draw(st.integers(1, 5)) for _ in range(rank)]
    strides = [draw(st.integers(1, 4 if rank < 3 else 2)) for _ in range(rank)]
    dilations = [draw(st.sampled_from([1, 1, 2, 3])) for _ in range(rank)]
    size = [draw(st.integers(3, 9 if rank < 3 else 5)) for _ in range(rank)]
    case = {
        "shape": (draw(st.sampled_from([1, 2])), channels, *size),
        "per_group": 1 if groups == "depthwise" else draw(st.sampled_from([1, 3, 8, 16, 20])),
        "kernel": kernel,
        "weights": draw(st.sampled_from([("int8", 0), ("int8", 0), ("uint8", 120), ("int4", 0)])),
        "data": draw(st.sampled_from([("uint8", 0), ("uint8", 100), ("int8", -3)])),
        "group": channels if groups == "depthwise" else groups,
        "strides": strides,
        "dilations": dilations,
        "per_channel": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }
    how = draw(st.sampled_from(["pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    reach = [(taps - 1) * step + 1 for taps, step in zip(kernel, dilations, strict=True)]
    # SAME means nothing where windows leave gaps: ONNX asks for more outputs than ONNX Runtime gives.
    if how == "VALID" or (
        how != "pads" and all(size >= stride for size, stride in zip(reach, strides, strict=True))
    ):
        return {**case, "auto_pad": how}
    pads = [draw(st.integers(0, min(3, reach[axis % rank] - 1))) for axis in range(2 * rank)]
    extra = [draw(st.integers(0, stride - 1)) for stride in strides]
    return {**case, "pads": pads, "output_padding": extra}


@SETTINGS
@given(cases(), st.sampled_from(SETS))
def test_transposed_convolutions_are_integer_and_right(through_tvm, case, name):
    check(through_tvm, transposed(**case), name, case["seed"], variety=1)


WINDOWS = {
    "2x2": ((2, 64, 9, 12), 48, (2, 2), 1, {"strides": [2, 2]}),
    "4x4": ((1, 48, 8, 10), 64, (4, 4), 4, {"strides": [2, 2], "pads": [1] * 4}),
    "3x3": ((2, 32, 9, 8), 32, (3, 3), 4, {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}),
    "few outputs": ((1, 64, 12, 12), 3, (4, 4), 1, {"strides": [2, 2], "pads": [1] * 4}),
    "16x16": ((1, 21, 6, 5), 21, (16, 16), 4, {"strides": [8, 8], "pads": [4] * 4}),
    "gaps": ((1, 32, 6, 5), 16, (2, 2), 1, {"strides": [3, 3]}),
    "odd sizes": ((1, 32, 6, 5), 16, (3, 3), 4, {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
    "skipped": ((1, 64, 14, 20), 32, (3, 3), 4, {"strides": [2, 2], "pads": [3, 4, 3, 3]}),
    "grouped": ((2, 128, 14, 14), 64, (4, 4), 4, {"strides": [2, 2], "pads": [1] * 4, "group": 2}),
    "depthwise": ((1, 40, 7, 9), 1, (4, 4), 4, {"strides": [2, 2], "pads": [1] * 4, "group": 40}),
    "signal": ((1, 64, 40), 32, (16,), 2, {"strides": [8], "pads": [4, 4]}),
    "volume": ((1, 64, 3, 4, 5), 32, (2, 2, 2), 1, {"strides": [2, 2, 2]}),
    "3x3x3": ((1, 32, 3, 4, 5), 32, (3, 3, 3), 8, {"strides": [2] * 3, "pads": [1] * 6}),
}
"""Shape, outputs of a group, window, the convolutions that it becomes, attributes."""


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("window", WINDOWS)
def test_windows_of_decoders(through_tvm, window, name):
    shape, outputs, kernel, parts, attributes = WINDOWS[window]
    note = check(through_tvm, transposed(shape, outputs, kernel, **attributes), name, 3).note
    counted = int(note.split(" parts")[0].split()[-1])
    # Wider vectors leave more lanes empty where outputs are few: more phases become channels there.
    assert counted == parts or (window in ("few outputs", "gaps") and counted <= 6), note
    words = {"amx": "tdpb", "vnni": "vpdpbusd", "avx2": "vpmaddwd"}
    if name in words and window != "depthwise":
        assert words[name] in note, note


def decoder():
    """An encoder's layer, a transposed one with a residual behind it, and one that joins what was skipped."""
    g = Graph(5)
    x = tensor("x", (1, 8, 10, 10))
    constant, normal = g.constant, g.random.standard_normal

    def weight(*shape):
        return constant((normal(shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32))

    first = g("Relu", g("Conv", x, weight(16, 8, 3, 3), constant(np.zeros(16, np.float32)), pads=[1] * 4))
    down = g("Relu", g("Conv", first, weight(32, 16, 3, 3), pads=[1] * 4, strides=[2, 2]))
    bias = constant(normal(16).astype(np.float32))
    up = g("Relu", g("Add", g("ConvTranspose", down, weight(32, 16, 2, 2), bias, strides=[2, 2]), first))
    joined = g("Concat", up, first, axis=1)
    y = g("ConvTranspose", joined, weight(32, 3, 4, 4), strides=[2, 2], pads=[1] * 4)
    return g.model({"x": x}, y)


@pytest.mark.parametrize("repair", ["", ",bias-correction", ",gptq", ",ada-round{iterations=20}"])
def test_decoders_are_quantized_for_tvm_and_run_on_integers(through_tvm, repair):
    model = decoder()
    feeds = random_inputs(model, 1)
    data = [random_inputs(model, seed) for seed in range(3)]
    quantized = gw.optimize(model, f"insert-qdq{{target=tvm}}{repair}", calibration=data).model
    (exact,), (stored,) = run_reference(model, feeds).values(), run_reference(quantized, feeds).values()
    assert compare(exact, stored).sqnr_db > 28
    results, expected, lowered = through_tvm(quantized, feeds)
    kinds = [kernel.kind for kernel in lowered.kernels]
    assert kinds.count("integer convtranspose") == 2 and kinds.count("integer conv") == 2
    assert not {"conv", "convtranspose"} & set(kinds), kinds
    assert compare(*expected.values(), *results.values()).sqnr_db > 45


def test_what_stays_in_float():
    """Weights with a scale per input channel, and depthwise ones with too many phases."""

    def kinds(build):
        g, x = Graph(), tensor("x", (1, 8, 5, 5))
        model = g.model({"x": x}, g.q(build(g, g.qdq(x, 0.02, 100)), 0.1, 0))
        infer_shapes(model)
        return {kernel.kind for kernel in lower(model, host_target()).kernels}

    by_input = kinds(lambda g, x: g("ConvTranspose", x, g.weight((8, 4, 2, 2), 0)[0], strides=[2, 2]))
    swept = kinds(lambda g, x: g("ConvTranspose", x, g.weight((8, 1, 8, 8), 1)[0], strides=[8, 8], group=8))
    assert "convtranspose" in by_input and "convtranspose" in swept
    assert "integer convtranspose" not in by_input | swept
