"""merge-transposes: text in, text out, same numbers."""

import onnx_ir as ir
import pytest
from graphwright.passes.optimize import optimize


def model_of(text: str) -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]>\n' + text)
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    return model


def merged(text: str, pipeline: str = "merge-transposes"):
    result = optimize(model_of(text), pipeline, check_each=True)
    return [describe(node) for node in result.model.graph], result.report.records[0]


def describe(node: ir.Node) -> str:
    perm = node.attributes.get_ints("perm", ())
    return f"{node.op_type}{list(perm)}" if perm else node.op_type


def test_two_transposes_become_one():
    ops, _ = merged("""
    g (float[2,3,4] x) => (float[4,2,3] y) {
        a = Transpose <perm = [1, 0, 2]> (x)
        y = Transpose <perm = [2, 1, 0]> (a)
    }""")
    assert ops == ["Transpose[2, 0, 1]"]


def test_inverse_transposes_vanish_and_meet_through_elementwise_operators():
    ops, _ = merged("""
    g (float[2,3,4] x) => (float[2,3,4] y) <float half = {0.5}> {
        a = Transpose <perm = [2, 0, 1]> (x)
        b = Relu(a)
        c = Mul(b, half)
        d = Clip(c, , half)
        e = Transpose <perm = [1, 2, 0]> (d)
        y = Neg(e)
    }""")
    assert ops == ["Relu", "Mul", "Clip", "Neg"]


def test_a_transpose_used_twice_is_composed_but_kept():
    ops, _ = merged("""
    g (float[2,3] x) => (float[2,3] y, float[3,2] z) {
        a = Transpose <perm = [1, 0]> (x)
        b = Transpose <perm = [1, 0]> (a)
        y = Relu(b)
        z = Neg(a)
    }""")
    assert sorted(ops) == ["Neg", "Relu", "Transpose[1, 0]"]


def test_broadcast_constants_are_transposed_back():
    ops, _ = merged("""
    g (float[2,3,4] x) => (float[4,2,3] y) <float[3] bias = {1.0, 2.0, 3.0}, float[2,1] gain = {2.0, 3.0}> {
        a = Transpose <perm = [2, 0, 1]> (x)
        b = Add(a, bias)
        y = Mul(gain, b)
    }""")
    assert ops == ["Add", "Mul", "Transpose[2, 0, 1]"]


def test_operands_transposed_alike_share_one_transpose():
    ops, _ = merged("""
    g (float[2,3,4] x, float[2,3,4] z) => (float[4,3,2] y) {
        a = Transpose(x)
        b = Transpose(z)
        y = Sub(a, b)
    }""")
    assert ops == ["Sub", "Transpose[2, 1, 0]"]


def test_the_same_operand_twice():
    ops, _ = merged(
        "g (float[2,3] x) => (float[3,2] y) { a = Transpose <perm = [1, 0]> (x)\n y = Mul(a, a) }"
    )
    assert ops == ["Mul", "Transpose[1, 0]"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "g (float[3,3] x, float[3,3] z) => (float[3,3] y) { a = Transpose <perm = [1, 0]> (x)\n y = Add(a, z) }",
            "operand 'z' is not transposed",
        ),
        (
            "g (float[3,3] x) => (float[3,3] y, float[3,3] a) { a = Transpose <perm = [1, 0]> (x)\n y = Relu(a) }",
            "'a' has other readers",
        ),
        (
            "g (float[2,2,2] x) => (float[2,2,2] y) { a = Transpose <perm = [1, 0, 2]> (x)\n b = Transpose <perm = [2, 1, 0]> (x)\n y = Add(a, b) }",
            "its operands are transposed in different ways",
        ),
    ],
)
def test_what_would_not_pay_or_not_be_right_stays(text, reason):
    _, record = merged(text)
    assert not record.changed
    assert reason in [left.reason for left in record.left_alone]


def test_a_transpose_that_raises_the_rank_of_a_broadcast_stays():
    _, record = merged(
        "g (float[3,4] x, float[2,1,1] z) => (float[2,4,3] y) { a = Transpose <perm = [1, 0]> (x)\n y = Add(a, z) }"
    )
    assert not record.changed


@pytest.mark.parametrize(
    ("keepdims", "expected"), [(1, ["ReduceMean", "Transpose[1, 2, 0]"]), (0, ["ReduceMean"])]
)
def test_reductions_move_their_axes(keepdims, expected):
    shape = "float[3,1,2]" if keepdims else "float[3,2]"
    ops, _ = merged(f"""
    g (float[2,3,4] x) => ({shape} y) <int64[1] axes = {{1}}> {{
        a = Transpose <perm = [1, 2, 0]> (x)
        y = ReduceMean <keepdims = {keepdims}> (a, axes)
    }}""")
    assert [op.split("[")[0] for op in ops] == ["ReduceMean", "Transpose"]


def test_a_reduction_can_swallow_the_transpose():
    ops, _ = merged("""
    g (float[2,3,4] x) => (float[2] y) <int64[2] axes = {0, 1}> {
        a = Transpose <perm = [2, 1, 0]> (x)
        y = ReduceSum <keepdims = 0> (a, axes)
    }""")
    assert ops == ["ReduceSum"]


def test_softmax_and_concat_move_their_axis():
    ops, _ = merged("""
    g (float[2,3,4] x, float[2,5,4] z) => (float[4,8,2] y) {
        a = Transpose <perm = [2, 1, 0]> (x)
        b = Transpose <perm = [2, 1, 0]> (z)
        c = Concat <axis = 1> (a, b)
        y = Softmax <axis = 0> (c)
    }""")
    assert ops == ["Concat", "Softmax", "Transpose[2, 1, 0]"]


def test_moving_axes_of_size_one_is_a_reshape():
    ops, _ = merged("g (float[1,3,1,4] x) => (float[3,1,1,4] y) { y = Transpose <perm = [1, 0, 2, 3]> (x) }")
    assert ops == ["Reshape"]


def test_dynamic_shapes():
    ops, _ = merged("""
    g (float[N,3,4] x) => (float[N,4,3] y) <float[3] bias = {1.0, 2.0, 3.0}> {
        a = Transpose <perm = [0, 2, 1]> (x)
        b = Add(a, bias)
        c = Transpose <perm = [0, 2, 1]> (b)
        y = Transpose <perm = [0, 2, 1]> (c)
    }""")
    assert ops == ["Add", "Transpose[0, 2, 1]"]
