"""canonicalize: text in, text out, same numbers, infinities and NaN included."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.reference import run_reference
from graphwright.passes.optimize import optimize

NUMBERS = [np.nan, np.inf, -np.inf, 0.0, -0.0, -2.5, -1.0, -0.5, 0.25, 0.5, 1.0, 1.5, 6.0, 7.0, 1e30, -1e30]


def model_of(text: str) -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]>\n' + text)
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    return model


def run(text: str, pipeline: str = "canonicalize"):
    model = model_of(text)
    result = optimize(model, pipeline, check_each=True)
    again = optimize(result.model, pipeline)
    assert not again.report.records[0].changed
    return [node.op_type for node in result.model.graph], result.report.records[0], result.model


def unary(body: str, constants: str = "", dtype: str = "float", result: str = "", size: int = 16):
    """Run a chain from x to y over the numbers above; both models must give the same, place by place."""
    constants = f"<{constants}>" if constants else ""
    text = f"g ({dtype}[{size}] x) => ({result or dtype}[{size}] y) {constants} {{ {body} }}"
    ops, record, after = run(text)
    if dtype == "float":
        feeds = {"x": np.array(NUMBERS, np.float32)}
        expected, found = run_reference(model_of(text), feeds)["y"], run_reference(after, feeds)["y"]
        np.testing.assert_array_equal(expected, found)
    return ops, record, after


@pytest.mark.parametrize("op", ["Neg"])
def test_twice_is_nothing(op):
    assert unary(f"a = {op}(x)\n b = {op}(a)\n y = Sigmoid(b)")[0] == ["Sigmoid"]


def test_not_not():
    assert unary("a = Not(x)\n b = Not(a)\n c = Not(b)\n y = Not(c)\n", dtype="bool")[0] == ["Identity"]


def test_negation_of_the_lowest_integer_is_undone_too():
    ops, _, after = run("g (int8[3] x) => (int8[3] y) { a = Neg(x)\n b = Neg(a)\n y = Identity(b) }")
    assert ops == ["Identity"]
    feeds = {"x": np.array([-128, 0, 127], np.int8)}
    np.testing.assert_array_equal(run_reference(after, feeds)["y"], feeds["x"])


@pytest.mark.parametrize(
    ("inner", "outer", "left"),
    [
        ("Floor", "Ceil", ["Floor"]),
        ("Round", "Round", ["Round"]),
        ("Sign", "Floor", ["Sign"]),
        ("Sign", "Sign", ["Sign"]),
        ("Ceil", "Sign", ["Ceil", "Sign"]),
        ("Neg", "Abs", ["Abs"]),
        ("Abs", "Neg", ["Abs", "Neg"]),
        ("Abs", "Abs", ["Abs"]),
        ("Relu", "Abs", ["Relu"]),
        ("Sigmoid", "Relu", ["Sigmoid"]),
        ("Exp", "Relu", ["Exp"]),
        ("Tanh", "Relu", ["Tanh", "Relu"]),
    ],
)
def test_functions_of_functions(inner, outer, left):
    ops, _, _ = unary(f"a = {inner}(x)\n b = {outer}(a)\n y = Identity(b)")
    assert ops == [*left, "Identity"]


def test_what_is_never_negative_is_followed_through_movement_and_sums():
    ops, _, _ = run(
        """g (float[2,6] x) => (float[6,2] y) <float[6] c = {1.0, 0.0, 2.0, 3.0, 0.0, 0.5}> {
            s = Sigmoid(x)
            a = Add(s, c)
            t = Transpose(a)
            y = Relu(t)
        }"""
    )
    assert ops == ["Sigmoid", "Add", "Transpose"]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("n = Neg(z)\n y = Add(x, n)", ["Sub"]),
        ("n = Neg(z)\n y = Add(n, x)", ["Sub"]),
        ("n = Neg(z)\n y = Sub(x, n)", ["Add"]),
        ("n = Neg(x)\n m = Neg(z)\n y = Mul(n, m)", ["Mul"]),
        ("n = Neg(x)\n m = Neg(z)\n y = Div(n, m)", ["Div"]),
        ("n = Neg(x)\n m = Neg(z)\n y = Add(n, m)", ["Neg", "Sub"]),
        ("n = Neg(x)\n y = Sub(n, z)", ["Neg", "Sub"]),
        ("n = Neg(z)\n a = Add(x, n)\n y = Mul(a, n)", ["Neg", "Add", "Mul"]),
    ],
)
def test_negations_are_absorbed(body, left):
    ops, _, _ = run(f"g (float[3,4] x, float[4] z) => (float[3,4] y) {{ {body} }}")
    assert ops == left


def test_divisions_of_negated_integers_stay():
    text = "g (int32[3] x, int32[3] z) => (int32[3] y) { n = Neg(x)\n m = Neg(z)\n y = Div(n, m) }"
    result = optimize(model_of(text), "canonicalize")
    assert [node.op_type for node in result.model.graph] == ["Neg", "Neg", "Div"]
    assert "lowest integer" in result.report.records[0].left_alone[0].reason


BOUNDS = "float zero = {0.0}, float one = {1.0}, float[1] six = {6.0}, float low = {-1.0}, float nan = {nan}"


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Relu(x)\n b = Relu(a)", ["Relu"]),
        ("a = Clip(x, low, one)\n b = Clip(a, zero, )", ["Clip"]),
        ("a = Relu(x)\n b = Clip(a, low, one)", ["Clip"]),
        ("a = Clip(x, low, one)\n b = Relu(a)", ["Clip"]),
        ("a = Relu(x)\n b = Min(a, six)", ["Clip"]),
        ("a = Min(six, x)\n b = Max(a, zero)", ["Clip"]),
        ("a = Max(x, one)\n b = Max(zero, a)", ["Max"]),
        ("a = Max(x, zero)\n b = Max(one, a)", ["Max"]),
        ("a = Min(x, one)\n b = Min(six, a)", ["Min"]),
        ("a = Max(x, low)\n b = Relu(a)", ["Relu"]),
        ("a = Clip(x, low)\n b = Clip(a, zero)", ["Clip"]),
        ("a = Clip(x, low)\n b = Clip(a, , one)", ["Clip"]),
        ("a = Clip(x, one, one)\n b = Clip(a, low, zero)", ["Clip"]),
        ("a = Clip(x, one, zero)\n b = Relu(a)", ["Clip"]),
        ("a = Clip(x, one, low)\n b = Relu(a)", ["Clip", "Relu"]),
        ("a = Max(x, low)\n b = Sigmoid(a)", ["Max", "Sigmoid"]),
    ],
)
def test_bounds_in_a_row(body, left):
    constants = BOUNDS.rsplit(",", 1)[0]
    ops, _, _ = unary(body + "\n y = Identity(b)", constants)
    assert ops == [*left, "Identity"]


def test_integer_bounds_keep_their_type():
    ops, _, after = run(
        """g (int64[5] x) => (int64[5] y) <int64 a = {-2}, int64 b = {3}, int64 c = {0}, int64 d = {9}> {
            k = Clip(x, a, b)
            y = Clip(k, c, d)
        }"""
    )
    assert ops == ["Clip"]
    assert [value.dtype for value in after.graph[0].inputs] == [ir.DataType.INT64] * 3
    feeds = {"x": np.array([-5, -1, 0, 2, 8], np.int64)}
    assert run_reference(after, feeds)["y"].tolist() == [0, 0, 0, 2, 3]


def test_a_bound_that_broadcasts_stays():
    ops, _, _ = run("g (float[4] x) => (float[1,4] y) <float[1,1] c = {1.0}> { a = Relu(x)\n y = Min(a, c) }")
    assert ops == ["Relu", "Min"]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("y = Sum(x, z)", ["Add"]),
        ("y = Sum(x, z, x)", ["Sum"]),
        ("y = Div(x, eight)", ["Mul"]),
        ("y = Div(x, three)", ["Div"]),
        ("y = Div(eight, x)", ["Div"]),
        ("y = Div(x, minus)", ["Neg"]),
        ("y = Mul(minus, x)", ["Neg"]),
        ("a = Mul(x, three)\n y = Mul(eight, a)", ["Mul"]),
        ("a = Div(x, three)\n y = Mul(eight, a)", ["Mul"]),
        ("a = Mul(x, three)\n y = Mul(tiny, a)", ["Mul", "Mul"]),
        ("a = Add(x, three)\n y = Add(eight, a)", ["Add"]),
        ("a = Sub(x, minus)\n y = Add(eight, a)", ["Add"]),
        ("a = Sub(x, three)\n y = Add(eight, a)", ["Sub", "Add"]),
        ("a = Mul(x, three)\n b = Mul(eight, a)\n y = Add(a, b)", ["Mul", "Mul", "Add"]),
    ],
)
def test_numbers(body, left):
    constants = "float three = {3.0}, float eight = {8.0}, float[1] minus = {-1.0}, float tiny = {1e-20}"
    ops, _, _ = run(f"g (float[2,3] x, float[2,3] z) => (float[2,3] y) <{constants}> {{ {body} }}")
    assert ops == left


def test_integer_products_wrap_around_in_either_order():
    ops, _, after = run(
        """g (int32[3] x) => (int32[3] y) <int32 c = {65536}, int32 d = {65537}> {
            a = Mul(x, c)
            b = Mul(a, d)
            s = Add(b, c)
            y = Sub(s, d)
        }"""
    )
    assert ops == ["Mul", "Add"]
    feeds = {"x": np.array([1, -7, 2**30], np.int32)}
    with np.errstate(all="ignore"):
        expected = feeds["x"] * np.int32(65536) * np.int32(65537) - np.int32(1)
    np.testing.assert_array_equal(run_reference(after, feeds)["y"], expected)


def test_narrow_floats_are_not_scaled_ahead(network):
    net = network()
    x = net.input(3, dtype=ir.DataType.FLOAT16)
    scaled = net.op("Mul", net.op("Mul", x, net.constant(np.float16(3))), net.constant(np.float16(5)))
    result = optimize(net.model(scaled), "canonicalize", check_each=True)
    assert len(result.model.graph) == 2
    assert any("narrow" in left.reason for left in result.report.records[0].left_alone)


LOGIC = "bool t = {1}, bool f = {0}, bool[4] all = {1, 1, 1, 1}, bool[2,1] wide = {1, 1}"


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("y = And(c, t)", []),
        ("y = Or(f, c)", []),
        ("y = Xor(c, f)", []),
        ("y = Equal(all, c)", []),
        ("y = And(c, c)", []),
        ("y = Or(c, t)", ["Or"]),
        ("y = Equal(c, f)", ["Equal"]),
        ("y = And(f, c)", ["And"]),
    ],
)
def test_logic(body, left):
    text = f"g (bool[4] x, bool[4] z) => (bool[4] o) <{LOGIC}> {{ c = Xor(x, z)\n {body}\n o = Not(y) }}"
    assert run(text)[0] == ["Xor", *left, "Not"]


@pytest.mark.parametrize(
    ("body", "left"),
    [("y = Where(c, t, f)", []), ("y = Where(c, f, t)", ["Not"]), ("y = Where(c, t, t)", ["Where"])],
)
def test_choices_of_truth_values(body, left):
    # ONNX Runtime has no Where for truth values: nothing to compare with.
    text = f"g (bool[4] x, bool[4] z) => (bool[4] o) <{LOGIC}> {{ c = Xor(x, z)\n {body}\n o = Or(y, x) }}"
    result = optimize(model_of(text), "canonicalize")
    assert [node.op_type for node in result.model.graph] == ["Xor", *left, "Or"]


@pytest.mark.parametrize(
    ("body", "left"),
    [("n = Not(c)\n y = Where(n, x, z)", ["Xor", "Where"]), ("y = Where(c, x, x)", ["Relu"])],
)
def test_choices(body, left):
    text = f"""g (float[4] u, float[4] z, bool[4] p, bool[4] q) => (float[4] y) {{
        x = Relu(u)
        c = Xor(p, q)
        {body}
    }}"""
    ops, _, after = run(text)
    assert [op for op in ops if op in left] == left and "Not" not in ops
    if "Where" in left:
        assert [value.name for value in after.graph[-1].inputs][1:] == ["z", "x"]


def test_a_condition_that_broadcasts_stays():
    ops, _, _ = run(
        "g (bool[4] x, float[1] z) => (float[4] y) { y = Where(x, z, z) }",
    )
    assert ops == ["Where"]
    ops, _, _ = run(f"g (bool[4] x) => (bool[2,4] y) <{LOGIC}> {{ c = Not(x)\n y = And(c, wide) }}")
    assert ops == ["Not", "And"]


def test_comparisons_are_turned_round_where_there_is_no_nan():
    for dtype, left in (("int64", ["GreaterOrEqual"]), ("float", ["Less", "Not"])):
        text = f"g ({dtype}[3] x, {dtype}[3] z) => (bool[3] y) {{ a = Less(x, z)\n y = Not(a) }}"
        assert run(text)[0] == left


REDUCED = "int64[1] last = {-1}, int64[2] both = {1, 2}, int64[1] one = {1}, int64[1] zero = {0}"


@pytest.mark.parametrize(
    ("body", "shape", "left"),
    [
        ("r = ReduceMean<keepdims = 1>(x, both)\n y = Squeeze(r, both)", "2", ["ReduceMean"]),
        ("r = ReduceMax<keepdims = 0>(x, last)\n y = Unsqueeze(r, last)", "2,3,1", ["ReduceMax"]),
        ("r = ReduceMax<keepdims = 1>(x, both)\n y = Squeeze(r, one)", "2,1", ["ReduceMax", "Squeeze"]),
        (
            "r = ReduceSum<keepdims = 1>(x, one)\n y = ReduceSum<keepdims = 1>(r, last)",
            "2,1,1",
            ["ReduceSum"],
        ),
        ("r = ReduceMean<keepdims = 0>(x, one)\n y = ReduceMean<keepdims = 0>(r, one)", "2", ["ReduceMean"]),
        (
            "r = ReduceL2<keepdims = 1>(x, one)\n y = ReduceL2<keepdims = 1>(r, last)",
            "2,1,1",
            ["ReduceL2"] * 2,
        ),
        (
            "r = ReduceSum<keepdims = 1>(x, one)\n y = ReduceMean<keepdims = 1>(r, one)",
            "2,1,4",
            ["ReduceSum"],
        ),
        ("r = ReduceSum<keepdims = 1>(x, one)\n y = ReduceMin<keepdims = 0>(r, one)", "2,4", ["ReduceSum"]),
        (
            "r = ReduceSum<keepdims = 1>(x, one)\n y = ReduceL1<keepdims = 1>(r, one)",
            "2,1,4",
            ["ReduceSum", "ReduceL1"],
        ),
        ("y = ReduceSum<noop_with_empty_axes = 1>(x)", "2,3,4", ["Identity"]),
    ],
)
def test_reductions(body, shape, left):
    ops, _, _ = run(f"g (float[2,3,4] x) => (float[{shape}] y) <{REDUCED}> {{ {body} }}")
    assert ops == left


def test_argmax_takes_the_squeeze_over():
    ops, _, after = run(
        f"g (float[2,N,4] x) => (int64[2,4] y) <{REDUCED}> {{ r = ArgMax<axis = 1, keepdims = 1>(x)\n y = Squeeze(r, one) }}"
    )
    assert ops == ["ArgMax"] and after.graph[0].attributes.get_int("keepdims") == 0


def test_a_mean_of_means_needs_room():
    _, record, _ = run(
        f"g (float16[2,3,4] x) => (float16[2,1,1] y) <{REDUCED}> {{ r = ReduceMean(x, one)\n y = ReduceMean(r, last) }}"
    )
    assert not record.changed and "narrow" in record.left_alone[0].reason


@pytest.mark.parametrize(
    ("first", "perm", "second", "channels", "expected"),
    [
        ("N,2,2,3,4,5", "0, 3, 4, 1, 5, 2", "N,3,8,10", "12,4,5", "DepthToSpace DCR"),
        ("N,3,2,2,4,5", "0, 1, 4, 2, 5, 3", "N,3,8,10", "12,4,5", "DepthToSpace CRD"),
        ("N,3,2,2,3,2", "0, 3, 5, 1, 2, 4", "N,12,2,3", "3,4,6", "SpaceToDepth "),
        ("N,3,2,2,3,2", "0, 1, 3, 5, 2, 4", "N,12,2,3", "3,4,6", None),
        ("N,3,2,4,5,2", "0, 1, 4, 2, 5, 3", "N,3,8,10", "12,4,5", None),
    ],
)
def test_shuffled_pixels(first, perm, second, channels, expected):
    sizes = [first.replace("N", "-1"), second.replace("N", "-1")]
    if expected is None and first.startswith("N,3,2,4"):
        second, sizes[1] = "N,3,10,8", "-1,3,10,8"
    ops, _, after = run(
        f"""g (float[N,{channels}] x) => (float[{second}] y) <int64[6] a = {{{sizes[0]}}}, int64[4] b = {{{sizes[1]}}}> {{
            r = Reshape(x, a)
            t = Transpose<perm = [{perm}]>(r)
            y = Reshape(t, b)
        }}"""
    )
    node = after.graph[0]
    if expected is None:
        assert ops == ["Reshape", "Transpose", "Reshape"]
    else:
        assert f"{node.op_type} {node.attributes.get_string('mode', '')}" == expected
        assert node.attributes.get_int("blocksize") == 2


@pytest.mark.parametrize(
    ("body", "shape", "left"),
    [
        ("s = ReduceSum(x, ax)\n y = Div(s, n)", "2,3,1", ["ReduceMean"]),
        ("s = ReduceSum(x, ax)\n y = Mul(r, s)", "2,3,1", ["ReduceMean"]),
        ("s = ReduceSum <keepdims = 0> (x, ax)\n y = Mul(s, r)", "2,3", ["ReduceMean"]),
        ("s = ReduceSum(x, ax)\n y = Mul(s, n)", "2,3,1", ["ReduceSum", "Mul"]),
        ("s = ReduceSum(x, ax)\n y = Div(n, s)", "2,3,1", ["ReduceSum", "Div"]),
        ("s = ReduceSum(x, ax)\n d = Div(s, n)\n y = Add(s, d)", "2,3,1", ["ReduceSum", "Div", "Add"]),
    ],
)
def test_a_sum_over_its_count_is_a_mean(body, shape, left):
    constants = "int64[1] ax = {-1}, float n = {5.0}, float r = {0.2}"
    assert run(f"g (float[2,3,5] x) => (float[{shape}] y) <{constants}> {{ {body} }}")[0] == left
