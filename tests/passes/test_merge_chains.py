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


CONSTANTS = """int64 zero = {0}, int64 one = {1}, int64 last = {-1}, int64[1] v0 = {0}, int64[1] v1 = {1},
    int64[1] v2 = {2}, int64[2] pair = {3, -1}, int64[3] some = {5, 0, 2}, int64[6] all = {0, 1, 2, -3, 4, 5},
    int64[1] m1 = {-1}, int64[1] m3 = {-3}, int64[1] m9 = {-99}, int64[1] big = {99}, int64[3] sizes = {1, 3, 2},
    int64[2] halves = {1, 2}, int64[2] twos = {2, 2}"""


@pytest.mark.parametrize(
    ("body", "shape", "left", "indices"),
    [
        ("a = Gather<axis = 1>(x, some)\n y = Gather<axis = -1>(a, last)", "4", ["Gather"], 2),
        ("a = Gather<axis = 1>(x, some)\n y = Gather<axis = 0>(a, last)", "3", ["Gather", "Gather"], -1),
        ("a = Slice(x, m1, m9, v1, m1)\n y = Gather<axis = 1>(a, one)", "4", ["Gather"], 4),
        ("a = Slice(x, v1, big, v1, v2)\n y = Gather<axis = 1>(a, last)", "4", ["Gather"], 5),
        ("a = Concat<axis = 1>(x, z)\n y = Gather<axis = 1>(a, pair)", "4,2", ["Concat", "Gather"], [3, -1]),
        ("a = Concat<axis = 1>(z, x)\n y = Gather<axis = 1>(a, pair)", "4,2", ["Gather"], [0, 5]),
        ("a = Concat<axis = 1>(x, z)\n y = Gather<axis = 1>(a, last)", "4", ["Gather"], 2),
        ("a = Gather<axis = 1>(x, all)\n y = Neg(a)", "4,6", ["Neg"], None),
        ("a = Unsqueeze(x, v1)\n b = Gather<axis = 1>(a, last)\n y = Neg(b)", "4,6", ["Neg"], None),
        ("a = Gather<axis = 1>(x, last)\n y = Unsqueeze(a, m1)", "4,1", ["Gather"], [-1]),
        ("a = Gather<axis = 1>(x, last)\n y = Unsqueeze(a, v0)", "1,4", ["Gather", "Unsqueeze"], -1),
    ],
)
def test_picks_of_picks(body, shape, left, indices):
    ops, _, model = run(
        f"g (float[4,6] x, float[4,3] z) => (float[{shape}] y) <{CONSTANTS}> {{ {body} }}", "merge-slices"
    )
    assert ops == left
    gathers = [node for node in model.graph if node.op_type == "Gather"]
    if indices is not None:
        assert gathers[-1].inputs[1].const_value.numpy().tolist() == indices


@pytest.mark.parametrize(
    ("body", "shape", "bounds"),
    [
        ("a = Slice(x, m1, m9, v1, m1)\n y = Slice(a, v1, big, v1, v2)", "4,3", [[4], [-(2**63)], [1], [-2]]),
        ("a = Slice(x, m1, m9, v1, m1)\n y = Slice(a, m1, m9, v1, m1)", "4,6", [[0], [6], [1], [1]]),
        (
            "a = Slice(x, v1, big, v1, v2)\n y = Slice(a, v1, m1, v0, v1)",
            "2,3",
            [[1, 1], [6, -1], [1, 0], [2, 1]],
        ),
        ("a = Slice(x, v1, big, v1, v2)\n y = Slice(a, v2, big, v1, v1)", "4,1", [[5], [6], [1], [2]]),
    ],
)
def test_cuts_with_steps(body, shape, bounds):
    text = f"g (float[4,6] x) => (float[{shape}] y) <{CONSTANTS}> {{ {body} }}"
    ops, _, model = run(text, "merge-slices")
    assert ops == ["Slice"]
    found = [value.const_value.numpy().tolist() for value in model.graph[0].inputs[1:]]
    assert found[0] == bounds[0] and found[2:] == bounds[2:]
    assert [min(end, 6) for end in found[1]] == bounds[1]


