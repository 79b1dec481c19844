"""Rules that change a graph behind the rewriter's back, and rules that never end: found, told, nothing harmed."""

from dataclasses import dataclass
from typing import Any

import graphwright as gw
import onnx_ir as ir
import pytest
from graphwright.ir.errors import PassCrash

TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[2, 3] x) => (float[2, 3] y) { a = Relu (x) y = Neg (a) }
"""


@dataclass(frozen=True)
class Tamper(gw.Pass):
    """Do something to every Relu without telling."""

    name = "tamper"
    act: Any = None
    says: bool = False

    def apply(self, model: ir.Model, context: gw.PassContext) -> None:
        act, says = self.act, self.says

        class Behind(gw.Rule):
            """Tampers."""

            op_types = ("Relu",)

            def match_and_rewrite(self, node: ir.Node, rewriter: gw.Rewriter) -> bool:
                act(node)
                return says

        context.rewrite(model, Behind())


def become_abs(node: ir.Node) -> None:
    node.op_type = "Abs"


def rename_output(node: ir.Node) -> None:
    node.graph.outputs[0].name = "renamed"


@pytest.mark.parametrize("says", [False, True])
def test_an_operator_changed_in_place_is_checked(says):
    with pytest.raises(PassCrash, match="'tamper' is lossless but changed the outputs"):
        gw.optimize(
            ir.from_onnx_text(TEXT), [Tamper(act=become_abs, says=says)], check_each=True, reproducer=None
        )


@pytest.mark.parametrize("check", [False, True])
def test_inputs_and_outputs_must_stay(check):
    model = ir.from_onnx_text(TEXT)
    with pytest.raises(PassCrash, match=r"no longer has inputs \(x\) and outputs \(y\)"):
        gw.optimize(model, [Tamper(act=rename_output)], check_each=check, reproducer=None)
    assert model.graph.outputs[0].name == "y"


@dataclass(frozen=True)
class ToIntegers(gw.Pass):
    """Leave a graph whose types do not fit."""

    name = "to-integers"

    def apply(self, model: ir.Model, context: gw.PassContext) -> None:
        rewriter = context.rewriter(model)
        for node in model.graph:
            if node.op_type == "Relu":
                rewriter.replace(node, rewriter.insert_before(node, "Cast", node.inputs, {"to": 7}))


def test_types_inferred_after_a_pass_do_not_reach_the_model_given():
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 23]>
        g (float[2, 3] x) => (float[2, 3] y) { a = Relu (x) b = Neg (a) c = Abs (b) y = Add (c, x) }
    """)
    model = gw.optimize(model, "eliminate-dead").model
    before = [value.dtype for node in model.graph for value in node.outputs]
    with pytest.raises(PassCrash) as caught:
        gw.optimize(model, [ToIntegers()], reproducer=None)
    assert [value.dtype for node in model.graph for value in node.outputs] == before
    gw.verify(model)
    gw.verify(caught.value.before)


class Again(gw.Rule):
    """Relu  =>  Relu, for ever."""

    op_types = ("Relu",)

    def match_and_rewrite(self, node: ir.Node, rewriter: gw.Rewriter) -> bool:
        rewriter.replace(node, rewriter.insert_before(node, "Relu", node.inputs))
        return True


def test_an_endless_rule_is_told_by_where_it_began_in_a_short_line():
    model = ir.from_onnx_text(TEXT.replace("a = Relu (x)", "[first] a = Relu (x)"))
    with pytest.raises(PassCrash) as caught:
        gw.PassContext().rewrite(model, Again())
    line = str(caught.value)
    assert "rule 'Again' keeps firing at node 'first' (Relu) and at what came of it: no fixpoint" in line
    assert len(line) < 200
    assert max(len(node.name) for node in model.graph) < 300
