"""fuse-normalization, fuse-activation and fuse-gemm: spelled out in, standard operators out, same numbers."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.passes.optimize import optimize


def model_of(text: str) -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]>\n' + text)
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    return model


def run(text: str, pipeline: str):
    inputs = [
        {"x": np.random.default_rng(seed).normal(size=(2, 3, 4)).astype(np.float32)} for seed in range(3)
    ]
    model = model_of(text)
    feeds = inputs if [value.name for value in model.graph.inputs] == ["x"] else None
    if feeds is not None and model.graph.inputs[0].shape.rank() != 3:
        feeds = None
    result = optimize(model, pipeline, check_each=True, check_inputs=feeds)
    return [node.op_type for node in result.model.graph], result.report.records[0], result.model


NORM_CONSTANTS = """<int64[1] last = {-1}, float two = {2.0}, float eps = {0.001},
    float[4] g = {1.0, 2.0, 3.0, 4.0}, float[4] b = {0.5, 0.25, 0.125, 1.0}, float h = {2.0}>"""


def layer_norm(square: str, quotient: str, tail: str) -> str:
    return f"""
    g (float[2,3,4] x) => (float[2,3,4] y) {NORM_CONSTANTS} {{
        m = ReduceMean <keepdims = 1> (x, last)
        d = Sub(x, m)
        s = {square}
        v = ReduceMean <keepdims = 1> (s, last)
        e = Add(v, eps)
        r = Sqrt(e)
        {quotient}
        {tail}
    }}"""


@pytest.mark.parametrize("square", ["Pow(d, two)", "Mul(d, d)"])
@pytest.mark.parametrize(
    "quotient", ["n = Div(d, r)", "q = Reciprocal(r)\n n = Mul(d, q)", "q = Reciprocal(r)\n n = Mul(q, d)"]
)
def test_layer_normalization_in_each_spelling(square, quotient):
    ops, _, model = run(
        layer_norm(square, quotient, "k = Mul(n, g)\n y = Add(b, k)"), "fuse-normalization,eliminate-dead"
    )
    assert ops == ["LayerNormalization"]
    (node,) = model.graph
    assert node.attributes.get_int("axis") == -1
    assert node.attributes.get_float("epsilon") == pytest.approx(0.001)
    assert node.inputs[1].const_value.numpy().tolist() == [1, 2, 3, 4]
    assert node.inputs[2].const_value.numpy().tolist() == [0.5, 0.25, 0.125, 1]
    assert len(model.graph.initializers) == 2


def test_normalization_without_bias_or_scale():
    assert run(layer_norm("Mul(d, d)", "n = Div(d, r)", "y = Mul(h, n)"), "fuse-normalization")[0] == [
        "LayerNormalization"
    ]
    assert run(layer_norm("Mul(d, d)", "n = Div(d, r)", "y = Relu(n)"), "fuse-normalization")[0] == [
        "LayerNormalization",
        "Relu",
    ]


def test_rms_normalization():
    text = f"""
    g (float[2,3,4] x) => (float[2,3,4] y) {NORM_CONSTANTS} {{
        s = Pow(x, two)
        v = ReduceMean <keepdims = 1> (s, last)
        e = Add(eps, v)
        r = Sqrt(e)
        q = Reciprocal(r)
        n = Mul(x, q)
        y = Mul(g, n)
    }}"""
    assert run(text, "fuse-normalization")[0] == ["RMSNormalization"]


def test_what_is_no_normalization_stays():
    text = layer_norm("Mul(d, d)", "n = Div(d, r)", "y = Mul(n, g)")
    # The mean over other axes than the variance: what is normalized is not what was centered.
    ops, _, _ = run(
        text.replace(
            "v = ReduceMean <keepdims = 1> (s, last)", "v = ReduceMean <keepdims = 1> (s, first)"
        ).replace("<int64[1] last", "<int64[1] first = {1}, int64[1] last"),
        "fuse-normalization",
    )
    assert ops == ["ReduceMean", "Sub", "Transpose", "RMSNormalization", "Transpose", "Mul"]
    unknown = text.replace("float[2,3,4] x", "float[2,3,n] x").replace(
        "float[4] g = {1.0, 2.0, 3.0, 4.0}", "float g = {2.0}"
    )
    _, record, _ = run(unknown, "fuse-normalization")
    assert any("the size of the normalized axes is not known" in left.reason for left in record.left_alone)


def test_inner_values_with_other_readers_forbid_the_fusion():
    text = layer_norm("Mul(d, d)", "n = Div(d, r)", "y = Mul(n, r)")
    _, record, _ = run(text, "fuse-normalization")
    assert not record.changed


GELU = """<float root = {1.4142135}, float inv = {0.70710677}, float one = {1.0}, float half = {0.5}, float two = {2.0},
    float three = {3.0}, float k = {0.044715}, float c = {0.7978846}, float zero = {0.0}, float six = {6.0}, float sixth = {0.16666667}>"""


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("a = Div(x, root)\n e = Erf(a)\n p = Add(e, one)\n m = Mul(x, p)\n y = Mul(m, half)", "Gelu"),
        ("a = Mul(x, inv)\n e = Erf(a)\n p = Add(one, e)\n h = Mul(half, x)\n y = Mul(p, h)", "Gelu"),
        ("a = Mul(inv, x)\n e = Erf(a)\n p = Add(one, e)\n h = Mul(half, p)\n y = Mul(x, h)", "Gelu"),
        ("a = Mul(inv, x)\n e = Erf(a)\n p = Add(one, e)\n h = Mul(p, x)\n y = Div(h, two)", "Gelu"),
        (
            "q = Pow(x, three)\n w = Mul(q, k)\n s = Add(x, w)\n a = Mul(s, c)\n t = Tanh(a)\n p = Add(t, one)\n m = Mul(x, p)\n y = Mul(m, half)",
            "Gelu",
        ),
        (
            "q = Mul(x, x)\n r = Mul(q, x)\n w = Mul(k, r)\n s = Add(w, x)\n a = Mul(c, s)\n t = Tanh(a)\n p = Add(one, t)\n m = Mul(x, half)\n y = Mul(m, p)",
            "Gelu",
        ),
        ("a = Add(x, three)\n b = Clip(a, zero, six)\n y = Div(b, six)", "HardSigmoid"),
        ("a = Add(x, three)\n b = Clip(a, zero, six)\n d = Div(b, six)\n y = Mul(x, d)", "HardSwish"),
        ("a = Add(three, x)\n b = Clip(a, zero, six)\n d = Mul(b, x)\n y = Mul(d, sixth)", "HardSwish"),
        ("a = Softplus(x)\n t = Tanh(a)\n y = Mul(t, x)", "Mish"),
    ],
)
def test_activations_in_each_spelling(lines, expected):
    ops, _, model = run(f"g (float[2,3,4] x) => (float[2,3,4] y) {GELU} {{ {lines} }}", "fuse-activation")
    assert ops == [expected]
    if "Tanh" in lines and expected == "Gelu":
        assert model.graph[0].attributes.get_string("approximate") == "tanh"


@pytest.mark.parametrize(
    "lines",
    [
        "a = Div(x, two)\n e = Erf(a)\n p = Add(e, one)\n m = Mul(x, p)\n y = Mul(m, half)",
        "a = Div(x, root)\n e = Erf(a)\n p = Add(e, two)\n m = Mul(x, p)\n y = Mul(m, half)",
        "a = Add(x, three)\n b = Clip(a, one, six)\n y = Div(b, six)",
    ],
)
def test_other_constants_are_other_functions(lines):
    _, record, _ = run(f"g (float[2,3,4] x) => (float[2,3,4] y) {GELU} {{ {lines} }}", "fuse-activation")
    assert not record.changed


def test_a_product_and_its_bias():
    text = "g (float[2,3] x) => (float[2,4] y) <float[3,4] w = {1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.0,1.0,2.0,3.0}, float[4] b = {1.0,2.0,3.0,4.0}> { LINES }"
    assert run(text.replace("LINES", "p = MatMul(x, w)\n y = Add(b, p)"), "fuse-gemm")[0] == ["Gemm"]
    assert run(text.replace("LINES", "p = Gemm <alpha = 2.0> (x, w)\n y = Add(p, b)"), "fuse-gemm")[0] == [
        "Gemm"
    ]
    _, record, _ = run(text.replace("LINES", "p = Gemm(x, w, b)\n y = Add(p, b)"), "fuse-gemm")
    assert [left.reason for left in record.left_alone] == ["the Gemm has a bias already"]


def test_a_bias_that_broadcasts_or_a_batched_product_stays():
    _, record, _ = run(
        "g (float[1,3] x, float[3,4] w, float[2,4] b) => (float[2,4] y) { p = MatMul(x, w)\n y = Add(p, b) }",
        "fuse-gemm",
    )
    assert [left.reason for left in record.left_alone] == ["the bias broadcasts the product"]
    _, record, _ = run(
        "g (float[5,2,3] x, float[3,4] w, float[4] b) => (float[5,2,4] y) { p = MatMul(x, w)\n y = Add(p, b) }",
        "fuse-gemm",
    )
    assert [left.reason for left in record.left_alone] == ["its operands are not both matrices"]


def test_transposes_become_flags():
    ops, _, model = run(
        "g (float[3,2] x, float[4,3] w, float[4] b) => (float[2,4] y) { t = Transpose <perm = [1, 0]> (x)\n u = Transpose(w)\n y = Gemm(t, u, b) }",
        "fuse-gemm",
    )
    assert ops == ["Gemm"]
    assert (model.graph[0].attributes.get_int("transA"), model.graph[0].attributes.get_int("transB")) == (
        1,
        1,
    )
