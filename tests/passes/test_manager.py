"""The pass manager: the input model stays intact, broken passes are named, lossless ones are proven."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.errors import PassError, VerifyError
from graphwright.ir.shapes import infer_shapes
from graphwright.passes.base import Pass
from graphwright.passes.equivalence import lossless_bound
from graphwright.passes.manager import Observer, PassManager
from graphwright.passes.optimize import optimize


def model_of(text: str) -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]>\n' + text)
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    return model


MODEL = (
    "g (float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}> { a = Identity(x)\n b = "
    "Mul(a, w)\n y = Neg(b) }"
)


@dataclass(frozen=True)
class Scale(Pass):
    """Multiplies every weight; wrong if it claims to be lossless."""

    name: ClassVar[str] = "test-scale"
    by: float = 1.0

    def apply(self, model, context):
        rewriter = context.rewriter(model)
        for value in list(model.graph.initializers.values()):
            rewriter.set_initializer(value, value.const_value.numpy() * np.float32(self.by))
            context.count("scaled")


@dataclass(frozen=True)
class LossyScale(Scale):
    """The same, honest about it."""

    name: ClassVar[str] = "test-lossy-scale"
    lossless: ClassVar[bool] = False


@dataclass(frozen=True)
class Breaker(Pass):
    """Leaves a dangling value behind."""

    name: ClassVar[str] = "test-breaker"

    def apply(self, model, context):
        (value,) = context.rewriter(model).insert_before(model.graph[0], "Relu", [model.graph.inputs[0]])
        neg = model.graph[-1]
        neg.replace_input_with(0, value)
        model.graph.remove(value.producer())


@dataclass(frozen=True)
class Crasher(Pass):
    """Raises."""

    name: ClassVar[str] = "test-crasher"

    def apply(self, model, context):
        raise RuntimeError("surprise")


def test_the_input_model_is_not_touched():
    model = model_of(MODEL)
    before = ir.to_onnx_text(model)
    result = optimize(model, [LossyScale(by=3.0), *PassManager("simplify").pipeline])
    assert ir.to_onnx_text(model) == before
    assert [node.op_type for node in result.model.graph] == ["Mul", "Neg"]


def test_records_say_what_each_pass_did():
    result = optimize(model_of(MODEL), "eliminate-identity,eliminate-dead")
    first, second = result.report.records
    assert (first.name, first.changed, first.nodes_before, first.nodes_after) == (
        "eliminate-identity",
        True,
        3,
        2,
    )
    assert (second.changed, second.statistics) == (False, {})
    assert first.seconds > 0
    assert result.report.to_json()["pipeline"] == "eliminate-identity,eliminate-dead"


def test_a_lossless_pass_that_changes_numbers_is_caught_and_named():
    with pytest.raises(PassError, match="'test-scale' is lossless but changed the outputs: output 'y'"):
        optimize(model_of(MODEL), Scale(by=1.01), check_each=True)
    optimize(model_of(MODEL), Scale(by=1.0), check_each=True)


def test_a_lossy_pass_is_measured():
    result = optimize(model_of(MODEL), LossyScale(by=1.1), check_each=True)
    check = result.report.records[0].check
    assert check.worst.max_rel == pytest.approx(0.1, rel=1e-3)
    assert check.worst.sqnr_db == pytest.approx(20, abs=0.1)


def test_the_users_own_inputs_are_used():
    feeds = [{"x": np.zeros(2, np.float32)}]
    result = optimize(model_of(MODEL), Scale(by=5.0), check_each=True, check_inputs=feeds)
    assert result.report.records[0].check.tried == 1


def test_a_pass_that_breaks_the_graph_is_named():
    with pytest.raises(PassError, match="pass 'test-breaker' left an invalid graph"):
        optimize(model_of(MODEL), Breaker())


@dataclass(frozen=True)
class Secret(Pass):
    """Changes an attribute behind the rewriter's back."""

    name: ClassVar[str] = "test-secret"
    to: str = "Abs"

    def apply(self, model, context):
        neg = model.graph[-1]
        made = ir.node(self.to, [neg.inputs[0]], name="secret")
        made.outputs[0].name = "s"
        model.graph.insert_before(neg, made)
        neg.replace_input_with(0, made.outputs[0])


def test_what_a_pass_of_others_does_not_tell_is_seen_all_the_same():
    with pytest.raises(PassError, match="'test-secret' is lossless but changed the outputs"):
        optimize(model_of(MODEL), Secret(), check_each=True)
    record = optimize(model_of(MODEL), Secret(to="Identity"), check_each=True).report.records[0]
    assert record.changed and record.nodes_after == record.nodes_before + 1 and record.check.passed
    assert optimize(model_of(MODEL), Secret(skip=".*")).report.records[0].notes


def test_steps_through_a_graph_work_without_its_private_parts(monkeypatch):
    from graphwright.passes import neighbours

    nodes = list((model := model_of(MODEL)).graph)
    expected = [(neighbours.node_before(n), neighbours.node_behind(n)) for n in nodes]
    assert expected == [(None, nodes[1]), (nodes[0], nodes[2]), (nodes[1], None)]
    monkeypatch.setattr(neighbours, "_LIST", "_renamed")
    assert [(neighbours.node_before(n), neighbours.node_behind(n)) for n in model.graph] == expected


def test_a_pass_that_raises_is_named():
    with pytest.raises(PassError, match="pass 'test-crasher' failed: RuntimeError: surprise"):
        optimize(model_of(MODEL), Crasher())


def test_a_broken_model_is_refused_before_any_pass():
    model = model_of(MODEL)
    model.graph[1].outputs[0].name = "a"
    with pytest.raises(VerifyError, match="'a'"):
        optimize(model, "simplify")


def test_observers_see_every_pass():
    seen = []

    class Watch(Observer):
        def before_pass(self, instance, model, index, total):
            seen.append((instance.name, index, total))

        def after_pass(self, instance, model, record):
            seen.append((record.name, record.nodes_after))

    optimize(model_of(MODEL), "eliminate-identity,eliminate-dead", observers=[Watch()])
    assert seen == [
        ("eliminate-identity", 0, 2),
        ("eliminate-identity", 2),
        ("eliminate-dead", 1, 2),
        ("eliminate-dead", 2),
    ]


def test_a_model_in_half_precision_is_held_to_its_own_rounding():
    half = model_of("g (float16[2] x) => (float16[2] y) { y = Neg(x) }")
    wide = model_of(MODEL)
    infer_shapes(half)
    infer_shapes(wide)
    assert lossless_bound(wide).limit == 1e-4
    assert lossless_bound(half).limit == pytest.approx(8 * np.finfo(np.float16).eps)
