"""The worklist driver: to a fixpoint, deterministic, and plain about rules that misbehave."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.errors import PassCrash, PassError
from graphwright.ir.verify import verify
from graphwright.passes.base import Pass, PassContext
from graphwright.passes.driver import Fixpoint, _Index, drive
from graphwright.passes.optimize import optimize
from graphwright.passes.rules import Rule
from graphwright.tools.zoo.synthetic import build_synthetic


def model_of(text: str) -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]>\n' + text)
    for graph in model.graphs():
        for i, node in enumerate(graph):
            node.name = f"{graph.name}_{node.op_type}_{i}"
    return model


class NegNeg(Rule):
    """Neg(Neg(x)) = x."""

    op_types = ("Neg",)

    def match_and_rewrite(self, node, rewriter):
        inner = node.inputs[0].producer()
        if inner is None or inner.op_type != "Neg":
            return "its input is not a Neg"
        rewriter.replace(node, [inner.inputs[0]])
        if not inner.outputs[0].uses():
            rewriter.erase(inner)
        return True


NEGS = """
g (float[2] x) => (float[2] y) {
    a = Neg(x)
    b = Neg(a)
    c = Neg(b)
    d = Neg(c)
    e = Neg(d)
    y = Relu(e)
}
"""


def test_rules_run_to_a_fixpoint_and_are_counted():
    model, context = model_of(NEGS), PassContext()
    assert drive(model, [NegNeg()], context)
    assert [node.op_type for node in model.graph] == ["Neg", "Relu"]
    assert context.statistics == {"NegNeg": 2}
    verify(model)


def test_what_did_not_fire_says_why():
    context = PassContext()
    assert not drive(model_of("g (float[2] x) => (float[2] y) { y = Neg(x) }"), [NegNeg()], context)
    assert [(left.node, left.reason) for left in context.left_alone] == [
        ("g_Neg_0", "its input is not a Neg")
    ]


def test_bodies_are_visited():
    model = model_of("""
    g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <
            then_branch = then () => (float[2] t) { p = Neg(x)
              q = Neg(p)
              t = Relu(q) },
            else_branch = other () => (float[2] o) { o = Abs(x) }
        >
    }""")
    assert drive(model, [NegNeg()], PassContext())
    (then,) = [graph for graph in model.graphs() if graph.name == "then"]
    assert [node.op_type for node in then] == ["Relu"]
    verify(model)


def test_selectors_hold_for_every_rule():
    @dataclass(frozen=True)
    class Careful(Pass):
        """Touches what it is told."""

        name: ClassVar[str] = "careful"

    model = model_of(NEGS)
    context = PassContext().for_pass(Careful(skip="g_Neg_[0-9]"))
    assert not drive(model, [NegNeg()], context)
    context = PassContext().for_pass(Careful(only="Neg"))
    assert drive(model, [NegNeg()], context)


def test_a_rule_without_end_is_reported_by_name():
    class Toggle(Rule):
        op_types = ("Relu",)

        def match_and_rewrite(self, node, rewriter):
            rewriter.replace(node, rewriter.insert_before(node, "Relu", [node.inputs[0]]))
            return True

    with pytest.raises(PassError, match=r"rule 'Toggle' keeps firing at node .* no fixpoint"):
        drive(model_of("g (float[2] x) => (float[2] y) { y = Relu(x) }"), [Toggle()], PassContext())


def test_a_rule_that_raises_is_reported_with_its_node():
    class Broken(Rule):
        op_types = ("Relu",)

        def match_and_rewrite(self, node, rewriter):
            raise KeyError("oops")

    with pytest.raises(PassError, match="rule 'Broken' at node 'g_Relu_0' .Relu. raised KeyError"):
        drive(model_of("g (float[2] x) => (float[2] y) { y = Relu(x) }"), [Broken()], PassContext())


def test_higher_benefit_comes_first_then_the_order_given():
    order = []

    def watcher(label, benefit):
        class Watcher(Rule):
            op_types = ("Relu",)

            def match_and_rewrite(self, node, rewriter):
                order.append(label)
                return False

        Watcher.benefit = benefit
        return Watcher()

    model = model_of("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    drive(model, [watcher("a", 1), watcher("b", 5), watcher("c", 1)], PassContext())
    assert order == ["b", "a", "c"]


def test_cost_grows_with_the_graph_not_its_square():
    visits = []

    class Count(NegNeg):
        def match_and_rewrite(self, node, rewriter):
            visits.append(node)
            return super().match_and_rewrite(node, rewriter)

    def visits_for(n):
        visits.clear()
        x = ir.Value(name="x", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.FLOAT))
        value, nodes = x, []
        for i in range(n):
            node = ir.node("Neg", [value], name=f"n{i}")
            node.outputs[0].name = f"v{i}"
            value = node.outputs[0]
            nodes.append(node)
        nodes.append(ir.node("Relu", [value], name="last"))
        nodes[-1].outputs[0].name = "y"
        graph = ir.Graph([x], list(nodes[-1].outputs), nodes=nodes, opset_imports={"": 23}, name="g")
        drive(ir.Model(graph, ir_version=10), [Count()], PassContext())
        return len(visits)

    assert visits_for(400) <= 4.4 * visits_for(100)


def test_runs_are_deterministic():
    texts = set()
    for _ in range(3):
        model = model_of(NEGS)
        drive(model, [NegNeg()], PassContext())
        texts.add(ir.to_onnx_text(model))
    assert len(texts) == 1


def test_numbers_stay():
    from graphwright.ir.reference import run_reference

    model = model_of(NEGS)
    x = np.array([-1.5, 2.5], np.float32)
    before = run_reference(model, {"x": x})["y"]
    drive(model, [NegNeg()], PassContext())
    np.testing.assert_array_equal(run_reference(model, {"x": x})["y"], before)


class ToLog(Rule):
    """Exp  =>  Log, which another rule turns back."""

    op_types = ("Exp",)

    def match_and_rewrite(self, node, rewriter):
        rewriter.replace(node, rewriter.insert_before(node, "Log", [node.inputs[0]]))
        return True


class ToExp(Rule):
    """Log  =>  Exp."""

    op_types = ("Log",)

    def match_and_rewrite(self, node, rewriter):
        rewriter.replace(node, rewriter.insert_before(node, "Exp", [node.inputs[0]]))
        return True


def test_rules_that_take_turns_are_both_named():
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[2] x) => (float[2] y) { y = Exp (x) }'
    )
    with pytest.raises(PassCrash) as caught:
        PassContext().rewrite(model, ToLog(), ToExp())
    line = str(caught.value)
    assert "no fixpoint" in line and "it takes turns with" in line
    assert "'ToLog'" in line and "'ToExp'" in line


class ForeignGelu(Rule):
    """A rule for an operator of another domain."""

    op_types = ("com.microsoft::Gelu",)

    def match_and_rewrite(self, node, rewriter):
        rewriter.replace(node, rewriter.insert_before(node, "Gelu", [node.inputs[0]]))
        return True


def test_rules_for_operators_of_other_domains():
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
        g (float[2] x) => (float[2] y) { a = Gelu (x)
            y = com.microsoft.Gelu (a) }"""
    )
    context = PassContext()
    context.rewrite(model, ForeignGelu())
    assert [(node.domain, node.op_type) for node in model.graph] == [("", "Gelu"), ("", "Gelu")]
    assert len(context.firings) == 1


