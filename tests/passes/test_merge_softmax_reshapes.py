"""A softmax on a reshaped tensor moves in front of the reshape only where it sums the same elements."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.reference import run_reference
from graphwright.ir.shapes import infer_shapes
from graphwright.passes.merge_softmax_reshapes import same_axis
from graphwright.passes.optimize import optimize
from hypothesis import given
from hypothesis import strategies as st


def rewritten(body, inputs="float[2, 3, 1, 1] x", output="float[2, 3, 1, 1] y", constants=""):
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        g ({inputs}) => ({output}) <{constants}> {{ {body} }}"""
    )
    infer_shapes(model)
    result = optimize(model, "merge-softmax-reshapes", check_each=True)
    nodes = list(result.model.graph)
    return [node.op_type for node in nodes], nodes, result.report.records[0].left_alone


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax", "Hardmax"])
def test_what_the_upgrade_of_an_old_softmax_leaves(op_type):
    body = f"f = Flatten <axis = 1> (x)\n s = {op_type} (f)\n y = Reshape (s, shape)"
    ops, nodes, _ = rewritten(body, constants="int64[4] shape = {2, 3, 1, 1}")
    assert ops == [op_type]
    assert nodes[0].attributes["axis"].as_int() == 1
    assert nodes[0].outputs[0].name == "y"


def test_one_reshape_stays_where_the_shape_changes():
    body = "f = Reshape (x, flat)\n s = Softmax <axis = 1> (f)\n y = Squeeze (s)"
    ops, nodes, _ = rewritten(body, "float[4, 1, 5] x", "float[4, 5] y", "int64[4] flat = {4, 5, 1, 1}")
    assert ops == ["Softmax", "Reshape"]
    assert nodes[0].attributes["axis"].as_int() == 2


def test_symbolic_sizes():
    body = "f = Unsqueeze (x, one)\n s = Softmax <axis = -1> (f)\n y = Squeeze (s, one)"
    ops, nodes, _ = rewritten(body, "float[N, M] x", "float[N, M] y", "int64[1] one = {1}")
    assert ops == ["Softmax"]
    assert nodes[0].attributes["axis"].as_int() == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        # The sum runs over two axes of x.
        ("f = Flatten <axis = 1> (x)\n s = Softmax (f)\n y = Reshape (s, shape)", "no axis"),
        # Somebody else reads the reshaped tensor, or the softmax.
        (
            "f = Reshape (x, same)\n s = Softmax <axis = 1> (f)\n r = Reshape (s, shape)\n y = Add (r, f)",
            None,
        ),
        (
            "f = Reshape (x, same)\n s = Softmax <axis = 1> (f)\n r = Reshape (s, shape)\n y = Add (r, s)",
            None,
        ),
    ],
)
def test_what_must_stay(body, reason):
    constants = "int64[3] shape = {2, 3, 4}, int64[3] same = {2, 3, 4}"
    ops, _, left = rewritten(body, "float[2, 3, 4] x", "float[2, 3, 4] y", constants)
    assert len(ops) == body.count("=") - body.count("axis =")
    assert [entry.reason for entry in left if reason] == ([] if reason is None else [left[0].reason])
    assert reason is None or reason in left[0].reason


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(0, 3),
    st.permutations([1, 1]),
    st.integers(0, 4),
)
def test_the_axis_found_holds_the_same_elements(dims, axis, ones, place):
    axis %= len(dims)
    view = [*dims[:place], *ones, *dims[place:]]
    data = np.random.default_rng(0).standard_normal(dims)
    found = same_axis(dims, axis, view)
    assert found is not None
    np.testing.assert_array_equal(data.sum(axis).reshape(-1), data.reshape(view).sum(found).reshape(-1))


def test_axes_that_only_look_alike():
    assert same_axis([2, 6], 1, [2, 2, 3]) is None
    assert same_axis([6, 2], 0, [2, 3, 2]) is None
    assert same_axis([2, 6], -1, [2, 1, 6]) == 2
    assert same_axis([ir.SymbolicDim("N"), 4], 1, [ir.SymbolicDim("M"), 4]) is None
    assert same_axis([ir.SymbolicDim(None), 4], 1, [ir.SymbolicDim(None), 4]) is None


def test_a_light_model_is_left_with_no_node_more_than_before(tmp_path):
    from graphwright.ir.inputs import random_inputs
    from graphwright.ir.load import load
    from graphwright.tools.simplifiers.models import build_model

    model = load(build_model("light_squeezenet", tmp_path))
    simplified = optimize(model, "simplify").model
    assert sum(1 for _ in simplified.graph) == 65
    feeds = random_inputs(model, seed=0)
    (expected,), (actual,) = (run_reference(m, feeds).values() for m in (model, simplified))
    np.testing.assert_allclose(actual, expected, atol=1e-6)
