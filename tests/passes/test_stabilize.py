"""stabilize: what one pass makes possible for an earlier one is done too."""

import onnx_ir as ir
import pytest
from graphwright.ir.errors import PassError
from graphwright.passes.manager import PassManager
from graphwright.passes.optimize import optimize
from graphwright.passes.pipeline import parse_pipeline

TEXT = """<ir_version: 10, opset_import: ["" : 23]>
g (float[2,3,4] x) => (float[2,3,4] y, float[2,3,4] z) <int64[3] s = {4, 3, 2}> {
    a = Transpose<perm = [2, 1, 0]>(x)
    b = Reshape(a, s)
    unused = Neg(b)
    c = Relu(b)
    d = Transpose<perm = [2, 1, 0]>(c)
    y = Neg(d)
    e = Relu(x)
    z = Neg(e)
}"""


def model_of(text=TEXT):
    model = ir.from_onnx_text(text)
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    return model


def ops(model):
    return [node.op_type for node in model.graph]


def test_passes_take_turns_until_nothing_changes():
    once = optimize(
        model_of(), "merge-transposes,merge-reshapes,eliminate-common-subexpressions,eliminate-dead"
    )
    assert len(once.model.graph) > 3
    members = "merge-transposes,eliminate-identity,eliminate-common-subexpressions,eliminate-dead"
    result = optimize(model_of(), f'stabilize{{passes="{members}"}}', check_each=True)
    assert ops(result.model) == ["Relu", "Neg", "Neg"]
    assert not optimize(result.model, "stabilize").report.records[0].changed


def test_simplify_keeps_no_dead_reader_in_the_way():
    result = optimize(model_of(), "simplify", check_each=True)
    assert ops(result.model) == ["Relu", "Neg", "Neg"]


def test_reasons_of_all_members_are_reported_once():
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[2,8] x, float[2,8] z) => (float[2,8] y, float16[2,8] w) <int64[1] ax = {1}, int64[1] s = {4}, int64[1] e = {12}> {
        k = Concat<axis = 1>(x, z)
        y = Slice(k, s, e, ax)
        h = Cast<to = 11>(x)
        i = Cast<to = 6>(h)
        w = Cast<to = 10>(i)
    }"""
    record = optimize(model_of(text), "stabilize").report.records[0]
    reasons = [left.reason for left in record.left_alone]
    assert len(reasons) == len(set(reasons)) == 2
    assert any("spans several operands" in reason for reason in reasons)
    assert any("may lose something" in reason for reason in reasons)


def test_selectors_hold_for_every_member():
    result = optimize(model_of(), 'stabilize{skip="Transpose|Reshape|Neg"}')
    assert "Reshape" in ops(result.model) and ops(result.model).count("Transpose") == 2
    assert "Neg_2" in [node.name for node in result.model.graph]


def test_text_and_defaults():
    assert str(parse_pipeline("stabilize")) == "stabilize"
    text = 'stabilize{passes="merge-casts,merge-slices"}'
    assert str(parse_pipeline(text)) == text


def test_passes_that_may_go_on_for_ever_are_refused():
    for text, message in (
        ('stabilize{passes="prune-channels"}', "not lossless"),
        ('stabilize{passes="merge-cast"}', "did you mean"),
    ):
        with pytest.raises(PassError) as caught:
            PassManager(text).run(model_of())
        assert message in str(caught.value) and "\n" not in str(caught.value)
