"""Every node can say where it came from, and why a rule did not fire on it."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import pytest
from graphwright.ir.errors import PassError
from graphwright.passes.base import Pass
from graphwright.passes.explain import explain
from graphwright.passes.optimize import optimize


@dataclass(frozen=True)
class Swap(Pass):
    """Put an operator in place of another."""

    name: ClassVar[str] = "test-swap"
    lossless: ClassVar[bool] = False
    at: str = "Relu"
    to: str = "Abs"

    def apply(self, model, context):
        rewriter = context.rewriter(model)
        for node in list(model.graph):
            if node.op_type == self.at:
                rewriter.replace(node, rewriter.insert_before(node, self.to, [node.inputs[0]]))


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
    assert lines[-1] == "  fuse-activation: only= or skip= keeps it off"
    lines = story("Mul_3", "eliminate-dead")
    assert lines[-1] == "  no rule of this pipeline is meant for it"
    lines = story("Neg_5", "merge-slices")
    assert lines[-1].startswith("  merge-slices: no rule of it looks at Neg; they start at Concat, ")


def test_what_is_gone_says_what_took_its_place_and_when():
    lines = story("Identity_0", "eliminate-identity")
    assert "replaced by 'x', by eliminate-identity, rule removed" in lines
    lines = story("Tanh_2", "fuse-activation,eliminate-dead")
    assert any(line.startswith("removed by ") and "nothing read it any more" in line for line in lines)


def test_a_node_of_a_node_is_traced_back_to_the_model():
    before = model_of("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    result = optimize(before, [Swap(to="Abs"), Swap(at="Abs", to="Neg")], explain="Relu_0/Abs/Neg")
    (name,) = [node.name for node in result.model.graph]
    lines = explain(before, result.model, result.report.records, name)
    assert lines[1:3] == [
        "made by test-swap from Relu_0",
        "'Relu_0/Abs' was made by test-swap, at Relu_0",
    ]
    lines = explain(before, result.model, result.report.records, "Relu_0")
    assert "rewritten by test-swap; it lives on in 'Relu_0/Abs/Neg' (Neg)" in lines
    lines = explain(before, result.model, result.report.records, "Relu_0/Abs")
    assert lines[:2] == ["Relu_0/Abs: Abs", "made by test-swap, at Relu_0"]


def test_a_name_that_never_was_is_refused():
    with pytest.raises(PassError, match="never a node 'nobody'"):
        story("nobody")
