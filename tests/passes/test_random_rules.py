"""Random rules that come to an end, on random graphs with bodies: a fixpoint, valid, and the same numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.bodies import all_graphs
from graphwright.ir.clone import clone
from graphwright.ir.errors import PassCrash
from graphwright.ir.reference import run_reference
from graphwright.ir.text import to_text
from graphwright.ir.verify import verify
from graphwright.passes.base import Pass
from graphwright.passes.manager import PassManager
from graphwright.passes.optimize import optimize
from graphwright.passes.pattern_rule import PatternRule
from graphwright.passes.patterns import any_of, constant, op, value
from graphwright.passes.rules import Rule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BINARY, UNARY = ("Add", "Sub", "Mul", "Max"), ("Neg", "Abs", "Relu", "Identity", "Sigmoid")


class Graphs:
    """Draws a graph of values of shape [2,3], with Ifs whose branches read what is around them."""

    def __init__(self, draw):
        self.draw = draw
        self.number = 0

    def model(self) -> ir.Model:
        tensor = ir.TensorType(ir.DataType.FLOAT)
        x = ir.Value(name="x", shape=ir.Shape([2, 3]), type=tensor)
        flag = ir.Value(name="flag", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
        graph = ir.Graph([x, flag], [], nodes=[], opset_imports={"": 23}, name="g")
        self.main, self.flag, visible = graph, flag, [x]
        for name, number in (("one", 1.0), ("zero", 0.0), ("k", 0.37)):
            stored = ir.tensor(np.full((1,), number, np.float32), name=name)
            visible.append(ir.Value(name=name, const_value=stored, shape=stored.shape, type=tensor))
            graph.register_initializer(visible[-1])
        made = self.nodes(graph, visible, self.draw(st.integers(3, 14)), depth=0)
        outputs = [v for v in made if not v.uses()] or made[-1:]
        if self.draw(st.booleans()) and made[0] not in outputs:
            outputs.append(made[0])
        for output in outputs:
            node = ir.node("Expand", [output, self.shape(graph)], name=self.name("Expand"))
            node.outputs[0].name = self.name("y")
            graph.append(node)
            graph.outputs.append(node.outputs[0])
        return ir.Model(graph, ir_version=10)

    def shape(self, graph):
        if "shape" not in graph.initializers:
            stored = ir.tensor(np.array([2, 3], np.int64), name="shape")
            graph.register_initializer(ir.Value(name="shape", const_value=stored))
        return graph.initializers["shape"]

    def name(self, hint):
        self.number += 1
        return f"{hint}_{self.number}"

    def nodes(self, graph, visible, count, depth):
        visible, made = list(visible), []
        for _ in range(count):
            kind = self.draw(st.integers(0, 9))
            if kind == 9 and depth < 2:
                node = self.branch(visible, depth)
            elif kind > 4:
                node = ir.node(self.draw(st.sampled_from(BINARY)), [self.pick(visible), self.pick(visible)])
            else:
                node = ir.node(self.draw(st.sampled_from(UNARY)), [self.pick(visible)])
            node.name, node.outputs[0].name = self.name(node.op_type), self.name("v")
            graph.append(node)
            visible.append(node.outputs[0])
            made.append(node.outputs[0])
        return made

    def pick(self, values):
        return values[self.draw(st.integers(0, len(values) - 1))]

    def branch(self, visible, depth):
        bodies = []
        for _ in range(2):
            body = ir.Graph([], [], nodes=[], name=self.name("body"))
            inner = self.nodes(body, visible, self.draw(st.integers(1, 3)), depth + 1)
            node = ir.node("Expand", [inner[-1], self.shape(self.main)], name=self.name("Expand"))
            node.outputs[0].name = self.name("v")
            body.append(node)
            body.outputs.append(node.outputs[0])
            bodies.append(body)
        return ir.node("If", [self.flag], {"then_branch": bodies[0], "else_branch": bodies[1]})


@st.composite
def graphs(draw) -> ir.Model:
    return Graphs(draw).model()


x, y, z = value("x"), value("y"), value("z")


def rule(shape, build, *, label, refuses=None):
    """A rule from a pattern and what stands for its root."""

    class Stated(PatternRule):
        pattern = shape

        def check(self, match):
            return refuses(match) if refuses else None

        def rewrite(self, match, rewriter):
            return build(match, lambda *node: rewriter.insert_before(match.root, *node)[0])

    Stated.label = label
    return Stated()


def _same_shape(match):
    old, new = match.root.outputs[0].shape, match["x"].shape
    return None if old is not None and old == new else "it broadcasts"


def _is_output(match):
    return "it is an output" if match.root.outputs[0].is_graph_output() else None


def _drop(match):
    return _same_shape(match) or _is_output(match)


# Each makes the graph smaller, or turns an operator into one that no rule turns back.
RULES = {
    "NegNeg": lambda: rule(op("Neg", op("Neg", x, escapes=True)), lambda m, new: m["x"], label="NegNeg", refuses=_drop),
    "AbsAbs": lambda: rule(op("Abs", op("Abs", x, name="a", escapes=True)), lambda m, new: m.nodes["a"].outputs[0],
                           label="AbsAbs", refuses=lambda m: _is_output(m)),
    "ReluAbs": lambda: rule(op("Relu", op("Abs", x, name="a", escapes=True)), lambda m, new: m.nodes["a"].outputs[0],
                            label="ReluAbs", refuses=lambda m: _is_output(m)),
    "Identity": lambda: rule(op("Identity", x), lambda m, new: m["x"], label="Identity", refuses=_drop),
    "TimesOne": lambda: rule(op("Mul", x, constant(equals=1.0), commutative=True), lambda m, new: m["x"],
                             label="TimesOne", refuses=_drop),
    "PlusZero": lambda: rule(op("Add", x, constant(equals=0.0), commutative=True), lambda m, new: m["x"],
                             label="PlusZero", refuses=_drop),
    "SubToAddNeg": lambda: rule(op("Sub", x, y), lambda m, new: new("Add", [m["x"], new("Neg", [m["y"]])]),
                                label="SubToAddNeg"),
    "AddNegNeg": lambda: rule(op("Add", op("Neg", x), op("Neg", y)),
                              lambda m, new: new("Neg", [new("Add", [m["x"], m["y"]])]), label="AddNegNeg"),
    "MulNeg": lambda: rule(op("Mul", op("Neg", x, escapes=True), y, commutative=True),
                           lambda m, new: new("Neg", [new("Mul", [m["x"], m["y"]])]), label="MulNeg"),
    "MaxSame": lambda: rule(op("Max", x, x), lambda m, new: m["x"], label="MaxSame", refuses=_is_output),
    "Factor": lambda: rule(op("Add", op("Mul", x, y, commutative=True), op("Mul", x, z, commutative=True)),
                           lambda m, new: new("Mul", [m["x"], new("Add", [m["y"], m["z"]])]), label="Factor"),
    "AbsEven": lambda: rule(op("Abs", any_of(op("Neg", x), op("Relu", op("Abs", x)))),
                            lambda m, new: new("Abs", [m["x"]]), label="AbsEven"),
}  # fmt: skip


def feeds(flag: bool) -> dict[str, np.ndarray]:
    numbers = np.array([[-1.5, 0.0, 2.0], [0.3, -0.7, 1.0]], np.float32)
    return {"x": numbers, "flag": np.array(flag)}


def with_rules(names, *more: Rule) -> Pass:
    class Random(Pass):
        name = "test-random"

        def apply(self, model, context):
            context.rewrite(model, *(RULES[name]() for name in names), *more)

    return Random()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=graphs(), names=st.lists(st.sampled_from(sorted(RULES)), min_size=1, max_size=6, unique=True))
def test_numbers_stay_and_nothing_is_left_to_do(model, names):
    model = PassManager("").run(model)[0]
    text = to_text(model)
    result = optimize(model, with_rules(names), reproducer=None)
    assert to_text(model) == text
    verify(result.model, shapes=True)
    for flag in (True, False):
        before, after = (run_reference(clone(each), feeds(flag)) for each in (model, result.model))
        for name, array in before.items():
            np.testing.assert_allclose(after[name], array, rtol=2e-5, atol=1e-5)
    again = optimize(result.model, with_rules(names), reproducer=None)
    assert not again.report.records[0].changed, "a fixpoint"
    once_more = optimize(model, with_rules(names), reproducer=None)
    assert to_text(once_more.model) == to_text(result.model), "the same every time"


class Slip(Rule):
    """Wrong where it is about the node that it was told: Neg becomes Abs."""

    op_types = ("Neg",)

    def __init__(self, at: str):
        self.at = at

    def match_and_rewrite(self, node, rewriter):
        if node.name != self.at:
            return False
        rewriter.replace(node, rewriter.insert_before(node, "Exp", [node.inputs[0]]))
        return True


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    model=graphs(), which=st.integers(0, 100), names=st.lists(st.sampled_from(["Identity", "SubToAddNeg"]))
)
def test_a_slip_is_caught_and_named_or_changes_nothing(model, which, names):
    model = PassManager("").run(model)[0]
    negs = [node.name for graph in all_graphs(model) for node in graph if node.op_type == "Neg"]
    if not negs:
        return
    slip = Slip(negs[which % len(negs)])
    own = [feeds(True), feeds(False)]
    try:
        result = optimize(
            model, with_rules(dict.fromkeys(names), slip), check_each=True, check_inputs=own, reproducer=None
        )
    except PassCrash as crash:
        assert f"rule 'Slip' at node '{slip.at}' (Neg)" in str(crash)
        return
    for flag in (True, False):
        before, after = (run_reference(clone(each), feeds(flag)) for each in (model, result.model))
        for name, array in before.items():
            np.testing.assert_allclose(after[name], array, rtol=1e-3, atol=1e-3)


def test_two_rules_that_undo_each_other_are_named():
    back = rule(op("Add", x, op("Neg", y)), lambda m, new: new("Sub", [m["x"], m["y"]]), label="AddNegToSub")
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[2,3] x, float[2,3] w) => (float[2,3] y) {'
        " y = Sub (x, w) }"
    )
    model.graph[0].name = "sub"
    with pytest.raises(PassCrash, match="no fixpoint") as caught:
        optimize(model, with_rules(["SubToAddNeg"], back), reproducer=None)
    assert "SubToAddNeg" in str(caught.value) and "AddNegToSub" in str(caught.value)
