"""Every node can say where it came from, and why a rule did not fire on it."""

import onnx_ir as ir
import pytest
from graphwright.ir.errors import PassError
from graphwright.passes.explain import explain
from graphwright.passes.optimize import optimize


def model_of(text: str) -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]>\n' + text)
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    return model


TEXT = """
g (float[2,3] x) => (float[3,2] y, float[3,2] z) {
    a = Identity(x)
    b = Softplus(a)
    c = Tanh(b)
    d = Mul(a, c)
    y = Transpose <perm = [1, 0]> (d)
    e = Neg(y)
    z = Identity(e)
}
"""


def story(name: str, pipeline: str = "eliminate-identity,fuse-activation,merge-transposes") -> list[str]:
    before = model_of(TEXT)
    result = optimize(before, pipeline, explain=name)
    return explain(before, result.model, result.report.records, name)


def test_a_new_node_names_pass_rule_and_sources():
    lines = story("Mul_3/Mish")
    assert lines[:2] == ["Mul_3/Mish: Mish", "made by fuse-activation, rule FuseMish, from Mul_3"]


def test_an_old_node_says_what_became_of_it():
    lines = story("Mul_3")
    assert "it was in the model from the start" in lines
    assert "rewritten by fuse-activation, rule FuseMish; it lives on in 'Mul_3/Mish' (Mish)" in lines


def test_a_node_that_stays_lists_the_rules_and_their_reasons():
    lines = story("Neg_5")
    assert any("merge-transposes: SinkThroughElementwise: 'y' has other readers" in line for line in lines)
    lines = story("Mul_3", "fuse-activation{only=Tanh}")
    assert "  no rule of this pipeline is meant for it" in lines
    lines = story("Mul_3", "fuse-activation")
    assert any("GeluExact: " in line for line in lines)


def test_a_name_that_never_was_is_refused():
    with pytest.raises(PassError, match="never a node 'nobody'"):
        story("nobody")
