"""Which operators share a kernel, told by the operators of each group in the order in which groups run."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.backends.tvm.groups import form_groups
from graphwright.backends.tvm.prepare import prepare
from graphwright.ir.shapes import infer_shapes


def groups_of(text: str, **shapes: tuple[int, ...]) -> list[str]:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23]>\n{text}')
    for name, shape in shapes.items():
        value = next(value for value in model.graph.inputs if value.name == name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(np.ones(shape, np.float32), name=name)
        model.graph.register_initializer(value)
    infer_shapes(model)
    prepared = prepare(model)
    return [
        " ".join(node.op_type for node in group.nodes) for group in form_groups(prepared.graph, prepared.ops)
    ]


def test_an_anchor_takes_the_element_wise_operators_behind_it():
    assert groups_of(
        """g (float[1,4,8,8] x, float[1,4,8,8] r, float[4,4,1,1] w, float[4,1,1] s) => (float[1,4,8,8] y) {
          c = Conv(x, w) m = Mul(c, s) a = Add(m, r) y = Relu(a) }""",
        w=(4, 4, 1, 1),
        s=(4, 1, 1),
    ) == ["Conv Mul Add Relu"]


def test_a_value_that_others_read_ends_the_epilogue():
    assert groups_of(
        """g (float[1,4,8,8] x, float[4,4,1,1] w, float[4,4,1,1] v) => (float[1,4,8,8] y, float[1,4,8,8] z) {
          c = Conv(x, w) a = Relu(c) d = Conv(a, v) y = Add(d, a) z = Sigmoid(a) }""",
        w=(4, 4, 1, 1),
        v=(4, 4, 1, 1),
    ) == ["Conv Relu", "Conv Add", "Sigmoid"]


def test_branches_that_meet_again_stay_together():
    assert groups_of(
        """g (float[2,6] x, float[6,6] w) => (float[2,6] y) {
          m = MatMul(x, w) s = Sigmoid(m) y = Mul(m, s) }""",
        w=(6, 6),
    ) == ["MatMul Sigmoid Mul"]


def test_an_operand_that_depends_on_the_anchor_is_not_taken_too_early():
    """The gate of a squeeze-and-excite block is computed from the value that it scales."""
    assert groups_of(
        """g (float[1,4,8,8] x, float[4,4,1,1] w, float[4,4,1,1] v) => (float[1,4,8,8] y) {
          c = Conv(x, w) a = Relu(c) p = GlobalAveragePool(a) d = Conv(p, v) e = Sigmoid(d) y = Mul(a, e) }""",
        w=(4, 4, 1, 1),
        v=(4, 4, 1, 1),
    ) == ["Conv Relu", "GlobalAveragePool", "Conv Sigmoid", "Mul"]


def test_of_two_convolutions_that_are_added_one_takes_the_addition():
    assert groups_of(
        """g (float[1,4,8,8] x, float[4,4,1,1] w, float[4,4,1,1] v) => (float[1,4,8,8] y) {
          c = Conv(x, w) d = Conv(x, v) s = Add(c, d) y = Relu(s) }""",
        w=(4, 4, 1, 1),
        v=(4, 4, 1, 1),
    ) == ["Conv", "Conv Add Relu"]


def test_a_value_that_grows_by_broadcasting_is_not_an_epilogue():
    assert groups_of(
        """g (float[1,1,8,8] x, float[1,4,8,8] r, float[1,1,1,1] w) => (float[1,4,8,8] y) {
          c = Conv(x, w) y = Add(c, r) }""",
        w=(1, 1, 1, 1),
    ) == ["Conv", "Add"]


def test_moves_and_element_wise_operators_are_computed_where_they_are_read():
    """A channel shuffle with what surrounds it is one kernel."""
    assert groups_of(
        """g (float[1,6,4,4] x) => (float[1,6,4,4] y)
        <int64[5] split = {1, 2, 3, 4, 4}, int64[4] join = {1, 6, 4, 4}> {
          a = Relu(x) b = Reshape(a, split) c = Transpose<perm = [0, 2, 1, 3, 4]>(b) y = Reshape(c, join) }"""
    ) == ["Relu Reshape Transpose Reshape"]


def test_cheap_moves_are_repeated_and_expensive_values_are_stored():
    found = groups_of(
        """g (float[4,8] x) => (float[2,8] p, float[2,8] q, float[4,8] r)
        <int64[2] parts = {2, 2}> {
          e = Exp(x) a, b = Split<axis = 0>(e, parts) p = Relu(a) q = Neg(b) r = Abs(e) }"""
    )
    assert sorted(found) == ["Abs", "Exp", "Split Neg", "Split Relu"]


def test_row_kernels_take_what_precedes_and_follows_them():
    assert groups_of(
        """g (float[2,3,16] x, float[2,3,16] m) => (float[2,3,16] y) {
          a = Add(x, m) s = Softmax(a) y = Mul(s, m) }"""
    ) == ["Add Softmax Mul"]


def test_what_follows_from_constants_is_not_work():
    assert groups_of(
        """g (float[2,6] x) => (float[3,4] y) <int64[1] three = {3}, int64[1] four = {4}> {
          s = Concat<axis = 0>(three, four) y = Reshape(x, s) }"""
    ) == ["Reshape"]


def test_shape_queries_of_static_values_are_answered():
    assert groups_of(
        """g (float[2,6] x, float[12] z) => (float[12] y) <int64[1] minus = {-1}> {
          n = Size(x) s = Reshape(n, minus) r = Reshape(x, s) y = Add(r, z) }"""
    ) == ["Reshape Add"]


@pytest.mark.parametrize("depth", [200])
def test_grouping_long_chains_is_quick_and_bounded(depth):
    steps = " ".join(f"v{i + 1} = Sigmoid(v{i})" for i in range(depth))
    found = groups_of(f"g (float[2,6] v0) => (float[2,6] v{depth}) {{ {steps} }}")
    assert sum(len(group.split()) for group in found) == depth
    assert all(len(group.split()) <= 48 for group in found)
