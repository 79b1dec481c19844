"""quantize-dynamic: the integer form, against numpy and in ONNX Runtime."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.reference import run_reference
from graphwright.ir.save import serialized_size
from graphwright.passes.optimize import optimize

from .quantization_models import model_of, optimized_in_onnx_runtime, samples_for

NET = """g (float[N,8,12,12] x, float[16,8,3,3] w1, float[16] b1, float[16,1,3,3] wd, float[16,64] wm, float[64] bm,
           float[10,64] wg, float[10] bg) => (float[N,10] y) {
    c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, b1)  r = Relu(c)
    d = Conv<group=16, dilations=[2,2]>(r, wd)  p = GlobalAveragePool(d)  f = Flatten(p)
    m = MatMul(f, wm)  a = Add(m, bm)  t = Tanh(a)
    y = Gemm<transB=1, alpha=0.5, beta=2.0>(t, wg, bg)
  }"""


def dynamic(array: np.ndarray) -> np.ndarray:
    """What DynamicQuantizeLinear and back makes of a tensor."""
    low, high = min(array.min(), np.float32(0)), max(array.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255))
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return (np.clip(np.rint(array / scale) + zero, 0, 255) - zero) * scale


@pytest.mark.parametrize("per_channel", ["true", "false"])
def test_a_product_equals_numpy(per_channel):
    model = model_of("g (float[N,40] x, float[40,30] w) => (float[N,30] y) { y = MatMul(x, w) }")
    small = optimize(model, f"quantize-dynamic{{target=generic per_channel={per_channel}}}").model
    feeds = samples_for(model)
    weights = model.graph.initializers["w"].const_value.numpy()
    scale = np.abs(weights).max(axis=0 if per_channel == "true" else None) / 127
    wanted = dynamic(feeds["x"]) @ (np.rint(weights / scale) * scale)
    np.testing.assert_allclose(run_reference(small, feeds)["y"], wanted, rtol=1e-4, atol=1e-5)
    kinds = [node.op_type for node in small.graph]
    assert kinds == ["DynamicQuantizeLinear", "MatMulInteger", "Cast", "Mul", "Mul"]


@pytest.mark.parametrize("target", ["generic", "x86", "arm"])
def test_a_network_stays_close_and_gets_small(target, tmp_path):
    model = model_of(NET)
    result = optimize(model, f"quantize-dynamic{{target={target} min_size=1}}")
    feeds = samples_for(model)
    floats, found = run_reference(model, feeds), run_reference(result.model, feeds)
    assert compare(floats, found).sqnr_db > (30 if target == "x86" else 33)
    assert result.report.records[0].statistics == {
        "quantized Conv": 2, "quantized MatMul": 1, "quantized Gemm": 1
    }  # fmt: skip
    outputs, kernels = optimized_in_onnx_runtime(result.model, feeds, tmp_path)
    assert compare(floats, outputs).sqnr_db > 30
    integer = [kernel for kernel in kernels if "Integer" in kernel or "DynamicQuantizeMatMul" in kernel]
    assert len(integer) == 4 and not {"Conv", "MatMul", "Gemm"} & set(kernels)


def test_bias_and_input_that_are_not_constant():
    text = """g (float[N,48] x, float[12] b, float[48,12] w, float[48,36] v) => (float[N,12] y, float[N,36] z) {
        y = Gemm(x, w, b)  z = MatMul(x, v) }"""
    model = model_of(text, keep="x b")
    small = optimize(model, "quantize-dynamic{min_size=1}").model
    feeds = samples_for(model)
    assert compare(run_reference(model, feeds), run_reference(small, feeds)).sqnr_db > 30
    # One quantization of x serves both.
    assert sum(node.op_type == "DynamicQuantizeLinear" for node in small.graph) == 1


def test_file_size():
    text = "g (float[N,256] x, float[256,512] w, float[512,256] v) => (float[N,256] y) { h = MatMul(x, w)  y = MatMul(h, v) }"
    model = model_of(text)
    assert serialized_size(optimize(model, "quantize-dynamic").model) < 0.27 * serialized_size(model)


@pytest.mark.parametrize(
    ("line", "weights", "reason"),
    [
        ("y = MatMul(x, w)", np.full((40, 40), np.nan), "NaN or infinity in its weights"),
        ("y = MatMul(x, x)", None, "its weights are not constant"),
        ("y = MatMul(w, x)", None, "its first operand is the constant one"),
        ("y = MatMul<only=1>(x, w)", np.ones((40, 3)), "fewer than min_size"),
    ],
)
def test_what_stays_is_reported(line, weights, reason):
    shape = "40,40" if weights is None else ",".join(map(str, weights.shape))
    text = f"g (float[40,40] x, float[{shape}] w) => (float[40,M] y) {{ {line.replace('<only=1>', '')} }}"
    model = model_of(text, **({} if weights is None else {"w": weights}))
    result = optimize(model, "quantize-dynamic")
    assert [node.op_type for node in result.model.graph] == ["MatMul"]
    assert reason in result.report.records[0].left_alone[0].reason


def test_dead_channels_stay_dead():
    weights = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    weights[:, 3] = 0.0
    model = model_of("g (float[N,40] x, float[40,30] w) => (float[N,30] y) { y = MatMul(x, w) }", w=weights)
    small = optimize(model, "quantize-dynamic").model
    assert not run_reference(small, samples_for(model))["y"][:, 3].any()
    scales = small.graph.initializers["w_scale"].const_value.numpy()
    assert np.isfinite(scales).all() and (scales > 0).all()


def test_twice_changes_nothing():
    model = optimize(model_of(NET), "quantize-dynamic{min_size=1}").model
    again = optimize(model, "quantize-dynamic{min_size=1}").model
    assert ir.to_proto(again).graph == ir.to_proto(model).graph
