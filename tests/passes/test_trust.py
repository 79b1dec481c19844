"""A pass that is wrong is caught, with rule, node, a file that shows it again, and the model from before."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir
import pytest
from graphwright.ir.errors import PassCrash
from graphwright.ir.load import load
from graphwright.ir.save import save
from graphwright.ir.verify import verify
from graphwright.passes.base import Pass
from graphwright.passes.equivalence import check_equivalent
from graphwright.passes.manager import PassManager
from graphwright.passes.optimize import optimize
from graphwright.passes.plugins import load_plugin
from graphwright.passes.reproducer import replay

load_plugin(Path(__file__).with_name("broken_rules.py"))
broken = sys.modules["graphwright_plugin_broken_rules"]

BEFORE = "eliminate-identity"


@pytest.mark.parametrize("how", [*broken.SPOILERS, "loops"])
def test_every_way_to_be_wrong_is_reported_with_rule_node_and_reproducer(how, tmp_path):
    model = broken.model()
    text = ir.to_onnx_text(model)
    pipeline = f"{BEFORE},test-spoil{{how={how}}},eliminate-dead"
    with pytest.raises(PassCrash) as caught:
        optimize(model, pipeline, reproducer=tmp_path)
    line = str(caught.value)
    assert "\n" not in line
    rule, node, says = (
        ("Loop", "net/Neg_1", "no fixpoint")
        if how == "loops"
        else (f"Spoil-{how}", "bad", broken.SPOILERS[how][1])
    )
    assert f"rule '{rule}'" in line and says in line, line
    assert how == "loops" or f"'{node}'" in line, line
    assert ir.to_onnx_text(model) == text, "the model that came in stays as it was"

    (file,) = tmp_path.glob("*.onnx")
    assert str(file) in line
    failure = replay(file)
    assert failure is not None and says in failure.message
    verify(caught.value.before)
    save(caught.value.before, tmp_path / "before.onnx")
    assert check_equivalent(model, load(tmp_path / "before.onnx")).passed


def test_other_numbers_are_traced_to_the_rewrite(tmp_path):
    with pytest.raises(PassCrash, match="changed the outputs") as caught:
        optimize(broken.model(), "test-other-numbers", check_each=True, reproducer=tmp_path)
    assert "rule 'OtherNumbers' at node 'bad' (Neg)" in str(caught.value)
    assert caught.value.kind == "numbers"


@pytest.mark.parametrize("how", ["dangling", "raises", "lost-shape", "loops"])
def test_a_run_can_go_on_without_a_pass_that_fails(how):
    model = broken.model()
    result = optimize(
        model, f"test-spoil{{how={how}}},eliminate-identity,eliminate-dead", keep_going=True, check_each=True
    )
    errors = [bool(record.error) for record in result.report.records]
    assert errors == [True, False, False]
    assert check_equivalent(model, result.model).passed
    assert result.report.to_json()["passes"][0]["error"].startswith("pass 'test-spoil'")


def test_two_passes_may_fail(tmp_path):
    pipeline = "test-spoil{how=arity},eliminate-dead,test-spoil{how=cycle}"
    result = optimize(broken.model(), pipeline, keep_going=True)
    assert [bool(record.error) for record in result.report.records] == [True, False, True]
    verify(result.model)


def test_no_file_is_written_where_none_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(PassCrash):
        optimize(broken.model(), "test-spoil", reproducer=None)
    with pytest.raises(PassCrash):
        PassManager("test-spoil").run(broken.model())
    assert not list(tmp_path.iterdir())


@dataclass(frozen=True)
class SpellOut(Pass):
    """Spell out an operator that has no shape rule; SampleOp(x) = x."""

    name: ClassVar[str] = "test-spell-out"

    def apply(self, model, context):
        rewriter = context.rewriter(model)
        for node in list(model.graph):
            if node.op_type == "SampleOp":
                rewriter.replace(node, rewriter.insert_before(node, "Identity", [node.inputs[0]]))


def test_a_wrongly_declared_shape_is_noted_not_held_against_the_pass():
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
        g (float[1,3] x) => (float[N,3] y) <float[2,3] a> {
            a = com.microsoft.SampleOp (x)
            b = Neg (a)
            y = Relu (b)
        }""")
    for node in model.graph:
        node.name = node.op_type
    model.graph[0].outputs[0].shape = ir.Shape([2, 3])
    model.graph[0].outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    result = optimize(model, SpellOut())
    (note,) = result.report.records[0].notes
    assert "[2,3]" in note and "[1,3]" in note and "declared before was wrong" in note


def test_a_shape_that_changes_for_real_is_held_against_the_pass():
    """The same two shapes, but the outputs differ."""
    with pytest.raises(PassCrash, match="shape"):
        optimize(broken.model(), "test-spoil{how=contradiction}", reproducer=None)
