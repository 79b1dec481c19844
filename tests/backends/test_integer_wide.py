"""16-bit activations on integer kernels, against sums in float64: float32 rounds more than a step of 16 bits.

ONNX Runtime multiplies such graphs in float32. Where it does, ours must be as near to it as it is to float64.
"""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graphwright.backends.tvm.integer_bytes import HIGH, LOW, WHOLE, part_of
from graphwright.tools.int8_exactness import instruction_sets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .quantized_models import Graph, tensor

SETS = list(instruction_sets())
SETTINGS = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
STEP = 1e-4
"""Of the data: normal numbers then reach some 40,000 steps, of which 16 bits hold what is within 3.2."""


def in_float64(model, feeds):
    """The output of a graph of these tests, everything behind the first quantizer in float64."""
    values = dict(feeds)
    for each in model.graph.initializers.values():
        values[each.name] = each.const_value.numpy()
    for node in model.graph:
        inputs = [values[each.name] if each is not None else None for each in node.inputs]
        attributes = {name: each.value for name, each in node.attributes.items()}
        values[node.outputs[0].name] = OPERATORS[node.op_type](attributes, *inputs)
    return values[model.graph.outputs[0].name]


def _quantize(_, x, scale, zero_point):
    info = np.iinfo(zero_point.dtype)
    # float32 comes in from outside, where the reference divides in float32.
    steps = np.rint(x / (scale if x.dtype == np.float32 else scale.astype(np.float64)))
    return np.clip(steps.astype(np.float64) + zero_point, info.min, info.max).astype(zero_point.dtype)


def _dequantize(attributes, x, scale, zero_point=None):
    zero_point = np.zeros((), np.int32) if zero_point is None else zero_point
    shape = [-1 if axis == attributes.get("axis", 1) else 1 for axis in range(x.ndim)] if scale.ndim else ()
    return (x.astype(np.float64) - zero_point.astype(np.float64).reshape(shape)) * scale.astype(
        np.float64
    ).reshape(shape)


def _conv(attributes, x, w, bias=None):
    rank = w.ndim - 2
    pads = attributes.get("pads", [0] * 2 * rank)
    ends = [pads[axis + side * rank] for axis in reversed(range(rank)) for side in (0, 1)]
    padded = torch.nn.functional.pad(torch.from_numpy(x), ends)
    function = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[rank - 1]
    given = None if bias is None else torch.from_numpy(bias.astype(np.float64))
    strides, dilations = (attributes.get(name, [1] * rank) for name in ("strides", "dilations"))
    groups = attributes.get("group", 1)
    return function(padded, torch.from_numpy(w), given, tuple(strides), 0, tuple(dilations), groups).numpy()


def _gemm(attributes, x, w, bias=None):
    product = x @ (w.T if attributes.get("transB") else w) * attributes.get("alpha", 1.0)
    return product if bias is None else product + bias * attributes.get("beta", 1.0)


def _windows(x):
    """Windows of 3x3 side by side: (N, C, H / 3, 3, W / 3, 3)."""
    return x.reshape(*x.shape[:2], x.shape[2] // 3, 3, x.shape[3] // 3, 3)


OPERATORS = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": lambda _, a, b: a @ b,
    "Add": lambda _, a, b: a + b,
    "Relu": lambda _, x: np.maximum(x, 0),
    "MaxPool": lambda _, x: _windows(x).max((3, 5)),
    "AveragePool": lambda _, x: _windows(x).mean((3, 5)),
    "Concat": lambda attributes, *parts: np.concatenate(parts, attributes["axis"]),
}


def _target(name):
    return "host" if name == "host" else instruction_sets()[name]