class NegOfNeg(NegNeg):
    """NegNeg, tried only behind a Neg."""

    reads = ("Neg",)
    tried: ClassVar[list[str]] = []

    def match_and_rewrite(self, node, rewriter):
        self.tried.append(node.name)
        return super().match_and_rewrite(node, rewriter)


def test_a_rule_is_not_tried_where_nothing_in_front_fits():
    text = (
        "g (float[2] x) => (float[2] y, float[2] z) { a = Neg(x) \n y = Neg(a) \n b = Relu(x) \n z = Neg(b) }"
    )
    model, context = model_of(text), PassContext()
    NegOfNeg.tried.clear()
    assert drive(model, [NegOfNeg()], context)
    assert set(NegOfNeg.tried) == {"g_Neg_1"}
    assert not context.left_alone
    watched = PassContext(explain="g_Neg_3")
    drive(model_of(text), [NegOfNeg()], watched)
    assert watched.attempts == [("NegOfNeg", "its input is not a Neg")]


def test_constants_are_named_in_front_whether_stored_or_made():
    class Tried(Rule):
        op_types = ("Add",)
        reads = ("Constant",)
        seen: ClassVar[list[str]] = []

        def match_and_rewrite(self, node, rewriter):
            self.seen.append(node.name)
            return False

    drive(
        model_of(
            "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> {"
            "c = Constant<value = float[2] {3, 4}>() \n a = Add(x, x) \n b = Add(a, w) \n y = Add(b, c) }"
        ),
        [Tried()],
        PassContext(),
    )
    assert Tried.seen == ["g_Add_2", "g_Add_3"]


def test_a_later_drive_starts_around_what_was_touched_and_keeps_the_reasons():
    class Odd(Rule):
        op_types = ("Neg",)
        seen: ClassVar[list[str]] = []

        def match_and_rewrite(self, node, rewriter):
            self.seen.append(node.name)
            return f"{node.name} stays"

    chain = "\n".join(f"v{i + 1} = Neg(v{i})" for i in range(12))
    model = model_of(f"g (float[2] v0) => (float[2] y) {{ {chain} \n y = Relu(v12) }}")
    context, fixpoint = PassContext(), Fixpoint()
    drive(model, [Odd()], context, fixpoint)
    first = [entry.reason for entry in context.left_alone]
    assert len(Odd.seen) == len(first) == 12
    Odd.seen.clear()
    context.left_alone.clear()
    fixpoint.since[model.graph.node("g_Neg_4")] = None
    drive(model, [Odd()], context, fixpoint)
    assert "g_Neg_4" in Odd.seen and len(Odd.seen) < 6
    assert sorted(entry.reason for entry in context.left_alone) == sorted(first)


@pytest.mark.parametrize("build", [lambda: build_synthetic(150), lambda: build_synthetic(150, idle=True)])
def test_what_rules_read_spares_only_calls_in_vain(build, monkeypatch):
    def firings():
        result = optimize(build(), "simplify,fold-batch-norm")
        return [record.firings for record in result.report.records], result

    sparing, result = firings()
    monkeypatch.setattr(_Index, "promising_at", _Index.all_at)
    everything, reference = firings()
    assert sparing == everything
    for one, other in zip(result.report.records, reference.report.records, strict=True):
        assert one.left_alone == other.left_alone
