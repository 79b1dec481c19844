"""ONNX Runtime's own quantized operators on TVM, beside ONNX Runtime."""

import numpy as np
import onnx_ir as ir
import pytest

from .quantized_models import Graph, tensor

# Operator, attributes, how many pairs of operands it reads, whether the result is a probability.
CASES = {
    "add": ("QLinearAdd", {}, 2, False),
    "mul": ("QLinearMul", {}, 2, False),
    "concat": ("QLinearConcat", {"axis": 1}, 2, False),
    "sigmoid": ("QLinearSigmoid", {}, 1, True),
    "leaky relu": ("QLinearLeakyRelu", {"alpha": 0.3}, 1, False),
    "softmax": ("QLinearSoftmax", {"axis": 1, "opset": 13}, 1, True),
    "average pool": ("QLinearAveragePool", {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1]}, 1, False),
    "global average pool": ("QLinearGlobalAveragePool", {}, 1, False),
    "gemm": ("QGemm", {"transB": 1, "alpha": 0.5}, 1, False),
    "gemm of floats": ("QGemm", {"transB": 1}, 1, False),
}


@pytest.mark.parametrize("name", CASES)
def test_they_run_and_are_right(through_tvm, name):
    op_type, attributes, operands, is_share = CASES[name]
    g = Graph(3)
    x, z = tensor("x", (2, 3, 5, 6)), tensor("z", (2, 3, 5, 6))
    given = [
        part
        for value, scale, zero in ((x, 0.021, 101), (z, 0.033, 7))[:operands]
        for part in (g.q(value, scale, zero), g.constant(np.float32(scale)), g.constant(np.uint8(zero)))
    ]
    ends = [
        g.constant(np.float32(1 / 256 if is_share else 0.047)),
        g.constant(np.uint8(0 if is_share else 90)),
    ]
    if op_type == "QGemm":
        given[0] = g("Flatten", given[0])
        weights = g.random.integers(-127, 128, (7, 90), np.int8)
        scales = np.linspace(1e-4, 4e-4, 7, dtype=np.float32)
        given += [g.constant(each) for each in (weights, scales, np.zeros(7, np.int8))]
        bias = g.constant(np.arange(-3000, 4000, 1000, dtype=np.int32))
        given += [] if name == "gemm of floats" else [bias, *ends]
    else:
        given = [*ends, *given] if op_type == "QLinearConcat" else [*given, *ends]
    y = g(op_type, *given, **attributes)
    y.producer().domain = "com.microsoft"
    model = g.model({"x": x, "z": z} if operands == 2 else {"x": x}, y)
    model.graph.opset_imports["com.microsoft"] = 1
    results, expected, lowered = through_tvm(model)
    (key,) = results
    assert results[key].dtype == expected[key].dtype and results[key].shape == expected[key].shape
    if name == "gemm of floats":
        np.testing.assert_allclose(results[key], expected[key], rtol=1e-5, atol=1e-6)
    else:
        steps = np.abs(results[key].astype(int) - expected[key].astype(int))
        assert steps.max() <= 1 and (steps > 0).mean() < 0.01
    assert op_type != "QGemm" or any("int8" in kernel.note for kernel in lowered.kernels)
    assert np.unique(results[key]).size > 4


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "NOTSET"])
def test_convolutions_quantized_at_run_time_take_every_kind_of_padding(through_tvm, mode):
    g = Graph(4)
    x = tensor("x", (2, 3, 8, 9))
    quantize = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
    g.nodes.append(quantize)
    stored, scale, zero = quantize.outputs
    for output, each in zip(quantize.outputs, ("stored", "scale", "zero"), strict=True):
        output.name = each
    weights = g.constant(g.random.integers(-127, 128, (8, 3, 4, 3), np.int8))
    padding = {"pads": [1, 0, 2, 1]} if mode == "NOTSET" else {"auto_pad": mode}
    sums = g("ConvInteger", stored, weights, zero, strides=[2, 1], **padding)
    y = g("Mul", g("Cast", sums, to=1), scale)
    results, expected, lowered = through_tvm(g.model({"x": x}, y))
    (key,) = results
    np.testing.assert_allclose(results[key], expected[key], rtol=1e-5, atol=1e-4)
    assert any(kernel.kind == "integer conv" for kernel in lowered.kernels)


@pytest.mark.parametrize("shape", [(1,), (2, 1), (), (2, 7)])
def test_biases_of_products_spread_over_channels_of_different_scales(through_tvm, shape):
    g, x = Graph(5), tensor("x", (2, 9))
    scales = np.linspace(1e-3, 4e-3, 7, dtype=np.float32)
    given = [g.q(x, 0.02, 101), g.constant(np.float32(0.02)), g.constant(np.uint8(101))]
    stored = (
        g.random.integers(-127, 128, (9, 7), np.int8),
        scales,
        np.zeros(7, np.int8),
        np.asarray(g.random.integers(-90000, 90000, shape), np.int32),
    )
    y = g("QGemm", *given, *map(g.constant, stored))
    y.producer().domain = "com.microsoft"
    model = g.model({"x": x}, y)
    model.graph.opset_imports["com.microsoft"] = 1
    results, expected, _ = through_tvm(model)
    np.testing.assert_allclose(*results.values(), *expected.values(), rtol=1e-5, atol=1e-6)
