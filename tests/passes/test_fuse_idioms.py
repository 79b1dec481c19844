"""`fuse` finds the attention in each of these, whoever wrote it, and the numbers stay."""

from collections import Counter

import graphwright as gw
import pytest

from .attention_idioms import CASES, Idiom, t5_without_scale

QUICK = (t5_without_scale,)


@pytest.mark.parametrize(
    "function",
    [pytest.param(each, id=each.__name__, marks=() if each in QUICK else pytest.mark.slow) for each in CASES],
)
def test_one_attention_is_left(function):
    model = gw.trace(Idiom(function).eval(), CASES[function])
    result = gw.optimize(model, "simplify,fuse", check_each=True)
    counts = Counter(node.op_type for node in result.model.graph)
    reasons = [one.reason for record in result.report.records for one in record.left_alone]
    assert (counts["Attention"], counts["Softmax"], counts["Einsum"]) == (1, 0, 0), (counts, reasons)
