"""merge-projections: products of one input become one and a Split, constants do not grow."""

import numpy as np
import pytest
from graphwright.passes.analyses import Analyses
from graphwright.passes.equivalence import check_equivalent
from graphwright.passes.optimize import optimize

from .test_fuse_attention import model_of, types

RNG = np.random.default_rng(0)
WEIGHTS = {"w1": RNG.normal(size=(8, 4)), "w2": RNG.normal(size=(8, 6)), "w3": RNG.normal(size=(8, 2))}
BIASES = {"b1": RNG.normal(size=4), "b2": RNG.normal(size=6), "b3": RNG.normal(size=2)}
DECLARED = "float[8,4] w1, float[8,6] w2, float[8,2] w3, float[4] b1, float[6] b2, float[2] b3"


def merge(text: str, pipeline: str = "merge-projections", **constants):
    names = {name: array for name, array in {**WEIGHTS, **BIASES, **constants}.items() if f" {name}" in text}
    model = model_of(text, **names)
    result = optimize(model, pipeline)
    found = check_equivalent(model, result.model)
    assert found.passed, found
    before, after = (
        sum(
            value.const_value.nbytes
            for value in each.graph.initializers.values()
            if value.dtype.is_floating_point()
        )
        for each in (model, result.model)
    )
    assert after <= before
    return result.model, [one.reason for record in result.report.records for one in record.left_alone]


def graph(body: str, outputs: str = "float p, float q, float r", x: str = "n,5,8") -> str:
    return f"g (float[{x}] x, {DECLARED}) => ({outputs}) {{ {body} }}"


@pytest.mark.parametrize("x", ["n,5,8", "5,8", "2,3,n,8"])
def test_products_of_one_input(x):
    merged, _ = merge(graph("p = MatMul (x, w1) q = MatMul (x, w2) r = MatMul (x, w3)", x=x))
    assert types(merged) == ["MatMul", "Split"]
    assert [value.name for value in merged.graph.outputs] == ["p", "q", "r"]


def test_biases_behind_them():
    body = "a = MatMul (x, w1) p = Add (a, b1) b = MatMul (x, w2) q = Add (b2, b) c = MatMul (x, w3) r = Add (c, b3)"
    assert types(merge(graph(body))[0]) == ["MatMul", "Add", "Split"]


def test_a_bias_behind_some_of_them_stays_behind_the_split():
    body = "a = MatMul (x, w1) p = Add (a, b1) q = MatMul (x, w2) c = MatMul (x, w3) r = Add (c, b3)"
    merged, _ = merge(graph(body))
    assert types(merged) == ["MatMul", "Split", "Add", "Add"]


def test_a_result_read_by_others_keeps_its_bias_apart():
    body = "p = MatMul (x, w1) s = Add (p, b1) q = MatMul (x, w2) r = Add (s, s)"
    merged, _ = merge(graph(body, "float p, float q, float r"))
    assert types(merged) == ["MatMul", "Split", "Add", "Add"]


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemms_with_equal_attributes(transposed):
    call = f"Gemm <transB = {transposed}, alpha = 0.5, beta = 2.0>"
    text = graph(f"p = {call} (x, w1, b1) q = {call} (x, w2, b2) r = {call} (x, w3, b3)", x="n,8")
    turned = {name: array.T for name, array in WEIGHTS.items()} if transposed else {}
    if transposed:
        text = text.replace("[8,4]", "[4,8]").replace("[8,6]", "[6,8]").replace("[8,2]", "[2,8]")
    assert types(merge(text, **turned)[0]) == ["Gemm", "Split"]


def test_gemms_with_other_attributes_are_left():
    text = graph("p = Gemm (x, w1) q = Gemm <alpha = 2.0> (x, w2) r = Gemm (x, w3, b3)", x="n,8")
    assert types(merge(text)[0]) == ["Gemm"] * 3


def test_weights_in_use_elsewhere_are_left():
    body = "p = MatMul (x, w1) q = MatMul (x, w2) r = Identity (w1)"
    merged, left = merge(graph(body))
    assert types(merged) == ["MatMul", "MatMul", "Identity"]
    assert left == ["its weights 'w1' have other readers"]


def test_other_inputs_are_not_merged():
    body = "y = Neg (x) p = MatMul (x, w1) q = MatMul (y, w2) r = MatMul (p, v)"
    text = graph(body).replace("float[2] b3", "float[2] b3, float[4,3] v")
    assert types(merge(text, v=RNG.normal(size=(4, 3)))[0]) == ["Neg", "MatMul", "MatMul", "MatMul"]


def test_a_product_between_the_others():
    """The merged product must stand in front of what reads the first of them."""
    body = "p = MatMul (x, w1) s = Neg (p) q = MatMul (x, w2) r = Relu (s)"
    assert types(merge(graph(body))[0]) == ["MatMul", "Split", "Neg", "Relu"]


def test_selected_products_only():
    body = "p = MatMul (x, w1) q = MatMul (x, w2) r = MatMul (x, w3)"
    merged, _ = merge(graph(body), "merge-projections{skip=MatMul_1}")
    assert types(merged) == ["MatMul", "Split", "MatMul"]


def test_the_order_of_nodes_is_an_analysis_that_is_mended_and_kept(monkeypatch):
    body = " ".join(
        f"p{i} = MatMul (h{i}, w1) q{i} = MatMul (h{i}, w2) s{i} = ReduceSum <keepdims = 1> (p{i}, last)"
        f" t{i} = ReduceSum <keepdims = 1> (q{i}, last) h{i + 1} = Add (s{i}, t{i})".replace(
            "w1", f"u{i}"
        ).replace("w2", f"v{i}")
        for i in range(4)
    )
    weights = {f"{kind}{i}": RNG.normal(size=(8 if i == 0 else 1, 3)) for i in range(4) for kind in "uv"}
    declared = ", ".join(f"float[{8 if i == 0 else 1},3] {kind}{i}" for i in range(4) for kind in "uv")
    model = model_of(
        f"g (float[2,5,8] h0, {declared}, int64[1] last) => (float h4) {{ {body} }}", last=[-1], **weights
    )
    counted: list[Analyses] = []
    made = Analyses.__init__
    monkeypatch.setattr(
        Analyses, "__init__", lambda self, *given: (counted.append(self), made(self, *given))[0]
    )
    result = optimize(model, "merge-projections,fuse-gemm,merge-projections", check_each=True)
    assert types(result.model).count("Split") == 4
    computed = sum(each.computed.get("order", 0) for each in counted)
    updated = sum(each.updated.get("order", 0) for each in counted)
    assert computed == 1, "the second run finds what the first one left"
    assert updated >= 3, "after every rewrite but the last"
