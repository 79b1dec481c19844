"""Integer transposed convolutions against ONNX Runtime with its optimizations off, on every instruction set."""

import numpy as np
from graphwright.tools.int8_exactness import instruction_sets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .quantized_models import Graph, output_scale, tensor

SETS = list(instruction_sets())
SETTINGS = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
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
