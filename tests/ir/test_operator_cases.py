"""Every example that the ONNX standard gives of an operator is sound, and has the shape it says."""

import warnings

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.account import account
from graphwright.ir.diff import diff
from graphwright.ir.shapes import infer_shapes
from graphwright.ir.text import to_text
from graphwright.ir.verify import problems

# Scan of opset 8 had a batch axis of its own; its node takes one input more than its body.
OLD_FORMS = {"test_scan_sum"}

# The standard's own example declares what squeezing has just removed.
WRONGLY_DECLARED = {"test_squeeze_negative_axes"}


def cases() -> list[tuple[str, ir.Model]]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    return [(case.name, ir.from_proto(case.model)) for case in found if case.name not in OLD_FORMS]


@pytest.mark.slow
def test_examples_of_the_standard():
    examples = cases()
    assert len(examples) > 1500
    exact = 0
    for name, model in examples:
        assert problems(model) == [], name
        declared = [value.shape for value in model.graph.outputs]
        for value in model.graph.outputs:
            value.shape = None
        infer_shapes(model)
        for value, shape in zip(model.graph.outputs, declared, strict=True):
            if shape is None or value.shape is None or name in WRONGLY_DECLARED:
                continue
            assert len(value.shape) == len(shape), name
            known = [(a, b) for a, b in zip(value.shape, shape, strict=True) if isinstance(a, int)]
            assert all(a == b for a, b in known if isinstance(b, int)), name
            exact += len(known) == len(shape)
        assert not diff(model, model.clone()).changed, name
        account(model)
        to_text(model, weights=True)
    assert exact > 1800
