"""Analyses: cached, mended by what a rewrite touched, and checked where a pass claims to preserve them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.account import account
from graphwright.ir.errors import PassCrash, PassError
from graphwright.passes.analyses import Analyses, Analysis, registered_analyses
from graphwright.passes.analyses_graph import OpIndex, Order, Uses
from graphwright.passes.analyses_values import Constants, Costs, Shapes
from graphwright.passes.base import Pass
from graphwright.passes.manager import PassManager
from graphwright.passes.rules import Rule
from graphwright.passes.watched import WatchedRewriter
from hypothesis import given, settings
from hypothesis import strategies as st

ALL = (OpIndex, Order, Uses, Shapes, Constants, Costs)


def model_of(text: str) -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]>\n' + text)
    for graph in model.graphs():
        for i, node in enumerate(graph):
            node.name = f"{graph.name}/{node.op_type}_{i}"
    return PassManager("").run(model)[0]


NET = """
g (bool c, float[2,3] x) => (float[2,4] y)
<float[3,4] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0}, float[4] b = {1.0, 2.0, 3.0, 4.0}> {
    a = Relu (x)
    m = MatMul (a, w)
    k = Exp (b)
    s = Add (m, k)
    y = If (c) <
        then_branch = then () => (float[2,4] t) { t0 = Neg (s)
          t = Add (t0, m) },
        else_branch = other () => (float[2,4] e) { e = Abs (s) }
    >
}
"""


def by_name(model: ir.Model, name: str) -> ir.Node:
    return next(node for graph in model.graphs() for node in graph if node.name == name)


def test_what_they_say():
    model = model_of(NET)
    analyses = Analyses(model)
    values = {v.name: v for graph in model.graphs() for node in graph for v in node.outputs}
    index = analyses.get(OpIndex)
    assert [n.name for n in index.nodes("Add", "Neg")] == ["g/Add_3", "then/Add_1", "then/Neg_0"]
    assert "MatMul" in index and "Conv" not in index and index.count("Add") == 2

    order, uses = analyses.get(Order), analyses.get(Uses)
    relu, matmul, branch = (by_name(model, n) for n in ("g/Relu_0", "g/MatMul_1", "g/If_4"))
    assert order.before(relu, matmul) and not order.before(matmul, relu)
    neg = by_name(model, "then/Neg_0")
    assert order.visible(values["s"], neg) and order.visible(model.graph.initializers["w"], neg)
    assert not order.visible(values["t0"], matmul) and not order.visible(values["y"], neg)
    assert not order.visible(values["t0"], by_name(model, "other/Abs_0"))

    assert {v.name for v in uses.reads(branch)} == {"c", "s", "m"}
    assert [n.name for n in uses.readers(values["m"])] == ["g/Add_3", "g/If_4"]
    assert {n.name for n in uses.producers(branch)} == {"g/Add_3", "g/MatMul_1"}

    constants, shapes, costs = analyses.get(Constants), analyses.get(Shapes), analyses.get(Costs)
    assert constants.is_constant(values["k"]) and constants.is_constant(model.graph.initializers["b"])
    assert not constants.is_constant(values["s"]) and not constants.is_constant(model.graph.inputs[1])
    assert (shapes.elements(values["m"]), shapes.bytes(values["m"])) == (8, 32)
    assert costs.of(matmul).macs == 2 * 3 * 4
    assert (costs.of(matmul).read, costs.of(matmul).written) == (4 * (6 + 12), 4 * 8)
    assert costs.of(matmul).intensity == pytest.approx(24 / 104)
    assert costs.macs() == account(model).macs == 24


def test_the_same_object_until_something_changes():
    model = model_of(NET)
    analyses = Analyses(model)
    first = analyses.get(Costs)
    assert analyses.get(Costs) is first and analyses.computed["costs"] == 1
    rewriter = WatchedRewriter(model, analyses=analyses)
    analyses.settle(lambda: rewriter.changes)
    relu = by_name(model, "g/Relu_0")
    rewriter.replace(relu, rewriter.insert_before(relu, "Neg", [relu.inputs[0]]))
    rewriter.settle_shapes()
    assert analyses.get(Costs) is first, "mended, not computed anew"
    assert (analyses.computed["costs"], analyses.updated["costs"]) == (1, 1)
    assert relu not in first._by_node


def test_a_change_that_nobody_told_of_makes_it_compute_anew():
    model = model_of(NET)
    analyses = Analyses(model)
    changes = [0]
    analyses.version = lambda: changes[0]
    first = analyses.get(OpIndex)
    changes[0] += 1
    assert analyses.get(OpIndex) is not first


@dataclass(frozen=True)
class Reader(Pass):
    """Reads what the class says."""

    name: ClassVar[str] = "test-reader"

    def apply(self, model, context):
        context.count("adds", context.analysis(OpIndex).count("Add"))


class DeclaredReader(Reader):
    """The same, declared."""

    needs = (OpIndex,)
    preserves = (OpIndex, Shapes)


class AbsToNeg(Rule):
    op_types = ("Abs",)

    def match_and_rewrite(self, node, rewriter):
        rewriter.replace(node, rewriter.insert_before(node, "Neg", [node.inputs[0]]))
        return True


class LyingReader(DeclaredReader):
    """Says that it preserves the index, but replaces nodes."""

    def apply(self, model, context):
        context.analysis(OpIndex)
        context.rewrite(model, AbsToNeg())


class HonestReader(LyingReader):
    """Does the same and says nothing."""

    preserves = ()


def test_what_is_not_declared_cannot_be_had():
    with pytest.raises(PassError, match="'op-index' is used but not declared; write needs = .OpIndex,."):
        PassManager(Reader()).run(model_of(NET))
    _, records = PassManager(DeclaredReader()).run(model_of(NET))
    assert records[0].statistics == {"adds": 2}


def test_a_wrong_promise_is_reported_with_the_pass():
    with pytest.raises(PassCrash, match="'test-reader' says that it preserves analysis 'op-index', but it"):
        PassManager([LyingReader()]).run(model_of(NET))
    PassManager([LyingReader()], verify_each=False).run(model_of(NET))
    _, records = PassManager([HonestReader(), DeclaredReader()]).run(model_of(NET))
    assert records[1].statistics == {"adds": 2}


def test_results_live_on_from_pass_to_pass():
    class Counting(Analysis):
        name = "test-counting"
        times = 0

        @classmethod
        def compute(cls, model, analyses):
            cls.times += 1
            found = cls()
            found.negs = analyses.get(OpIndex).count("Neg")
            return found

    class Asks(Pass):
        name = "test-asks"
        needs = (Counting,)

        def apply(self, model, context):
            context.count("negs", context.analysis(Counting).negs)

    class Asks2(Asks):
        name = "test-asks-2"
        preserves = (Counting,)

        def apply(self, model, context):
            context.rewrite(model, AbsToNeg())
            super().apply(model, context)

    _, records = PassManager([Asks(), Asks(), Asks()]).run(model_of(NET))
    assert Counting.times == 1
    # It has no `update`, so it is computed anew after a rewrite; what the pass reads is right.
    _, records = PassManager([Asks(), HonestReader(), Asks()]).run(model_of(NET))
    assert [record.statistics.get("negs") for record in records] == [1, None, 2]
    assert Counting.times == 3
    assert registered_analyses()["test-counting"] is Counting


def test_names_are_taken_once():
    with pytest.raises(PassError, match="analysis name 'costs' is taken by graphwright.passes"):

        class Mine(Analysis):
            name = "costs"


def test_statistics_come_from_the_analysis():
    result, records = PassManager("fold-constants,eliminate-dead", statistics=True).run(model_of(NET))
    assert records[0].costs["macs"] == account(result).macs
    moved = [record.costs["bytes_moved"] for record in records]
    assert moved[0] == Analyses(result).get(Costs).moved()


UNARY = ["Relu", "Neg", "Abs", "Transpose", "Identity", "Exp"]


@settings(max_examples=60, deadline=None)
@given(
    ops=st.lists(st.tuples(st.sampled_from(UNARY), st.integers(0, 20)), min_size=2, max_size=12),
    steps=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20), st.integers(0, 20)), max_size=8),
)
def test_mended_is_the_same_as_computed_anew(ops, steps):
    model = _random_graph(ops)
    analyses = Analyses(model)
    for cls in ALL:
        analyses.get(cls)
    rewriter = WatchedRewriter(model, analyses=analyses)
    analyses.settle(lambda: rewriter.changes)
    for kind, a, b in steps:
        _mutate(rewriter, model, kind, a, b)
        rewriter.settle_shapes()
        for cls in ALL:
            fresh = cls.compute(model, Analyses(model)).facts()
            assert analyses.get(cls).facts() == fresh, cls.name


def _random_graph(ops) -> ir.Model:
    x = ir.Value(name="x", shape=ir.Shape([2, 3]), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 23}, name="g")
    stored = ir.tensor(np.ones((2, 3), np.float32), name="w")
    weight = ir.Value(name="w", const_value=stored, shape=stored.shape, type=ir.TensorType(stored.dtype))
    graph.register_initializer(weight)
    values = [x, weight]
    for i, (op, source) in enumerate(ops):
        node = ir.node(op, [values[source % len(values)]], {"perm": [1, 0]} if op == "Transpose" else {})
        node.name, node.outputs[0].name = f"n{i}", f"v{i}"
        graph.append(node)
        values.append(node.outputs[0])
    graph.outputs.extend(value for value in values[2:] if not value.uses())
    return PassManager("").run(ir.Model(graph, ir_version=10))[0]


def _mutate(rewriter, model, kind, a, b):
    nodes = list(model.graph)
    node, source = nodes[a % len(nodes)], node_before(nodes, a, b)
    if kind == 0:
        rewriter.replace(node, rewriter.insert_before(node, "Neg", [node.inputs[0]]))
    elif kind == 1:
        made = rewriter.insert_after(node, "Sigmoid", [node.outputs[0]])
        assert made[0].producer() is not None
    elif kind == 2 and source is not None:
        rewriter.set_input(node, 0, source)
    elif kind == 3 and not any(v.uses() or v.is_graph_output() for v in node.outputs):
        rewriter.erase(node)
    elif kind == 4 and node.op_type == "Transpose":
        rewriter.set_attribute(node, "perm", [0, 1])
    elif kind == 5:
        constant = rewriter.initializer("c", np.zeros((2, 3), np.float32))
        rewriter.set_input(node, 0, constant)


def node_before(nodes, a, b):
    """A value made before node `a`."""
    at = a % len(nodes)
    return nodes[b % at].outputs[0] if at else None
