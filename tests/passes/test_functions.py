"""Known functions: defined in text, called, inlined; every part of the house takes models that have them."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.account import account
from graphwright.ir.clone import clone
from graphwright.ir.errors import PassError
from graphwright.ir.load import load
from graphwright.ir.reference import run_reference
from graphwright.ir.save import save
from graphwright.ir.shapes import infer_shapes
from graphwright.ir.verify import verify
from graphwright.passes.functions import DOMAIN, FUNCTION_KEY, call_function, called, define, inline_calls
from graphwright.passes.optimize import optimize
from graphwright.passes.rewriter import Rewriter
from graphwright.passes.rules import Rule

GATED = define(
    """
    TestGated <alpha: float = 1.5> (x, bias) => (y)
    {
        number = Constant <value_float: float = @alpha> ()
        factor = CastLike (number, x)
        scaled = Mul (x, factor)
        gate = Sigmoid (scaled)
        gated = Mul (x, gate)
        y = Add (gated, bias)
    }
    """,
    "x sigmoid(alpha x) + bias",
)
PRODUCT = define("TestProduct <transB> (x, w) => (y) { y = Gemm <transB: int = @transB> (x, w) }", "x w")


def model_of(text: str, dtype: str = "float") -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 11, opset_import: ["" : 23]>\n' + text.replace("float", dtype))
    for i, node in enumerate(model.graph):
        node.name = f"n{i}"
    infer_shapes(model)
    return model


def gated(dtype: str = "float") -> ir.Model:
    """sigmoid gates of x and of what comes out of the first, by two calls."""
    model = model_of(
        "g (float[2,3] x) => (float[2,3] y) { b = Relu(x)\n p = Identity(x)\n y = Identity(p) }", dtype
    )
    rewriter = Rewriter(model, origin="test")
    relu, first, last = model.graph
    bias = relu.outputs[0]
    rewriter.replace(first, call_function(rewriter, first, GATED, [first.inputs[0], bias], {"alpha": 2.0}))
    rewriter.replace(last, call_function(rewriter, last, GATED, [last.inputs[0], bias]))
    return model


def formula(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    bias = np.maximum(x, 0)
    p = x / (1 + np.exp(-2 * x)) + bias
    return p / (1 + np.exp(-1.5 * p)) + bias


def feed(dtype=np.float32):
    return {"x": np.linspace(-4, 4, 6).reshape(2, 3).astype(dtype)}


@pytest.mark.parametrize(
    ("dtype", "numpy"), [("float", np.float32), ("double", np.float64), ("float16", np.float16)]
)
def test_a_call_computes_its_formula_in_every_type(dtype, numpy):
    model = gated(dtype)
    infer_shapes(model)
    verify(model)
    assert list(model.functions) == [(DOMAIN, "TestGated", "")]
    assert [value.dtype for node in model.graph for value in node.outputs] == [
        model.graph.inputs[0].dtype
    ] * 3
    tolerance = {np.float16: 4e-3, np.float32: 1e-6, np.float64: 1e-12}[numpy]
    got = run_reference(model, feed(numpy))["y"]
    assert got.dtype == numpy
    np.testing.assert_allclose(got, formula(feed(numpy)["x"]), tolerance, tolerance)


def test_calls_survive_cloning_saving_and_loading(tmp_path):
    model = gated()
    infer_shapes(model)
    save(clone(model), tmp_path / "m.onnx")
    back = load(tmp_path / "m.onnx")
    verify(back)
    assert [node.op_type for node in back.graph] == ["Relu", "TestGated", "TestGated"]
    assert next(iter(back.functions.values())).doc_string == "x sigmoid(alpha x) + bias"
    np.testing.assert_array_equal(run_reference(back, feed())["y"], run_reference(model, feed())["y"])


def test_another_call_after_loading_reuses_the_stored_body(tmp_path):
    model = gated()
    save(model, tmp_path / "m.onnx")
    back = load(tmp_path / "m.onnx")
    last = list(back.graph)[-1]
    call_function(Rewriter(back), last, GATED, list(last.inputs))
    assert list(back.functions) == [(DOMAIN, "TestGated", "")]


def test_a_function_of_the_same_name_with_another_body_is_kept_apart():
    model = gated()
    other = define("TestOther (x) => (y) { y = Neg(x) }", "-x").build()
    other.name = "TestProduct"
    model.functions[other.identifier()] = other
    last = list(model.graph)[-1]
    (value,) = call_function(Rewriter(model), last, PRODUCT, list(last.inputs), {"transB": 0})
    assert value.producer().op_type == "TestProduct_1"
    assert model.functions[(DOMAIN, "TestProduct", "")] is other


def test_inlining_gives_the_formula_back_with_its_origin():
    model = gated()
    result = optimize(model, "inline-functions,fold-constants,eliminate-dead", check_each=True).model
    assert not result.functions
    types = [node.op_type for node in result.graph]
    assert types == ["Relu", "Mul", "Sigmoid", "Mul", "Add", "Mul", "Sigmoid", "Mul", "Add"]
    assert {node.metadata_props.get(FUNCTION_KEY) for node in result.graph} == {
        None,
        "graphwright::TestGated",
    }
    np.testing.assert_allclose(run_reference(result, feed())["y"], formula(feed()["x"]), 1e-6, 1e-6)


def test_selectors_choose_what_is_inlined():
    model = gated()
    infer_shapes(model)
    calls = [node.name for node in model.graph if node.domain]
    one = optimize(model, f"inline-functions{{only={calls[0]}$}}", check_each=True).model
    assert [node.op_type for node in one.graph].count("TestGated") == 1 and one.functions
    none = optimize(model, "inline-functions{functions=foreign::}", check_each=True)
    assert not none.report.records[0].changed
    assert optimize(model, "inline-functions{functions=graphwright::TestG}").model.functions == {}


def test_inlining_reaches_bodies_and_other_functions():
    text = """<ir_version: 11, opset_import: ["" : 23, "mine" : 1]>
    g (float[2,3] x, bool c) => (float[2,3] y) {
        y = If (c) <then_branch = t () => (float[2,3] a) { a = mine.outer <k = 3.0> (x) },
                    else_branch = e () => (float[2,3] b) { b = mine.inner (x) }>
    }
    <domain: "mine", opset_import: ["" : 23, "mine" : 1]>
    outer <k: float> (x) => (y) { t = Neg(x)
        y = mine.inner <slope: float = @k> (t) }
    <domain: "mine", opset_import: ["" : 23]>
    inner <slope: float = 0.5> (x) => (y) { y = LeakyRelu <alpha: float = @slope> (x) }"""
    model = ir.from_onnx_text(text)
    next(iter(model.graph)).name = "choice"
    for function in model.functions.values():
        for i, node in enumerate(function):
            node.name = f"{function.name}_{i}"
    for body in next(iter(model.graph)).attributes.values():
        for i, node in enumerate(body.as_graph()):
            node.name = f"{body.name}_{i}"
    infer_shapes(model)
    result = optimize(model, "inline-functions").model
    assert not result.functions
    for flag in (True, False):
        given = {**feed(), "c": np.array(flag)}
        np.testing.assert_array_equal(run_reference(result, given)["y"], run_reference(model, given)["y"])
    outer = [n for n in result.graph.all_nodes() if n.metadata_props.get(FUNCTION_KEY) == "mine::outer"]
    assert [node.op_type for node in outer] == ["Neg", "LeakyRelu"]
    assert outer[1].attributes.get_float("alpha") == 3.0


def test_an_output_that_is_an_input_and_a_left_out_input():
    text = """<ir_version: 11, opset_import: ["" : 23, "mine" : 1]>
    g (float[2,3] x, float h) => (float[2,3] y, float[2,3] z) { y, z = mine.f (x, , h) }
    <domain: "mine", opset_import: ["" : 23]>
    f (x, low, high) => (y, x) { y = Clip(x, low, high) }"""
    model = ir.from_onnx_text(text)
    next(iter(model.graph)).name = "call"
    infer_shapes(model)
    rewriter = Rewriter(model)
    assert inline_calls(rewriter) == {"mine::f": 1}
    infer_shapes(model)
    verify(model)
    got = run_reference(model, {**feed(), "h": np.float32(1)})
    np.testing.assert_array_equal(got["y"], np.minimum(feed()["x"], 1))
    np.testing.assert_array_equal(got["z"], feed()["x"])


def test_macs_count_through_the_body():
    text = "g (float[2,3] x, float[3,4] w) => (float[2,4] y) { y = MatMul(x, w) }"
    model = model_of(text)
    (node,) = model.graph
    rewriter = Rewriter(model)
    rewriter.replace(node, call_function(rewriter, node, PRODUCT, list(node.inputs), {"transB": 0}))
    infer_shapes(model)
    assert account(model).macs == 24


def test_dead_functions_go_and_rules_leave_bodies_alone():
    class Never(Rule):
        op_types = ("Sigmoid",)

        def match_and_rewrite(self, node, rewriter):
            raise AssertionError("a body of our own was handed to a rule")

    class Calls(Rule):
        op_types = ("graphwright::TestGated",)

        def match_and_rewrite(self, node, rewriter):
            rewriter.replace(node, [node.inputs[0]])
            return True

    from graphwright.passes.base import PassContext

    model = gated()
    assert PassContext().rewrite(model, Never(), Calls())
    assert [node.op_type for node in model.graph] == ["Relu", "Identity"]
    infer_shapes(model)
    assert optimize(model, "eliminate-dead").model.functions == {}


def test_bad_definitions_and_calls_say_what_is_wrong():
    model = gated()
    last = list(model.graph)[-1]
    rewriter = Rewriter(model)
    with pytest.raises(PassError, match="ONNX text"):
        define("TestBroken (x) => (y) { y = ", "")
    with pytest.raises(PassError, match="attribute 'alpha' has a type but no default"):
        define("TestTyped <axis, alpha: float> (x) => (y) { y = Elu <alpha: float = @alpha> (x) }", "")
    with pytest.raises(PassError, match="'TestGated' is defined already"):
        define("TestGated (x) => (y) { y = Neg(x) }", "")
    with pytest.raises(PassError, match="lacks transB"):
        call_function(rewriter, last, PRODUCT, list(last.inputs))
    with pytest.raises(PassError, match="has no attribute beta"):
        call_function(rewriter, last, GATED, list(last.inputs), {"beta": 1.0})
    with pytest.raises(PassError, match="takes 2 inputs, not 3"):
        call_function(rewriter, last, GATED, [None] * 3)
    assert called(last.outputs[0], GATED) is last and called(last.outputs[0], PRODUCT) is None


def test_a_function_of_another_opset_is_left_and_reported():
    model = gated()
    infer_shapes(model)
    (function,) = model.functions.values()
    function.opset_imports[""] = 22
    record = optimize(model, "inline-functions", verify_each=False).report.records[0]
    assert not record.changed
    assert {left.reason for left in record.left_alone} == {
        "its function is written in opset 22 of '', the model in 23"
    }


def conv_net() -> ir.Model:
    """Two convolutions with activations, as calls of functions."""
    rng = np.random.default_rng(0)
    text = """g (float[1,3,8,8] x, float w, float v) => (float[1,5,8,8] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w)
        r = Relu(c)
        d = Conv(r, v)
        s = Sigmoid(d)
        y = Mul(s, d)
    }"""
    model = ir.from_onnx_text('<ir_version: 11, opset_import: ["" : 23]>\n' + text)
    for i, node in enumerate(model.graph):
        node.name = f"n{i}"
    for value, shape in zip(list(model.graph.inputs)[1:], [(16, 3, 3, 3), (5, 16, 1, 1)], strict=True):
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(rng.standard_normal(shape).astype(np.float32) / 4, name=value.name)
        value.shape = ir.Shape(shape)
        model.graph.register_initializer(value)
    infer_shapes(model)
    return optimize(model, "fuse-swish,fuse-conv-activation,eliminate-dead").model


@pytest.mark.parametrize("pipeline", ["prune-channels{ratio=0.5}", "insert-qdq{target=generic}"])
def test_passes_that_look_at_standard_operators_inline_first_and_say_so(pipeline):
    model = conv_net()
    assert [node.op_type for node in model.graph] == ["ConvRelu", "ConvSwish"]
    feeds = [
        {"x": np.random.default_rng(seed).standard_normal((1, 3, 8, 8)).astype(np.float32)}
        for seed in range(2)
    ]
    result = optimize(model, pipeline, calibration=feeds)
    types = {node.op_type for node in result.model.graph}
    assert not result.model.functions and types >= {"Conv", "Sigmoid", "Mul"}
    assert "inlined calls of model functions: 1 of graphwright::ConvRelu, 1 of graphwright::ConvSwish" in (
        result.report.records[0].notes
    )
    if "prune" in pipeline:
        assert account(result.model).parameters < account(model).parameters
    else:
        assert "QuantizeLinear" in types
