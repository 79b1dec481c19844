"""convert-float: types, casts only where types meet, and what must stay in float32."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.errors import PassError
from graphwright.ir.reference import run_reference
from graphwright.ir.save import serialized_size
from graphwright.ir.verify import verify
from graphwright.passes.optimize import optimize
from graphwright.tools.zoo import zoo_model

from .quantization_models import model_of, optimized_in_onnx_runtime, samples_for

NET = """g (float[N,8,8,8] x, float[16,8,3,3] w1, float[16] b1, float[16,16] wm, float[16] s, float[16] t)
  => (float[N,16] y) {
    c = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(c)  p = GlobalAveragePool(r)  f = Flatten(p)
    m = MatMul(f, wm)  n = LayerNormalization(m, s, t)  y = Softmax(n)
  }"""


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def reasons(result) -> dict[str, str]:
    return {entry.node: entry.reason for entry in result.report.records[0].left_alone}


def test_float16_between_two_casts(tmp_path):
    model = model_of(NET)
    small = optimize(model, "convert-float").model
    verify(small)
    middle = ["Conv", "Relu", "GlobalAveragePool", "Flatten", "MatMul", "LayerNormalization", "Softmax"]
    assert ops(small) == ["Cast", *middle, "Cast"]
    assert {v.dtype for v in small.graph.initializers.values()} == {ir.DataType.FLOAT16}
    assert [v.dtype for v in (*small.graph.inputs, *small.graph.outputs)] == [ir.DataType.FLOAT] * 2
    feeds = samples_for(model)
    assert compare(run_reference(model, feeds), run_reference(small, feeds)).sqnr_db > 55
    outputs, _ = optimized_in_onnx_runtime(small, feeds, tmp_path)
    assert compare(run_reference(model, feeds), outputs).sqnr_db > 55


def test_products_in_float16_equal_numpy():
    model = model_of("g (float[N,24] x, float[24,30] w) => (float[N,30] y) { y = MatMul(x, w) }")
    small = optimize(model, "convert-float").model
    feeds = samples_for(model)
    weights = model.graph.initializers["w"].const_value.numpy().astype(np.float16).astype(np.float32)
    exact = feeds["x"].astype(np.float16).astype(np.float32) @ weights
    np.testing.assert_allclose(run_reference(small, feeds)["y"], exact, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("compute", ["auto", "float32"])
def test_bfloat16_runs_through_casts_and_equals_numpy(compute, tmp_path):
    model = model_of("g (float[N,24] x, float[24,30] w) => (float[N,30] y) { m = MatMul(x, w)  y = Relu(m) }")
    small = optimize(model, f"convert-float{{to=bfloat16 compute={compute}}}").model
    verify(small)
    feeds = samples_for(model)

    def b16(array):
        return np.asarray(array).astype(ml_dtypes.bfloat16).astype(np.float32)

    weights = model.graph.initializers["w"].const_value.numpy()
    wanted = np.maximum(b16(b16(feeds["x"]) @ b16(weights)), 0)
    np.testing.assert_allclose(run_reference(small, feeds)["y"], wanted, rtol=1e-2, atol=1e-6)
    assert np.mean(run_reference(small, feeds)["y"] == wanted) > 0.99
    optimized_in_onnx_runtime(small, feeds, tmp_path)


def test_native_bfloat16_is_for_machines_that_have_it():
    model = model_of(NET)
    small = optimize(model, "convert-float{to=bfloat16 compute=native}").model
    verify(small)
    assert ops(small).count("Cast") == 2
    assert {v.dtype for node in list(small.graph)[:-1] for v in node.outputs} == {ir.DataType.BFLOAT16}


@pytest.mark.parametrize("to", ["float16", "bfloat16"])
def test_inputs_and_outputs_take_the_type_on_request(to):
    model = model_of(NET)
    small = optimize(model, f"convert-float{{to={to} io=converted}}").model
    verify(small)
    wanted = ir.DataType.FLOAT16 if to == "float16" else ir.DataType.BFLOAT16
    assert [v.dtype for v in (*small.graph.inputs, *small.graph.outputs)] == [wanted] * 2
    assert [v.name for v in (*small.graph.inputs, *small.graph.outputs)] == ["x", "y"]
    feeds = samples_for(model)
    narrow = {"x": feeds["x"].astype(wanted.numpy())}
    found = {"y": run_reference(small, narrow)["y"].astype(np.float32)}
    assert compare(run_reference(model, feeds), found).sqnr_db > (50 if to == "float16" else 30)
    if to == "float16":
        assert "Cast" not in ops(small)


SLOW = ("mobilenet_v2_small", "vit_s16_small")


@pytest.mark.parametrize(
    "name",
    ["resnet18_small", "bert_base_small", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)],
)
def test_zoo(name):
    from graphwright.ir.inputs import random_inputs

    model = optimize(zoo_model(name), "simplify,fold-batch-norm").model
    feeds = random_inputs(model, seed=1)
    for to in ("float16", "bfloat16"):
        small = optimize(model, f"convert-float{{to={to}}}").model
        verify(small)
        found = compare(run_reference(model, feeds), run_reference(small, feeds))
        assert found.sqnr_db > (50 if to == "float16" else 30), (to, found)
        assert serialized_size(small) < 0.72 * serialized_size(model)


def test_kept_operators_read_and_write_float32():
    text = "g (float[N,8] x, float[8,8] w) => (float[N,8] y) { a = MatMul(x, w)  b = Exp(a)  y = Relu(b) }"
    result = optimize(model_of(text), "convert-float")
    assert reasons(result) == {"Exp_1": "it is kept in float32 for precision"}
    exp = next(node for node in result.model.graph if node.op_type == "Exp")
    assert exp.inputs[0].dtype == exp.outputs[0].dtype == ir.DataType.FLOAT
    assert ops(optimize(model_of(text), "convert-float{keep=none_of_them}").model).count("Cast") == 2


@pytest.mark.parametrize(
    ("constant", "stays"),
    [
        (1e-12, "its constant 'c' of magnitude 1e-12 gets lost below float16"),
        (1e5, "its constant 'c' reaches 1e+05, beyond float16"),
        (1e-3, None),
        (-3.4e38, None),
        (-np.inf, None),
    ],
)
def test_constants_that_float16_cannot_hold(constant, stays):
    text = "g (float[N,8] x, float[8,8] w, float c) => (float[N,8] y) { a = MatMul(x, w)  y = Add(a, c) }"
    result = optimize(model_of(text, c=constant), "convert-float")
    assert reasons(result).get("Add_1") == stays
    if constant == -3.4e38:
        assert result.model.graph.initializers["c_float16"].const_value.numpy() == np.float16(-65504)
    # All of these fit bfloat16.
    assert not reasons(optimize(model_of(text, c=constant), "convert-float{to=bfloat16}"))


def test_measured_ranges_keep_what_would_overflow():
    text = "g (float[N,8] x, float[8,8] w) => (float[N,8] y) { a = Mul(x, x)  b = MatMul(a, w)  y = Relu(b) }"
    model = model_of(text)
    feeds = {"x": 300 * samples_for(model)["x"]}
    blind = optimize(model, "convert-float")
    assert not reasons(blind) and "no calibration data" in blind.report.records[0].notes[0]
    result = optimize(model, "convert-float", calibration=[feeds])
    assert "reaches" in reasons(result)["Mul_0"] and "reaches" in reasons(result)["MatMul_1"]
    assert compare(run_reference(model, feeds), run_reference(result.model, feeds)).sqnr_db > 55


def test_numbers_made_of_integers_stay_exact():
    text = """g (float[N,8] x, int64[N,1] i, float[8] f) => (float[N,8] y) {
        p = Cast<to=1>(i)  a = Mul(p, f)  s = Sin(a)  y = Mul(x, s) }"""
    model = model_of(text, keep="x i", f=np.arange(1, 9))
    small = optimize(model, "convert-float").model
    feeds = {"x": np.ones((4, 8), np.float32), "i": np.array([[1], [2049], [4097], [9001]])}
    found = compare(run_reference(model, feeds), run_reference(small, feeds))
    assert found.sqnr_db > 55


def test_masks_stay_finite():
    text = """g (float[2,8] x, int64[2,8] i, float one, float low, float[8,8] w) => (float[2,8] y) {
        p = Cast<to=1>(i)  n = Sub(one, p)  m = Mul(n, low)  h = MatMul(x, w)  a = Add(h, m)  y = Softmax(a) }"""
    model = model_of(text, keep="x i", one=1.0, low=np.finfo(np.float32).min)
    small = optimize(model, "convert-float").model
    feeds = {"x": np.ones((2, 8), np.float32), "i": np.array([[1, 1, 0, 0, 0, 0, 0, 0], [0] * 8])}
    found = run_reference(small, feeds)["y"]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[0], run_reference(model, feeds)["y"][0], atol=2e-3)


def test_bodies_stay_in_float32_and_read_what_they_did():
    text = """g (float[N,8] x, bool c, float[8,8] w) => (float[N,8] y) {
        h = MatMul(x, w)
        y = If(c)<then_branch = t () => (float[N,8] a) { a = Relu(h) },
                  else_branch = e () => (float[N,8] b) { b = MatMul(h, w) }> }"""
    model = model_of(text, keep="x c")
    result = optimize(model, "convert-float")
    verify(result.model)
    assert reasons(result) == {"If_1": "its subgraphs stay in float32"}
    for c in (True, False):
        feeds = {"x": np.ones((2, 8), np.float32), "c": np.asarray(c)}
        assert compare(run_reference(model, feeds), run_reference(result.model, feeds)).sqnr_db > 55


def test_outputs_that_others_read():
    text = """g (float[N,8] x, float[8,8] w) => (float[N,8] h, float[N,8] y, int64[2] s) {
        h = MatMul(x, w)  y = Relu(h)  s = Shape(h) }"""
    for to in ("float16", "bfloat16"):
        model = model_of(text)
        small = optimize(model, f"convert-float{{to={to}}}").model
        verify(small)
        assert [(v.name, v.dtype) for v in small.graph.outputs][:2] == [
            ("h", ir.DataType.FLOAT), ("y", ir.DataType.FLOAT)
        ]  # fmt: skip
        feeds = samples_for(model)
        assert compare(run_reference(model, feeds), run_reference(small, feeds)).sqnr_db > 40


def test_selectors_and_twice():
    model = model_of(NET)
    half = optimize(model, "convert-float{skip=Conv}").model
    conv = next(node for node in half.graph if node.op_type == "Conv")
    assert conv.inputs[1].dtype == ir.DataType.FLOAT
    once = optimize(model, "convert-float").model
    assert ir.to_proto(optimize(once, "convert-float").model).graph == ir.to_proto(once).graph


def test_mistakes_are_one_line():
    with pytest.raises(PassError, match="option 'keep' is not a regular expression"):
        optimize(model_of(NET), "convert-float{keep=(}")


def test_what_runs_on_integers_keeps_doing_so(tmp_path):
    text = """g (float[2,8,8,8] x, float[16,8,3,3] w1, float[16] b1, float[16,16,1,1] w2, int64[1] axes, float[16,12] wm,
      float[12] bm, float[12,4] wo) => (float[A,B,C] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(a)  c = Conv(r, w2)  d = Add(c, r)  e = Relu(d)
        t = Transpose<perm=[0,2,3,1]>(e)  f = Flatten<axis=3>(t)  m = MatMul(f, wm)  n = Add(m, bm)  g = Gelu(n)
        o = MatMul(g, wo)  u = Unsqueeze(o, axes)  y = Sigmoid(u) }"""
    model = model_of(text, axes=np.array([0]))
    feeds = samples_for(model)
    quantized = optimize(model, "insert-qdq{target=x86-vnni}", calibration=[feeds]).model
    result = optimize(quantized, "convert-float")
    _, before = optimized_in_onnx_runtime(quantized, feeds, tmp_path)
    outputs, after = optimized_in_onnx_runtime(result.model, feeds, tmp_path)
    integer = ["QLinearConv", "QLinearConv", "QLinearAdd", "QGemm", "MatMulIntegerToFloat"]
    for kernels in (before, after):
        assert [kernel for kernel in kernels if kernel.startswith(("QL", "QG", "MatMulI"))] == integer
    assert compare(run_reference(quantized, feeds), outputs).sqnr_db > 40
    types = {node.op_type: node.inputs[0].dtype for node in result.model.graph}
    assert types["Gelu"] == types["Sigmoid"] == ir.DataType.FLOAT16
    assert types["Conv"] == types["Relu"] == ir.DataType.FLOAT
    said = {entry.op_type for entry in result.report.records[0].left_alone if "integers" in entry.reason}
    assert said == {"Conv", "Relu", "Add", "MatMul", "Transpose", "Flatten"}
