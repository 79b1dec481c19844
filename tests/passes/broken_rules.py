"""Rules that are wrong, each in a way of its own. Every one starts at a Neg called `bad`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from graphwright.passes.base import Pass
from graphwright.passes.registry import register
from graphwright.passes.rules import Rule

MODEL = """
<ir_version: 10, opset_import: ["" : 23]>
net (bool c, float[2,3] x) => (float[3,2] y, float[2,3] z)
<float[2,3] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}> {
    a = Abs (x)
    early = Neg (a)
    m = Mul (early, w)
    bad_out = Neg (m)
    t = Transpose <perm = [1, 0]> (bad_out)
    y = Relu (t)
    chosen = If (c) <
        then_branch = then () => (float[2,3] u) { inner = Exp (bad_out)
          u = Relu (inner) },
        else_branch = other () => (float[2,3] v) { v = Abs (bad_out) }
    >
    z = Sigmoid (chosen)
}
"""


def model() -> ir.Model:
    """A graph with a body, whose fourth node is called `bad`; the other nodes by operator and number."""
    made = ir.from_onnx_text(MODEL)
    for graph in made.graphs():
        for i, node in enumerate(graph):
            node.name = f"{graph.name}/{node.op_type}_{i}"
    made.graph[3].name = "bad"
    return made


class AtNegs(Rule):
    """Replaces the Neg called `bad` in a wrong way, and every other by -1 * x (right)."""

    op_types = ("Neg",)

    def match_and_rewrite(self, node, rewriter):
        if node.name == "bad":
            return self.spoil(node, rewriter)
        minus = rewriter.insert_before(node, "Sub", [node.inputs[0], node.inputs[0]])
        rewriter.replace(node, rewriter.insert_before(node, "Sub", [*minus, node.inputs[0]]))
        return True

    def spoil(self, node, rewriter):
        raise NotImplementedError


def _taken_out(node, rewriter):
    """Reads a value whose maker is in no graph."""
    (value,) = rewriter.insert_before(node, "Abs", [node.inputs[0]])
    rewriter.replace(node, rewriter.insert_before(node, "Relu", [value]))
    value.producer().graph.remove(value.producer())
    return True


def _cycle(node, rewriter):
    (value,) = rewriter.insert_before(node, "Abs", [node.inputs[0]])
    (last,) = rewriter.insert_before(node, "Neg", [value])
    last.producer().name = "still_bad"
    value.producer().replace_input_with(0, last)
    rewriter.replace(node, [last])
    return True


def _same_name(node, rewriter):
    (value,) = rewriter.insert_before(node, "Abs", [node.inputs[0]])
    value.name = "a"
    rewriter.replace(node, [value])
    return True


def _arity(node, rewriter):
    rewriter.replace(node, rewriter.insert_before(node, "Relu", [node.inputs[0], node.inputs[0]]))
    return True


def _foreign_scope(node, rewriter):
    (then,) = [graph for graph in rewriter.model.graphs() if graph.name == "then"]
    rewriter.replace(node, rewriter.insert_before(node, "Relu", [then[0].outputs[0]]))
    return True


def _lost_shape(node, rewriter):
    rewriter.set_attribute(node, "seen", None)
    node.name = "was_bad"
    transposed = next(n for n in node.graph if n.op_type == "Transpose")
    transposed.outputs[0].shape = None
    return True


def _lost_type(node, rewriter):
    rewriter.set_attribute(node, "seen", None)
    node.name = "was_bad"
    transposed = next(n for n in node.graph if n.op_type == "Transpose")
    transposed.outputs[0].type = None
    return True


def _contradiction(node, rewriter):
    rewriter.replace(node, rewriter.insert_before(node, "Transpose", [node.inputs[0]], {"perm": [1, 0]}))
    return True


def _other_numbers(node, rewriter):
    rewriter.replace(node, rewriter.insert_before(node, "Exp", [node.inputs[0]]))
    return True


def _raises(node, rewriter):
    return node.inputs[7].name


def _misuse(node, rewriter):
    rewriter.erase(node)
    return True


class _Loop(Rule):
    op_types = ("Neg",)
    label = "Loop"

    def match_and_rewrite(self, node, rewriter):
        rewriter.replace(node, rewriter.insert_before(node, "Neg", [node.inputs[0]]))
        return True


SPOILERS = {
    "dangling": (_taken_out, "invalid graph"),
    "cycle": (_cycle, "invalid graph"),
    "duplicate-name": (_same_name, "duplicate value name 'a'"),
    "arity": (_arity, "invalid graph"),
    "scope": (_foreign_scope, "out of scope"),
    "lost-shape": (_lost_shape, "has no shape any more"),
    "lost-type": (_lost_type, "has no type any more"),
    "contradiction": (_contradiction, "shape"),
    "raises": (_raises, "raised IndexError"),
    "misuse": (_misuse, "is in use"),
}


def _rule(name: str) -> Rule:
    class Spoiler(AtNegs):
        label = f"Spoil-{name}"

        def spoil(self, node, rewriter):
            return SPOILERS[name][0](node, rewriter)

    return Spoiler()


@register
@dataclass(frozen=True)
class Spoil(Pass):
    """Apply one of the wrong rules."""

    name: ClassVar[str] = "test-spoil"
    how: str = "raises"

    def apply(self, model, context):
        context.rewrite(model, _Loop() if self.how == "loops" else _rule(self.how))


@register
@dataclass(frozen=True)
class Numbers(Pass):
    """Put Exp in place of the Neg called `bad`."""

    name: ClassVar[str] = "test-other-numbers"

    def apply(self, model, context):
        class OtherNumbers(AtNegs):
            def spoil(self, node, rewriter):
                return _other_numbers(node, rewriter)

        context.rewrite(model, OtherNumbers())
