"""Scopes and borders of graphs: bodies, functions, shared constants, outputs that are something else too."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.bodies import all_graphs
from graphwright.ir.compare import compare
from graphwright.ir.load import load
from graphwright.ir.reference import run_reference
from graphwright.ir.verify import verify
from graphwright.passes.base import PassContext
from graphwright.passes.manager import count_nodes
from graphwright.passes.optimize import optimize
from graphwright.passes.registry import lookup
from graphwright.passes.rules import Rule

X = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}


def model_of(text: str, imports: str = "") -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23{imports}]>\n' + text)


def simplified(model: ir.Model, feeds=X, pipeline: str = "simplify") -> ir.Model:
    result = optimize(model, pipeline)
    verify(result.model)
    before, after = run_reference(model, feeds), run_reference(result.model, feeds)
    assert list(before) == list(after)
    assert compare(before, after).max_rel <= 1e-6
    return result.model


def test_functions_are_folded_and_simplified():
    model = model_of(
        """
        agraph (float[2,3] x) => (float[2,3] y, float[2,3] z) {
            y = local.scale (x)
            z = local.scale (y)
        }
        <domain: "local", opset_import: ["" : 23]>
        scale (a) => (b) {
            two = Constant <value = float {2.0}> ()
            three = Constant <value = float {3.0}> ()
            six = Mul (two, three)
            t = Transpose <perm = [1, 0]> (a)
            u = Transpose <perm = [1, 0]> (t)
            v = Identity (u)
            b = Mul (v, six)
        }""",
        ', "local" : 1',
    )
    result = simplified(model)
    (function,) = result.functions.values()
    assert sorted(node.op_type for node in function) == ["Constant", "Mul"]
    assert count_nodes(result) == 4


def test_attributes_that_only_the_caller_knows_are_not_folded():
    model = model_of(
        """
        agraph (float[2,3] x) => (float[2,3] y) { y = local.add <by = 4.0> (x) }
        <domain: "local", opset_import: ["" : 23]>
        add <by> (a) => (b) {
            c = Constant <value_float : float = @by> ()
            d = Neg (c)
            b = Sub (a, d)
        }""",
        ', "local" : 1',
    )
    result = simplified(model)
    assert run_reference(result, X)["y"][0, 0] == 4


def test_bodies_inside_functions():
    model = model_of(
        """
        agraph (float[2,3] x, bool c) => (float[2,3] y) { y = local.choose (x, c) }
        <domain: "local", opset_import: ["" : 23]>
        choose (a, flag) => (b) {
            b = If (flag) <
                then_branch = yes () => (p) {
                    one = Constant <value = float {1.0}> ()
                    two = Add (one, one)
                    p = Mul (a, two)
                },
                else_branch = no () => (q) { i = Identity (a)
                    q = Neg (i) }
            >
        }""",
        ', "local" : 1',
    )
    for flag in (True, False):
        result = simplified(model, {**X, "c": np.array(flag)})
    operators = {graph.name: [node.op_type for node in graph] for graph in all_graphs(result)}
    assert operators["yes"] == ["Constant", "Mul"]
    assert operators["no"] == ["Neg"]
    assert not any(graph.initializers for graph in all_graphs(result) if graph is not result.graph)


def test_an_output_given_twice_and_an_output_that_is_an_input():
    model = model_of(
        """
        agraph (float[2,3] x) => (float[2,3] a, float[2,3] b, float[2,3] c) {
            t = Transpose <perm = [1, 0]> (x)
            a = Transpose <perm = [1, 0]> (t)
            u = Neg (x)
            b = Identity (u)
            c = Identity (u)
        }"""
    )
    result = simplified(model)
    assert [value.name for value in result.graph.outputs] == ["a", "b", "c"]


def test_an_output_that_is_an_initializer():
    model = model_of(
        "agraph (float[2,3] x) => (float[2,3] y, float[2] w) <float[2] w = {1.0, 2.0}> { y = Neg (x) }"
    )
    result = simplified(model)
    assert [value.name for value in result.graph.outputs] == ["y", "w"]


def test_the_same_names_in_different_bodies():
    """Both branches, and the graph around them, call their values alike."""
    model = model_of(
        """
        agraph (float[2,3] x, bool c) => (float[2,3] y) <float half = {0.5}> {
            chosen = If (c) <
                then_branch = yes () => (float[2,3] r) {
                    k = Mul (half, half)
                    t = Mul (x, k)
                    r = Identity (t) },
                else_branch = no () => (float[2,3] r) {
                    k = Add (half, half)
                    t = Sub (x, k)
                    r = Identity (t) }
            >
            t_after = Neg (chosen)
            y = Identity (t_after)
        }"""
    )
    for flag in (True, False):
        result = simplified(model, {**X, "c": np.array(flag)})
    names = [value.name for graph in all_graphs(result) for node in graph for value in node.outputs]
    assert len(result.graph.initializers) == 2
    assert not set(names) & set(result.graph.initializers)


def test_a_constant_of_the_outer_graph_that_bodies_share_stays_while_one_reads_it():
    model = model_of(
        """
        agraph (float[2,3] x, bool c) => (float[2,3] y) <float[3] w = {1.0, 2.0, 3.0}, float[3] zero = {0.0, 0.0, 0.0}> {
            s = Add (x, zero)
            y = If (c) <
                then_branch = yes () => (float[2,3] p) { p0 = Add (s, zero)
                    p = Mul (p0, w) },
                else_branch = no () => (float[2,3] q) { q = Add (s, w) }
            >
        }"""
    )
    for flag in (True, False):
        result = simplified(model, {**X, "c": np.array(flag)})
    assert list(result.graph.initializers) == ["w"]


class ToStacked(Rule):
    """Neg(x) becomes two nodes, the first of which has a shape of its own."""

    op_types = ("Neg",)

    def match_and_rewrite(self, node, rewriter):
        axes = rewriter.initializer("axes", np.array([0], np.int64))
        (wide,) = rewriter.insert_before(node, "Unsqueeze", [node.inputs[0], axes])
        rewriter.replace(node, rewriter.insert_before(node, "Squeeze", [wide, axes]))
        return True


class SeesShapes(Rule):
    """Looks at the shape of what the other rule made."""

    op_types = ("Squeeze",)

    def __init__(self):
        self.seen: list[str] = []

    def match_and_rewrite(self, node, rewriter):
        self.seen.append(str(node.inputs[0].shape))
        return False


def test_a_rule_sees_the_shapes_of_nodes_that_another_made():
    model = model_of("agraph (float[2,3] x) => (float[2,3] y) { t = Neg (x)\n y = Relu (t) }")
    looker = SeesShapes()
    context = PassContext(active=lookup("eliminate-identity")())
    context.rewrite(model, ToStacked(), looker)
    assert looker.seen and set(looker.seen) == {"[1,2,3]"}


def test_the_model_given_away_can_be_had_again(tmp_path):
    from graphwright.ir.save import save

    path = tmp_path / "m.onnx"
    save(model_of("agraph (float[2,3] x) => (float[2,3] y) { i = Identity (x)\n y = Relu (i) }"), path)
    model = load(path)
    result = optimize(model, "simplify", reload=lambda: load(path))
    assert result.model is model
    assert [node.op_type for node in model.graph] == ["Relu"]
    assert len(load(path).graph) == 2


@pytest.mark.parametrize("again", range(2))
def test_a_second_run_changes_nothing(again):
    model = model_of("agraph (float[2,3] x) => (float[2,3] y) { i = Identity (x)\n y = Relu (i) }")
    first = optimize(model, "simplify")
    second = optimize(first.model, "simplify")
    assert not any(record.changed for record in second.report.records)
