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


AXES = """int64 zero = {0}, int64 one = {1}, int64[1] v0 = {0}, int64[1] v1 = {1}, int64[1] v2 = {2}, int64[1] m1 = {-1},
    int64[2] two = {0, 1}, int64[2] ends = {2, 9}, int64[2] axes = {-1, 0}, int64[6] pads = {0, 1, 2, 1, 0, 0},
    int64[2] few = {1, 2}, int64[1] big = {99}, float half = {0.5}"""


@pytest.mark.parametrize(
    ("body", "shape", "left"),
    [
        ("y = Slice(t, two, ends)", "2,1,3", ["Slice", "Transpose[2, 0, 1]"]),
        ("y = Slice(t, two, ends, axes)", "2,2,2", ["Slice", "Transpose[2, 0, 1]"]),
        ("y = Pad(t, pads)", "5,3,5", ["Pad", "Transpose[2, 0, 1]"]),
        ("y = Pad(t, few, half, v2)", "4,2,6", ["Pad", "Transpose[2, 0, 1]"]),
        ('y = Pad<mode = "reflect">(t, few, , v2)', "4,2,6", ["Pad", "Transpose[2, 0, 1]"]),
        ("y = Gather<axis = 1>(t, one)", "4,3", ["Gather", "Transpose[1, 0]"]),
        ("y = Gather<axis = 0>(t, one)", "2,3", ["Gather"]),
        ("y = Gather<axis = -1>(t, few)", "4,2,2", ["Gather", "Transpose[2, 0, 1]"]),
        ("y = Unsqueeze(t, few)", "4,1,1,2,3", ["Unsqueeze", "Transpose[4, 1, 2, 0, 3]"]),
        ("y = Unsqueeze(t, m1)", "4,2,3,1", ["Unsqueeze", "Transpose[2, 0, 1, 3]"]),
        ("y = ReduceSum<keepdims = 0>(t)", "", ["ReduceSum"]),
        ("y = ReduceSum<keepdims = 1>(t)", "1,1,1", ["ReduceSum"]),
        ("y = CumSum<reverse = 1>(t, zero)", "4,2,3", ["CumSum", "Transpose[2, 0, 1]"]),
        ("y = PRelu(t, half)", "4,2,3", ["PRelu", "Transpose[2, 0, 1]"]),
        ("s = Sigmoid(t)\n y = Mul(t, s)", "4,2,3", ["Sigmoid", "Mul", "Transpose[2, 0, 1]"]),
        (
            "a = Mul(t, half)\n b = Erf(t)\n c = Add(b, half)\n y = Mul(a, c)",
            "4,2,3",
            ["Mul", "Erf", "Add", "Mul", "Transpose[2, 0, 1]"],
        ),
    ],
)
def test_transposes_sink_through_operators_that_name_axes(body, shape, left):
    text = (
        f"g (float[2,3,4] x) => (float[{shape}] y) <{AXES}> {{ t = Transpose<perm = [2, 0, 1]>(x)\n {body} }}"
    )
    if not shape:
        text = text.replace("float[]", "float")
    ops, _ = merged(text)
    assert sorted(ops) == sorted(left) and (ops == left or "Erf" in left)


def test_the_largest_along_a_transposed_axis():
    text = f"""g (float[2,3,4] x) => (int64[4,3] y) <{AXES}> {{
        t = Transpose<perm = [2, 0, 1]>(x)
        y = ArgMax<axis = 1, keepdims = 0, select_last_index = 1>(t)
    }}"""
    assert merged(text)[0] == ["ArgMax", "Transpose[1, 0]"]


def test_dropped_axes():
    text = f"""g (float[1,N,4,M] x) => (float[4,M,N] y) <{AXES}> {{
        t = Transpose<perm = [2, 0, 3, 1]>(x)
        y = Squeeze(t, v1)
    }}"""
    assert merged(text)[0] == ["Squeeze", "Transpose[1, 2, 0]"]