def test_splits_of_splits_and_of_concats():
    ops, _, model = run(
        f"""g (float[4,6] x) => (float[4,1] p, float[4,1] q, float[4,2] r, float[4,2] s) <{CONSTANTS}> {{
            a, b, c = Split<axis = 1>(x, sizes)
            d, e = Split<axis = -1>(b, halves)
            p = Neg(a)
            q = Neg(d)
            r = Neg(e)
            s = Neg(c)
        }}""",
        "merge-slices",
    )
    assert ops == ["Split", "Neg", "Neg", "Neg", "Neg"]
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == [1, 1, 2, 2]
    ops, _, _ = run(
        f"""g (float[4,2] x, float[4,2] z) => (float[4,2] p, float[4,2] q) <{CONSTANTS}> {{
            k = Concat<axis = 1>(x, z)
            a, b = Split<axis = 1>(k, twos)
            p = Neg(b)
            q = Neg(a)
        }}""",
        "merge-slices",
    )
    assert ops == ["Neg", "Neg"]


def test_splits_off_the_seams_stay():
    ops, record, _ = run(
        f"""g (float[4,1] x, float[4,3] z) => (float[4,2] p, float[4,2] q) <{CONSTANTS}> {{
            k = Concat<axis = 1>(x, z)
            a, b = Split<axis = 1>(k, twos)
            p = Neg(b)
            q = Neg(a)
        }}""",
        "merge-slices",
    )
    assert ops[:2] == ["Concat", "Split"] and "does not cut where" in record.left_alone[0].reason


@pytest.mark.parametrize(
    ("operands", "left"), [("x, e", []), ("e, x, z, e", ["Concat"]), ("e, e", ["Concat"])]
)
def test_concat_leaves_empty_operands_out(operands, left):
    model = model_of(
        f"""g (float[N,3] u, float[0,3] e, float[2,3] z) => (float[M,3] y) {{
            x = Relu(u)
            k = Concat<axis = 0>({operands})
            y = Neg(k)
        }}"""
    )
    result = optimize(model, "merge-slices,eliminate-dead")
    ops = [node.op_type for node in result.model.graph if node.op_type not in ("Relu", "Neg")]
    assert ops == left
    if left and "x" in operands:
        (concat,) = (node for node in result.model.graph if node.op_type == "Concat")
        assert [value.name for value in concat.inputs] == ["x", "z"]


def test_axes_that_come_and_go_cancel_for_unknown_sizes():
    ops, _, _ = run(
        f"""g (float[N,M] x) => (float[A,B] y) <{CONSTANTS}> {{
            a = Unsqueeze(x, m1)
            b = Squeeze(a, v2)
            y = Neg(b)
        }}""",
        "merge-reshapes",
    )
    assert ops == ["Neg"]
    ops, _, _ = run(
        f"g (float[N,1,M] x) => (float[A,B,C] y) <{CONSTANTS}> {{ a = Squeeze(x, v1)\n b = Unsqueeze(a, v1)\n y = Neg(b) }}",
        "merge-reshapes",
    )
    assert ops == ["Neg"]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("b = Relu(a)\n c = Mul(b, half)\n y = Reshape(c, back)", ["Relu", "Mul"]),
        ("b = Relu(a)\n y = Reshape(b, flat)", ["Relu", "Reshape"]),
        ("b = Div(half, a)\n y = Flatten(b)", ["Div"]),
        ("b = Mul(a, deep)\n y = Reshape(b, flat)", ["Reshape", "Mul", "Reshape"]),
        ("b = Mul(a, row)\n y = Reshape(b, flat)", ["Reshape", "Mul", "Reshape"]),
        ("b = Relu(a)\n c = Add(b, a)\n y = Reshape(c, flat)", ["Reshape", "Relu", "Add", "Reshape"]),
    ],
)
def test_reshapes_around_elementwise_operators(body, left):
    shape = "N,6" if "back" in body else "K,L" if "Flatten" in body else "K"
    ops, _, _ = run(
        f"""g (float[N,6] x) => (float[{shape}] y) <int64[3] cube = {{-1, 2, 3}}, int64[2] back = {{-1, 6}},
            int64[1] flat = {{-1}}, float half = {{0.5}}, float[1,1,1] deep = {{2.0}}, float[3] row = {{1.0, 2.0, 3.0}}> {{
            a = Reshape(x, cube)
            {body}
        }}""",
        "merge-reshapes",
    )
    assert ops == left