def check(through_tvm, model, name, variety=200, kinds=("integer conv", "integer matmul")):
    """At most one step from float64, nearly all equal; no farther from ONNX Runtime than it is from float64."""
    (given,) = model.graph.inputs
    data = np.random.default_rng(3).normal(size=tuple(given.shape)).astype(np.float32)
    results, reference, lowered = through_tvm(model, {"x": data}, target=_target(name))
    ((found,), (other,)) = results.values(), reference.values()
    expected = in_float64(model, {"x": data})
    assert found.dtype == expected.dtype
    found, expected, other = (each.astype(np.int64) for each in (found, expected, other))
    steps = np.abs(found - expected)
    assert steps.max() <= 1
    assert (steps > 0).sum() <= max(1, steps.size // 1000)
    assert np.abs(found - other).max() <= np.abs(other - expected).max() + 1
    assert len(np.unique(expected)) >= min(variety, expected.size // 2)
    return [each for each in lowered.kernels if not kinds or each.kind in kinds]


def quantized_to(g, y, terms, dtype, zero_point):
    """The output's quantizer, under whose scale few sums saturate."""
    return g.q(y, 0.9 * terms**0.5 * 4 / (1 << 16), zero_point, dtype)


def convolution(case):
    g = Graph(case["seed"])
    x = tensor("x", (2, case["channels"], *case["size"]))
    shape = (case["outputs"], case["channels"] // case["groups"], *case["kernel"])
    weight, scale = g.weight(shape, 0 if case["per_channel"] else None, *case["weights"])
    bias = None
    if case["bias"] == "int32":
        bias = g.bias(scale * np.float32(STEP), case["outputs"])
    elif case["bias"] == "float":
        bias = g.constant(g.random.standard_normal(case["outputs"]).astype(np.float32))
    data = g.qdq(x, STEP, case["zero_point"], case["dtype"])
    names = ("pads", "strides", "dilations")
    y = g("Conv", data, weight, bias, group=case["groups"], **{name: case[name] for name in names})
    y = g("Relu", y) if case["relu"] else y
    terms = int(np.prod(shape[1:]))
    return g.model({"x": x}, quantized_to(g, y, terms, case["out_dtype"], case["out_zero"]))


DATA = [("uint16", 0), ("uint16", 32768), ("uint16", 20011), ("int16", 0), ("int16", -32768), ("int16", 777)]
WEIGHTS = [("int8", 0), ("int8", 0), ("int8", 7), ("uint8", 128), ("uint8", 90), ("int4", 0)]
CONVOLUTION = {
    "groups": 1,
    "channels": 16,
    "outputs": 32,
    "size": [9, 11],
    "kernel": [3, 3],
    "pads": [1, 1, 1, 1],
    "strides": [1, 1],
    "dilations": [1, 1],
    "dtype": "uint16",
    "zero_point": 30000,
    "out_dtype": "uint16",
    "out_zero": 31000,
    "weights": ("int8", 0),
    "per_channel": True,
    "bias": "int32",
    "relu": False,
    "seed": 0,
}


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 1, 1, 2, "depthwise"]))
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    channels = (
        draw(st.sampled_from([3, 16, 40])) if groups == "depthwise" else groups * draw(st.integers(1, 24))
    )
    outputs = channels if groups == "depthwise" else groups * draw(st.integers(1, 24))
    dtype, zero_point = draw(st.sampled_from(DATA))
    out_dtype, out_zero = draw(st.sampled_from([("uint16", 31000), ("int16", 500), ("uint8", 128)]))
    return CONVOLUTION | {
        "groups": channels if groups == "depthwise" else groups,
        "channels": channels,
        "outputs": outputs,
        "size": [draw(st.integers(8, 11)) for _ in range(rank)],
        # Windows of 3x3 may be quicker in float.
        "kernel": [draw(st.integers(1, 3)) for _ in range(rank - 1)] + [draw(st.sampled_from([1, 2, 4]))],
        "pads": [draw(st.integers(0, 2)) for _ in range(2 * rank)],
        "strides": [draw(st.integers(1, 2)) for _ in range(rank)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(rank)],
        "dtype": dtype,
        "zero_point": zero_point,
        "out_dtype": out_dtype,
        "out_zero": out_zero,
        "weights": draw(st.sampled_from(WEIGHTS)),
        "per_channel": draw(st.booleans()),
        "bias": draw(st.sampled_from(["int32", "float", None])),
        "relu": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


@SETTINGS
@given(convolutions(), st.sampled_from(SETS))
def test_convolutions_are_integer_and_right(through_tvm, case, name):
    kernels = check(through_tvm, convolution(case), name, variety=2)
    assert {each.kind for each in kernels} == {"integer conv"}


FORMS = {
    "dense": {},
    "strided": {"strides": [2, 1], "pads": [0, 1, 2, 1], "zero_point": 0},
    "grouped": {"groups": 2, "channels": 32, "outputs": 34},
    "depthwise": {"groups": 40, "channels": 40, "outputs": 40},
    "depthwise, wide weights": {"groups": 40, "channels": 40, "outputs": 40, "weights": ("uint8", 90)},
    "depthwise of few": {"groups": 6, "channels": 6, "outputs": 6},
    "depthwise, tall": {"groups": 16, "channels": 16, "outputs": 16, "kernel": [5, 3], "pads": [2, 1, 2, 1]},
    "pointwise": {"kernel": [1, 1], "pads": [0] * 4, "channels": 400, "outputs": 96},
    "line": {"size": [40], "kernel": [5], "pads": [2, 2], "strides": [1], "dilations": [1]},
    "volume": {
        "size": [5, 6, 7],
        "kernel": [3] * 3,
        "pads": [1] * 6,
        "strides": [1] * 3,
        "dilations": [1] * 3,
    },
}
WORDS = {
    "amx": dict.fromkeys(FORMS, "vpdpwssd")
    | dict.fromkeys(("dense", "strided", "pointwise", "volume"), "tdpb")
    | {"depthwise": "vpdpwssd 2 rows"},
    "vnni": dict.fromkeys(FORMS, "vpdpwssd"),
    "avx2": dict.fromkeys(FORMS, "vpmaddwd") | {"dense": "winograd"},
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_convolution(through_tvm, form, name):
    word = WORDS.get(name, {}).get(form, "")
    model = convolution(CONVOLUTION | FORMS[form])
    if word == "winograd":
        _, _, lowered = through_tvm(model, target=instruction_sets()[name])
        (note,) = [each.note for each in lowered.kernels if each.kind == "conv"]
        assert word in note and "in float: minimal filtering" in note
        return
    kernels = check(through_tvm, model, name)
    assert {each.kind for each in kernels} == {"integer conv"}
    assert len(kernels) == (2 if word == "tdpb" else 1) or name == "dotprod"
    assert all(word in each.note for each in kernels), [each.note for each in kernels]


@st.composite
def products(draw):
    dtype, zero_point = draw(st.sampled_from(DATA))
    return {
        "kind": draw(st.sampled_from(["gemm", "gemm_t", "matmul"])),
        "m": draw(st.integers(1, 40)),
        "k": draw(st.integers(1, 300)),
        "n": draw(st.integers(1, 40)),
        "dtype": dtype,
        "zero_point": zero_point,
        "weights": draw(st.sampled_from(WEIGHTS)),
        "per_channel": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


def product(case):
    g = Graph(case["seed"])
    m, k, n = case["m"], case["k"], case["n"]
    x = tensor("x", (2, 2, m, k) if case["kind"] == "matmul" else (m, k))
    left = g.qdq(x, STEP, case["zero_point"], case["dtype"])
    flip = case["kind"] == "gemm_t"
    axis = (0 if flip else 1) if case["per_channel"] else None
    weight, scale = g.weight((n, k) if flip else (k, n), axis, *case["weights"])
    if case["kind"] == "matmul":
        y = g("MatMul", left, weight)
        if case["bias"]:
            y = g("Add", y, g.constant(g.random.standard_normal(n).astype(np.float32)))
    else:
        bias = g.bias(scale * np.float32(STEP), n) if case["bias"] else None
        y = g("Gemm", left, weight, bias, transB=int(flip))
    return g.model({"x": x}, quantized_to(g, y, k, "uint16", 30000))


@SETTINGS
@given(products(), st.sampled_from(SETS))
def test_products_are_integer_and_right(through_tvm, case, name):
    kernels = check(through_tvm, product(case), name, variety=2)
    assert {each.kind for each in kernels} == {"integer matmul"}


@pytest.mark.parametrize("name", SETS)
def test_sums_that_int32_does_not_hold(through_tvm, name):
    """Weights of one sign: bytes apart where they are multiplied four at a time, float elsewhere."""
    g = Graph(5)
    x = tensor("x", (6, 900))
    weight = g.dq(g.constant(g.random.integers(100, 128, (900, 24)).astype(np.int8)), 0.01, 0, "int8")
    model = g.model(
        {"x": x}, quantized_to(g, g("MatMul", g.qdq(x, STEP, 32768, "uint16"), weight), 9000, "int16", 0)
    )
    if name in ("amx", "vnni", "dotprod"):
        kernels = check(through_tvm, model, name)
        assert [each.kind for each in kernels] == ["integer matmul"] * 2
        return
    results, reference, lowered = through_tvm(model, target=instruction_sets()[name])
    (note,) = [each.note for each in lowered.kernels if "matmul" in each.kind]
    assert "in float: int32 may not hold" in note and note.startswith("int8 weights")
    found, expected = (each.astype(np.int64) for each in (*results.values(), *reference.values()))
    assert np.abs(found - expected).max() <= 2


@pytest.mark.parametrize("name", SETS)
def test_a_bias_of_all_32_bits(through_tvm, name):
    g = Graph(6)
    x = tensor("x", (5, 300))
    weight = g.dq(g.constant(g.random.integers(-127, 128, (300, 20)).astype(np.int8)), 1e-4, 0, "int8")
    stored = g.random.integers(-(1 << 31), (1 << 31) - 1, 20, dtype=np.int64).astype(np.int32)
    bias = g("DequantizeLinear", g.constant(stored), g.constant(np.full(20, 1e-4 * STEP, np.float32)), axis=0)
    y = g("Gemm", g.qdq(x, STEP, 20000, "uint16"), weight, bias)
    model = g.model({"x": x}, g.q(y, 1e-3, 0, "int16"))
    # Bytes of the bias go with bytes of activations; what int32 does not hold stays with floats.
    if name in ("amx", "vnni", "dotprod"):
        kernels = check(through_tvm, model, name, variety=80)
        assert [each.kind for each in kernels] == ["integer matmul"] * 2
    else:
        _, _, lowered = through_tvm(model, target=instruction_sets()[name])
        assert any("in float: int32 may not hold" in each.note for each in lowered.kernels)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", ["int16", "uint16"])
@pytest.mark.parametrize("channels", [400, 30])
def test_integers_from_outside_keep_their_type(through_tvm, channels, dtype, name):
    """Nothing can be shifted that others see: bytes and int16 are made of what comes in."""
    g = Graph(9)
    info = np.iinfo(dtype)
    x = tensor("x", (2, channels, 9, 9), ir.DataType[dtype.upper()])
    weight, scale = g.weight((64, channels, 1, 1))
    bias = g.bias(scale * np.float32(STEP), 64)
    y = g("Conv", g.dq(x, STEP, info.min + 30000, dtype), weight, bias)
    model = g.model({"x": x}, quantized_to(g, y, channels, dtype, info.min + 31000))
    data = np.random.default_rng(1).integers(info.min, info.max, (2, channels, 9, 9), dtype, endpoint=True)
    results, _, lowered = through_tvm(model, {"x": data}, target=_target(name))
    steps = np.abs(next(iter(results.values())).astype(np.int64) - in_float64(model, {"x": data}))
    assert steps.max() <= 1 and (steps > 0).sum() <= steps.size // 1000
    assert "integer conv" in {each.kind for each in lowered.kernels}


def test_what_lies_between_products_keeps_16_bits(through_tvm):
    """Pooling, moves, a concatenation and a residual addition; nothing is as wide as floats."""
    g = Graph(8)
    x = tensor("x", (1, 16, 12, 12))
    data = g.qdq(x, STEP, 30000, "uint16")
    weight, scale = g.weight((16, 16, 3, 3))
    first = g("Conv", data, weight, g.bias(scale * np.float32(STEP), 16), pads=[1] * 4)
    wide = 0.9 * 144**0.5 * 4 / (1 << 16)
    first = g.qdq(first, wide, 31000, "uint16")
    total = g.qdq(g("Relu", g("Add", first, data)), wide, 0, "uint16")
    pooled = g.qdq(g("MaxPool", total, kernel_shape=[3, 3], strides=[3, 3]), wide, 0, "uint16")
    mean = g.qdq(g("AveragePool", total, kernel_shape=[3, 3], strides=[3, 3]), wide, 0, "uint16")
    both = g.qdq(g("Concat", pooled, mean, axis=1), wide, 0, "uint16")
    weight, _ = g.weight((24, 32, 1, 1))
    y = g("Conv", both, weight)
    kernels = check(through_tvm, g.model({"x": x}, g.q(y, 8 * wide, 32768, "uint16")), "host", kinds=())
    assert {"integer conv", "maxpool", "integer averagepool"} <= {each.kind for each in kernels}
    pools = [each.note for each in kernels if "pool" in each.kind]
    assert len(pools) == 2 and all(note.startswith("int16 ") for note in pools), pools
    assert not any(each.name.endswith("dequantizelinear") for each in kernels)


@given(
    st.sampled_from(["int16", "uint16"]),
    st.integers(0, 65535),
    st.integers(0, 65535),
    st.sampled_from(["int8", "uint8"]),
)
def test_parts_add_up(dtype, number, zero_point, stored):
    number, zero_point = (each + np.iinfo(dtype).min for each in (number, zero_point))
    source, kind = np.dtype(dtype), np.dtype(stored)

    def distance(part, target):
        one, other = (part_of(each, part, source, target) for each in (number, zero_point))
        assert {one, other} <= set(range(np.iinfo(target).min, np.iinfo(target).max + 1))
        return one - other

    assert 256 * distance(HIGH, kind) + distance(LOW, kind) == number - zero_point
    assert distance(WHOLE, np.dtype("int16")) == number - zero_point
