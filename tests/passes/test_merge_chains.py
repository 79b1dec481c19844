"""merge-reshapes and merge-slices: text in, text out, same numbers."""

import onnx_ir as ir
import pytest
from graphwright.passes.optimize import optimize


def model_of(text: str) -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]>\n' + text)
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    return model


def run(text: str, pipeline: str):
    result = optimize(model_of(text), pipeline, check_each=True)
    return [node.op_type for node in result.model.graph], result.report.records[0], result.model


def test_a_chain_of_reshapes_becomes_one():
    ops, _, model = run(
        """
        g (float[2,3,4] x) => (float[1,24] y) <int64[3] s = {4, 3, 2}, int64[1] axis = {0}, int64[1] flat = {-1}> {
            a = Reshape(x, s)
            b = Reshape(a, flat)
            y = Unsqueeze(b, axis)
        }""",
        "merge-reshapes",
    )
    assert ops == ["Reshape"]
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == [1, 24]


def test_a_chain_back_to_the_start_vanishes():
    ops, _, _ = run(
        """
        g (float[2,3,4] x) => (float[2,3,4] y) <int64[3] s = {2, 3, 4}> {
            r = Relu(x)
            a = Flatten <axis = 2> (r)
            b = Reshape(a, s)
            y = Neg(b)
        }""",
        "merge-reshapes",
    )
    assert ops == ["Relu", "Neg"]


def test_one_dynamic_dimension_is_written_as_minus_one():
    ops, _, model = run(
        """
        g (float[N,3,4] x) => (float[N,12] y) <int64 zero = {0}, int64[1] ax = {0}, int64[1] twelve = {12}> {
            s = Shape(x)
            n = Gather(s, zero)
            m = Unsqueeze(n, ax)
            t = Concat <axis = 0> (m, twelve)
            y = Reshape(x, t)
        }""",
        "merge-reshapes",
    )
    assert ops == ["Reshape"]
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == [-1, 12]


def test_symbols_that_stay_in_place_are_copied():
    ops, _, model = run(
        """
        g (float[N,M,6] x) => (float[N,M,2,3] y) <int64[2] split = {2, 3}> {
            n = Shape <end = 2> (x)
            t = Concat <axis = 0> (n, split)
            y = Reshape <allowzero = 1> (x, t)
        }""",
        "merge-reshapes",
    )
    assert ops == ["Reshape"]
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == [0, 0, 2, 3]
    assert not model.graph[0].attributes.get_int("allowzero", 0)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("0", "1", [0, 1]), ("1", "0", [0, 2]), ("0", "-1", [0, 3])],
)
def test_unsqueezes_of_unknown_sizes_are_merged(first, second, expected):
    ops, _, model = run(
        f"""
        g (float[N,M] x) => (float[a,b,c,d] y) <int64[1] a = {{{first}}}, int64[1] b = {{{second}}}> {{
            u = Unsqueeze(x, a)
            y = Unsqueeze(u, b)
        }}""",
        "merge-reshapes",
    )
    assert ops == ["Unsqueeze"]
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == expected


def test_squeezes_of_unknown_sizes_are_merged():
    ops, _, model = run(
        """
        g (float[1,N,1,M,K,1] x) => (float[a,b,c] y) <int64[1] a = {2}, int64[2] b = {0, -1}> {
            u = Squeeze(x, a)
            y = Squeeze(u, b)
        }""",
        "merge-reshapes",
    )
    assert ops == ["Squeeze"]
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == [0, 2, 5]


def test_two_dynamic_dimensions_stay():
    ops, record, _ = run(
        """
        g (float[N,M,4] x) => (float[M,K] y) <int64[1] rest = {-1}, int64[3] t = {0, -1, 4}> {
            a = Reshape(x, t)
            m = Shape <start = 1, end = 2> (x)
            s = Concat <axis = 0> (m, rest)
            y = Reshape(a, s)
        }""",
        "merge-reshapes",
    )
    assert not record.changed
    assert record.left_alone[0].reason == "more than one dimension of its output is unknown"


def test_an_inner_reshape_with_other_readers_is_kept_for_them():
    ops, _, _ = run(
        """
        g (float[2,6] x) => (float[12] y, float[3,4] z) <int64[2] s = {3, 4}, int64[1] t = {12}> {
            a = Reshape(x, s)
            y = Reshape(a, t)
            z = Neg(a)
        }""",
        "merge-reshapes",
    )
    assert sorted(ops) == ["Neg", "Reshape", "Reshape"]


SLICES = """
g (float[2,8] x) => (float[2,{n}] y) <int64[1] one = {{1}}, int64[1] s0 = {{0}}, int64[1] s3 = {{3}}, int64[1] s5 = {{5}}, int64[1] s8 = {{8}}> {{
    r = Relu(x)
    a = Slice(r, s0, s3, one)
    b = Slice(r, s3, s5, one)
    c = Slice(r, s5, s8, one)
    k = Concat <axis = 1> ({parts})
    y = Neg(k)
}}"""


