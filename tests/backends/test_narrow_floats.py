"""bfloat16 and 8-bit floats at run time: rounded as ONNX says, in whatever stands between."""

import graphwright as gw
import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.errors import CompileError
from graphwright.ir.reference import run_reference

from .quantized_models import Graph, tensor

TYPES = {
    "BFLOAT16": ml_dtypes.bfloat16,
    "FLOAT8E4M3FN": ml_dtypes.float8_e4m3fn,
    "FLOAT8E5M2": ml_dtypes.float8_e5m2,
}


def numbers(kind):
    """Every number of a type, what lies half way between neighbours and beside that, and the ends."""
    bits = np.dtype(kind).itemsize * 8
    codes = np.arange(1 << bits, dtype=f"uint{bits}")
    every = codes.view(kind).astype(np.float32)
    every = np.sort(every[np.isfinite(every)])
    every = every[:: max(len(every) // 500, 1)]
    middle = every[1:] / 2 + every[:-1] / 2
    near = [np.nextafter(middle, np.float32(end)) for end in (-np.inf, np.inf)]
    ends = np.float32([0.0, -0.0, np.nan, 1e9, -1e9, 1e-9, -1e-9, 3e38, -3e38])
    return np.concatenate([every, middle, *near, ends]).astype(np.float32)


@pytest.mark.parametrize("name", TYPES)
def test_rounding_is_that_of_the_type(through_tvm, name):
    x = numbers(TYPES[name])
    g = Graph(0)
    value = tensor("x", x.shape)
    y = g("Cast", g("Cast", value, to=int(ir.DataType[name])), to=int(ir.DataType.FLOAT))
    results, expected, _ = through_tvm(g.model({"x": value}, y), {"x": x})
    np.testing.assert_array_equal(*results.values(), *expected.values())


@pytest.mark.parametrize(
    "pipeline",
    [
        "convert-float{to=bfloat16}",
        "insert-qdq{target=generic precision=fp8-e4m3}",
        "insert-qdq{target=cuda precision=fp8-e5m2}",
    ],
)
def test_networks_compute_what_the_reference_does(through_tvm, pipeline):
    g = Graph(0)
    x = tensor("x", (2, 8, 6, 6))

    def weight(*shape):
        return g.constant((g.random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32))

    y = g("Relu", g("Conv", x, weight(8, 8, 3, 3), weight(8), pads=[1, 1, 1, 1]))
    y = g("MaxPool", g("Add", y, x), kernel_shape=[2, 2], strides=[2, 2])
    y = g("Softmax", g("Gemm", g("Flatten", y), weight(72, 12), weight(12)))
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 8, 6, 6)).astype(np.float32)}
    model = gw.optimize(g.model({"x": x}, y), pipeline, calibration=[feeds]).model
    results, expected, _ = through_tvm(model, feeds)
    # Sums in another order may fall on the other side of a tie.
    np.testing.assert_allclose(*results.values(), *expected.values(), rtol=0.05, atol=2e-3)


def test_inputs_of_a_narrow_type_are_refused_in_one_line():
    g = Graph(0)
    x = tensor("x", (4, 64))
    y = g("MatMul", x, g.constant(np.ones((64, 64), np.float32)))
    model = gw.optimize(g.model({"x": x}, y), "convert-float{to=bfloat16 io=converted}").model
    assert run_reference(model, {"x": np.ones((4, 64), ml_dtypes.bfloat16)})
    with pytest.raises(CompileError, match=r"input 'x' is BFLOAT16.*trace module\.float\(\)") as caught:
        gw.compile(model, target="x86", pipeline="")
    assert len(str(caught.value).splitlines()) == 1


def test_a_bfloat16_module_is_told_to_be_float():
    """And what it is told to do works, with weights in 16 bits again where that is asked for."""
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU()).to(torch.bfloat16).eval()
    x = torch.randn(4, 64)
    with pytest.raises(CompileError, match=r"is BFLOAT16.*trace module\.float\(\)"):
        gw.compile(gw.trace(module, (x.to(torch.bfloat16),)))
    model = gw.trace(module.float(), (x,))
    for pipeline in (None, "convert-float{to=bfloat16 io=float32}"):
        found = gw.compile(model, pipeline=pipeline)(x.numpy())
        np.testing.assert_allclose(found, module(x).detach().numpy(), atol=3e-2)