@pytest.mark.parametrize(
    ("body", "result", "reason"),
    [
        ("s = Sigmoid(t)\n y = Mul(t, s)\n z = Neg(t)", "float[4,2,3] z", "has other readers"),
        ("s = Sigmoid(t)\n y = Mul(t, s)\n z = Neg(s)", "float[4,2,3] z", "has other readers"),
        ("y = Slice(t, v0, v1, k)\n z = Neg(k)", "int64[1] z", "its axes are not constant"),
        ("y = Gather<axis = 0>(t, many)\n z = Neg(k)", "int64[1] z", "its indices may be many"),
    ],
)
def test_transposes_that_stay(body, result, reason):
    text = f"""g (float[2,3,4] x, int64[1] k) => (float[A,B,C] y, {result})
        <int64[1] v0 = {{0}}, int64[1] v1 = {{1}}, int64[5] many = {{0, 1, 2, 3, 3}}> {{
        t = Transpose<perm = [2, 0, 1]>(x)
        {body}
    }}"""
    record = optimize(model_of(text), "merge-transposes").report.records[0]
    assert not record.changed
    assert any(reason in left.reason for left in record.left_alone), record.left_alone


@pytest.mark.parametrize(
    ("inputs", "body", "shape", "left"),
    [
        ("float[3,2] x, float[3,5] z", "t = Transpose(x)\n y = MatMul(t, z)", "2,5", ["Gemm"]),
        ("float[2,3] x, float[5,3] z", "t = Transpose(z)\n y = MatMul(x, t)", "2,5", ["Gemm"]),
        ("int32[2,3] x, int32[5,3] z", "t = Transpose(z)\n y = MatMul(x, t)", "2,5", ["Transpose", "MatMul"]),
        (
            "float[4,3,2] x, float[5,3] z",
            "t = Transpose<perm = [0, 2, 1]>(x)\n u = Transpose(z)\n y = MatMul(t, u)",
            "4,2,5",
            ["MatMul", "Transpose[0, 2, 1]"],
        ),
        (
            "float[2,4,3,5] x, float[2,4,5,6] z",
            "t = Transpose<perm = [1, 0, 2, 3]>(x)\n u = Transpose<perm = [1, 0, 2, 3]>(z)\n y = MatMul(t, u)",
            "4,2,3,6",
            ["MatMul", "Transpose[1, 0, 2, 3]"],
        ),
        (
            "float[2,4,3] x, float[3,3] z",
            "t = Transpose<perm = [1, 0, 2]>(x)\n y = MatMul(t, z)",
            "4,2,3",
            ["MatMul", "Transpose[1, 0, 2]"],
        ),
        (
            "float[2,4,3] x, float[2,4] z",
            "t = Transpose<perm = [2, 1, 0]>(x)\n y = MatMul(z, t)",
            "3,2,2",
            ["MatMul", "Transpose[2, 1, 0]"],
        ),
        (
            "float[2,4,3] x, float[3,9] z",
            "t = Transpose<perm = [1, 0, 2]>(x)\n y = MatMul(t, z)",
            "4,2,9",
            ["Transpose[1, 0, 2]", "MatMul"],
        ),
        (
            "float[2,4,3] x, float[2,2] z",
            "t = Transpose<perm = [1, 2, 0]>(x)\n y = MatMul(t, z)",
            "4,3,2",
            ["Transpose[1, 2, 0]", "MatMul"],
        ),
        ("float[3,3] x, float[1] z", "t = Transpose(x)\n y = MatMul(t, t)", "3,3", ["Transpose", "MatMul"]),
    ],
)
def test_products_of_transposes(inputs, body, shape, left):
    kind = inputs.split("[")[0]
    assert merged(f"g ({inputs}) => ({kind}[{shape}] y) {{ {body} }}")[0] == left


def test_a_transpose_of_unknown_sizes_that_moves_nothing_is_a_reshape():
    ops, _ = merged(
        "g (float[N,1,4] x) => (float[1,N,4] y) { t = Transpose<perm = [1, 0, 2]>(x)\n y = Neg(t) }"
    )
    assert ops == ["Neg", "Reshape"] or ops == ["Reshape", "Neg"]


def test_concat_with_constants():
    ops, _ = merged(
        "g (float[2,3] x) => (float[3,3] y) <float[3,1] c = {1.0, 2.0, 3.0}> { t = Transpose(x)\n y = Concat<axis = 1>(t, c) }"
    )
    assert ops == ["Concat", "Transpose[1, 0]"]