@pytest.mark.parametrize(
    ("parts", "n", "expected"),
    [
        ("a, b, c", 8, ["Relu", "Neg"]),
        ("b, c", 5, ["Relu", "Slice", "Neg"]),
        ("c, a, b", 8, ["Relu", "Slice", "Slice", "Concat", "Neg"]),
        ("b, a", 5, ["Relu", "Slice", "Slice", "Concat", "Neg"]),
        ("a, a", 6, ["Relu", "Slice", "Concat", "Neg"]),
    ],
)
def test_neighbouring_slices_are_joined_in_order_only(parts, n, expected):
    ops, _, _ = run(SLICES.format(parts=parts, n=n), "merge-slices,eliminate-dead")
    assert ops == expected


def test_a_split_put_together_again_vanishes():
    ops, _, _ = run(
        """
        g (float[2,6] x) => (float[2,6] y) {
            r = Relu(x)
            a, b, c = Split <axis = 1, num_outputs = 3> (r)
            k = Concat <axis = -1> (a, b, c)
            y = Neg(k)
        }""",
        "merge-slices",
    )
    assert ops == ["Relu", "Neg"]


def test_a_split_along_another_axis_stays():
    ops, record, _ = run(
        """
        g (float[2,6] x) => (float[1,12] y) {
            a, b = Split <axis = 0, num_outputs = 2> (x)
            y = Concat <axis = 1> (a, b)
        }""",
        "merge-slices",
    )
    assert not record.changed


def test_slices_of_slices_and_of_concats():
    ops, _, _ = run(
        """
        g (float[2,4] x, float[2,4] z) => (float[2,2] y) <int64[1] ax = {1}, int64[1] s = {4}, int64[1] e = {8}, int64[1] m = {-3}, int64[1] big = {99}, int64[1] n1 = {1}, int64[1] n3 = {3}> {
            k = Concat <axis = 1> (x, z)
            a = Slice(k, s, e, ax)
            b = Slice(a, m, big, ax)
            c = Slice(b, n1, n3, ax)
            y = Neg(c)
        }""",
        "merge-slices",
    )
    assert ops == ["Slice", "Neg"]


def test_nested_concats_become_one():
    ops, _, model = run(
        """
        g (float[2,1] a, float[2,2] b, float[2,3] c) => (float[2,7] y) {
            k = Concat <axis = 1> (b, c)
            y = Concat <axis = -1> (a, k, a)
        }""",
        "merge-slices",
    )
    assert ops == ["Concat"]
    assert [value.name for value in model.graph[0].inputs] == ["a", "b", "c", "a"]


def test_a_range_that_spans_operands_is_left_alone():
    _, record, _ = run(
        """
        g (float[2,4] x, float[2,4] z) => (float[2,4] y) <int64[1] ax = {1}, int64[1] s = {2}, int64[1] e = {6}> {
            k = Concat <axis = 1> (x, z)
            y = Slice(k, s, e, ax)
        }""",
        "merge-slices",
    )
    assert [left.reason for left in record.left_alone] == ["the range spans several operands of the Concat"]


def test_slices_on_different_axes_are_one_cut():
    ops, _, model = run(
        """
        g (float[N,6,8] x) => (float[N,3,2] y) <int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2},
            int64[1] six = {6}, int64[1] minus = {-1}, int64[1] four = {-4}, int64[1] back = {-2}> {
            a = Slice(x, zero, six, one, two)
            y = Slice(a, minus, four, two, back)
        }""",
        "merge-slices",
    )
    assert ops == ["Slice"]
    assert model.graph[0].inputs[3].const_value.numpy().tolist() == [1, 2]


def test_slices_on_the_same_axis_with_steps_are_one_cut():
    ops, _, model = run(
        """
        g (float[16] x) => (float[4] y) <int64[1] zero = {0}, int64[1] end = {99}, int64[1] two = {2}> {
            a = Slice(x, zero, end, zero, two)
            y = Slice(a, zero, end, zero, two)
        }""",
        "merge-slices",
    )
    assert ops == ["Slice"]
    assert [int(value.const_value.numpy()[0]) for value in model.graph[0].inputs[1:]] == [0, 13, 0, 4]


def test_an_index_of_an_unbound_tensor_is_gathered():
    ops, _, model = run(
        """
        g (float[3,N,4] x) => (float[N,4] y) <int64[1] one = {1}, int64[1] two = {2}, int64[1] zero = {0}> {
            a = Slice(x, one, two, zero)
            y = Squeeze(a, zero)
        }""",
        "merge-slices",
    )
    assert ops == ["Gather"]
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == 1
