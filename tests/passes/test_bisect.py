"""Bisection names the first bad pass, and in it the first bad rewrite."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.errors import PipelineError
from graphwright.passes.base import Pass
from graphwright.passes.bisect import bisect
from graphwright.passes.bounds import Bound, parse_bound
from graphwright.passes.rules import Rule


def chain(n: int) -> ir.Model:
    lines = "a = Abs(x)\n v0 = Exp(a)\n" + "\n".join(f"v{i + 1} = Abs(v{i})" for i in range(n))
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 23]>\n g (float[4] x) => (float[4] y) {{ {lines}\n y = Identity(v{n}) }}'
    )
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    return model


class DropAbs(Rule):
    """Abs(Abs(x)) = Abs(x), but wrong at the innermost: Abs(x) of a graph input becomes Neg(x)."""

    op_types = ("Abs",)

    def match_and_rewrite(self, node, rewriter):
        producer = node.inputs[0].producer()
        if producer is not None and producer.op_type == "Abs":
            rewriter.replace(node, [node.inputs[0]])
            return True
        if node.inputs[0].is_graph_input():
            rewriter.replace(node, rewriter.insert_before(node, "Neg", [node.inputs[0]]))
            return True
        return False


@dataclass(frozen=True)
class Simplify(Pass):
    """Drops repeated Abs, wrongly."""

    name: ClassVar[str] = "test-drop-abs"

    def apply(self, model, context):
        context.rewrite(model, DropAbs())


@dataclass(frozen=True)
class Bulk(Pass):
    """Changes the graph without rules."""

    name: ClassVar[str] = "test-bulk"

    def apply(self, model, context):
        node = model.graph[0]
        rewriter = context.rewriter(model)
        rewriter.replace(node, rewriter.insert_before(node, "Exp", [node.inputs[0]]))


@dataclass(frozen=True)
class Raises(Pass):
    """Fails."""

    name: ClassVar[str] = "test-raises"

    def apply(self, model, context):
        raise RuntimeError("boom")


GOOD = "eliminate-dead,eliminate-identity"


def passes(*more: Pass) -> list[Pass]:
    from graphwright.passes.pipeline import parse_pipeline

    return [*parse_pipeline(GOOD), *more, *parse_pipeline("eliminate-dead")]


def test_a_good_pipeline_has_no_culprit():
    assert bisect(chain(5), GOOD) is None


def test_the_first_bad_rewrite_is_named():
    culprit = bisect(chain(6), passes(Simplify()))
    assert (culprit.index, culprit.text) == (2, "test-drop-abs")
    assert (culprit.firing.rule, culprit.firing.node) == ("DropAbs", "Abs_0")
    assert culprit.firing.created == ("Abs_0/Neg",)
    assert 1 <= culprit.number <= culprit.of
    assert "rule 'DropAbs' at node 'Abs_0' (Abs), which made Abs_0/Neg" in str(culprit)


def test_a_pass_without_rules_is_named_as_a_whole():
    culprit = bisect(chain(3), passes(Bulk()))
    assert culprit.text == "test-bulk"
    assert culprit.firing is None
    assert "named as a whole" in str(culprit)


def test_a_pass_that_fails_is_the_culprit():
    culprit = bisect(chain(3), passes(Raises()))
    assert culprit.error == "pass 'test-raises' failed: RuntimeError: boom"


def test_bounds_parse_print_and_hold():
    bound = parse_bound("sqnr >= 30 dB")
    assert (bound, str(bound)) == (Bound("sqnr", 30), "sqnr>=30")
    near = compare(np.ones(4), np.full(4, 1.01))
    assert bound.holds(near)
    assert not Bound().holds(near)
    assert not Bound("cosine", 0.9).holds(compare(np.ones(2), np.array([1.0, np.nan])))


@pytest.mark.parametrize("text", ["sqnr", "sqnr<=30", "max_rel>=1", "accuracy>=1", ""])
def test_what_is_no_bound_is_refused(text):
    with pytest.raises(PipelineError, match="write max_rel<=1e-4"):
        parse_bound(text)


def test_a_looser_bound_lets_more_pass():
    feeds = [{"x": np.full(4, 0.5, np.float32)}]
    assert bisect(chain(3), passes(Simplify()), bound=Bound("max_rel", 1.0), inputs=feeds) is None
    assert bisect(chain(3), passes(Simplify()), bound=Bound("max_rel", 0.1), inputs=feeds) is not None
