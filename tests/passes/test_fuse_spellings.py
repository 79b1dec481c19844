"""Spelled-out activations, softmaxes and normalizations become standard operators; what only looks alike stays.

Every positive case is proven against ONNX Runtime without optimizations, on random and edge-case inputs.
"""

import math
import re

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.reference import run_reference
from graphwright.passes.optimize import optimize

NUMBERS = {
    "zero": 0.0, "one": 1.0, "two": 2.0, "three": 3.0, "six": 6.0, "half": 0.5, "minus": -1.0, "fifth": 0.2,
    "sixth": 1 / 6, "root2": math.sqrt(2), "inv2": math.sqrt(0.5), "c": math.sqrt(2 / math.pi), "k": 0.044715,
    "ck": math.sqrt(2 / math.pi) * 0.044715, "c2": 2 * math.sqrt(2 / math.pi), "quick": 1.702, "eps": 1e-3,
    "slope": 0.1, "alpha": 1.67326, "gamma": 1.0507, "many": 20.0, "inverse": 1 / 1.5, "scale": 1.5,
    "minushalf": -0.5, "inv4": 0.25,
}  # fmt: skip
INTS = {"last": [-1], "first": [1], "image": [2, 3], "both": [1, 2], "third": [2]}


def run(lines, pipeline, *, shape=(2, 3, 4), dtype=np.float32, constants=None, check=True, readers=()):
    """Apply a pipeline to `lines`, which compute y from x; returns the operator types, record and model."""
    named = {name: np.array(value, dtype) for name, value in NUMBERS.items()}
    named |= {name: np.array(value, np.int64) for name, value in INTS.items()}
    named |= {name: np.asarray(value) for name, value in (constants or {}).items()}
    kind = ir.DataType.from_numpy(np.dtype(dtype)).name.lower().replace("float64", "double")
    kind = {"float": "float", "double": "double", "float16": "float16"}[kind]
    words = {word for line in lines for word in re.findall(r"\w+", line.partition("=")[2])}
    made = {line.partition(" ")[0] for line in lines}
    used = [name for name in named if name in words - made]
    header = ", ".join([f"{kind}[{','.join(map(str, shape))}] x", *(f"{kind} {name}" for name in used)])
    outputs = ", ".join(f"{kind} {name}" for name in ("y", *readers))
    model = ir.from_onnx_text(
        f'<ir_version: 11, opset_import: ["" : 23]>\ng ({header}) => ({outputs}) {{\n'
        + "\n".join(lines)
        + "\n}"
    )
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    for value in list(model.graph.inputs)[1:]:
        tensor = ir.tensor(named[value.name], name=value.name)
        model.graph.inputs.remove(value)
        value.const_value, value.shape, value.type = (
            tensor,
            ir.Shape(tensor.shape),
            ir.TensorType(tensor.dtype),
        )
        model.graph.register_initializer(value)
    for value in model.graph.outputs:
        value.shape = None
    result = optimize(model, pipeline, check_each=check)
    return [node.op_type for node in result.model.graph], result.report.records[0], result.model


SQUARE = ["q = Mul(x, x)", "r = Mul(q, x)"]
GELU_TANH = {
    "power": ["r = Pow(x, three)", "w = Mul(k, r)", "s = Add(x, w)", "u = Mul(s, c)"],
    "tf": [*SQUARE, "w = Mul(r, k)", "s = Add(w, x)", "u = Mul(c, s)"],
    "horner": ["q = Mul(x, x)", "w = Mul(q, k)", "v = Add(w, one)", "d = Mul(x, c)", "u = Mul(d, v)"],
    "horner by pieces": [
        "p = Mul(k, x)",
        "q = Mul(p, x)",
        "v = Add(one, q)",
        "d = Mul(v, x)",
        "u = Mul(c, d)",
    ],
    "distributed": [*SQUARE, "w = Mul(r, ck)", "d = Mul(x, c)", "u = Add(d, w)"],
}
OUTER = {
    "half first": ["h = Mul(half, x)", "g = Add(one, t)", "y = Mul(h, g)"],
    "half last": ["g = Add(t, one)", "h = Mul(x, g)", "y = Div(h, two)"],
    "half inside": ["g = Add(t, one)", "h = Mul(g, half)", "y = Mul(x, h)"],
    "distributed": ["h = Mul(x, half)", "g = Mul(h, t)", "y = Add(g, h)"],
    "half of t": ["a = Mul(t, half)", "g = Add(a, half)", "y = Mul(g, x)"],
}


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("inner", GELU_TANH)
def test_gelu_by_tanh_in_every_order(inner, outer):
    ops, _, model = run([*GELU_TANH[inner], "t = Tanh(u)", *OUTER[outer]], "fuse-activation")
    assert ops == ["Gelu"] and model.graph[0].attributes.get_string("approximate") == "tanh"


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("inner", ["u = Div(x, root2)", "u = Mul(inv2, x)"])
def test_exact_gelu_in_every_order(inner, outer):
    assert run([inner, "t = Erf(u)", *OUTER[outer]], "fuse-activation")[0] == ["Gelu"]


def test_gelu_by_sigmoid_and_gelu_without_its_half():
    lines = [*SQUARE, "w = Mul(k, r)", "s = Add(x, w)", "u = Mul(s, c2)", "t = Sigmoid(u)", "y = Mul(x, t)"]
    assert run(lines, "fuse-activation")[0] == ["Gelu"]
    lines = ["u = Div(x, root2)", "t = Erf(u)", "g = Add(t, one)", "y = Mul(x, g)"]
    ops, _, model = run(lines, "fuse-activation")
    assert ops == ["Gelu", "Mul"] and model.graph[1].inputs[1].const_value.numpy() == 2.0


def test_constants_of_a_narrow_type_are_as_good_as_it_is():
    lines = [*GELU_TANH["power"], "t = Tanh(u)", *OUTER["half first"]]
    assert run(lines, "fuse-activation", dtype=np.float16)[0] == ["Gelu"]
    assert run(["u = Mul(x, inv2)", "t = Erf(u)", *OUTER["half last"]], "fuse-activation", dtype=np.float16)[
        0
    ] == ["Gelu"]


ACTIVATIONS = {
    "HardSigmoid": [
        ["a = Add(x, three)", "b = Clip(a, zero, six)", "y = Mul(b, sixth)"],
        ["a = Mul(x, fifth)", "b = Add(half, a)", "y = Clip(b, zero, one)"],
        ["a = Add(x, three)", "r = Relu(a)", "b = Min(r, six)", "y = Div(b, six)"],
    ],
    "HardSwish": [
        ["a = Add(three, x)", "b = Clip(a, zero, six)", "d = Mul(x, b)", "y = Div(d, six)"],
        ["a = Add(x, three)", "b = Clip(a, zero, six)", "d = Mul(b, sixth)", "y = Mul(x, d)"],
        ["a = Mul(x, sixth)", "b = Add(a, half)", "d = Clip(b, zero, one)", "y = Mul(d, x)"],
        ["a = Add(x, three)", "r = Relu(a)", "b = Min(six, r)", "s = Mul(x, sixth)", "y = Mul(s, b)"],
        ["h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x)", "y = Mul(h, x)"],
    ],
    "Clip": [
        ["r = Relu(x)", "y = Min(r, six)"], ["r = Min(six, x)", "y = Relu(r)"],
        ["r = Max(x, minus)", "y = Min(one, r)"], ["r = Min(x, one)", "y = Max(minus, r)"],
    ],
    "Sigmoid": [
        ["n = Neg(x)", "e = Exp(n)", "p = Add(e, one)", "y = Div(one, p)"],
        ["n = Mul(x, minus)", "e = Exp(n)", "p = Add(one, e)", "y = Reciprocal(p)"],
    ],
    "Softsign": [["a = Abs(x)", "p = Add(one, a)", "y = Div(x, p)"]],
    "Mish": [["s = Softplus(x)", "t = Tanh(s)", "y = Mul(x, t)"]],
    "Elu": [
        ["e = Exp(x)", "m = Sub(e, one)", "p = Greater(x, zero)", "y = Where(p, x, m)"],
        ["l = Min(x, zero)", "e = Exp(l)", "m = Add(e, minus)", "n = Mul(m, scale)", "p = Less(x, zero)", "y = Where(p, n, x)"],
    ],
    "Selu": [["e = Elu <alpha = 1.67326> (x)", "y = Mul(gamma, e)"]],
    "Celu": [
        ["d = Div(x, scale)", "e = Exp(d)", "m = Sub(e, one)", "n = Mul(scale, m)", "l = Min(zero, n)", "r = Relu(x)", "y = Add(l, r)"],
        ["d = Mul(x, inverse)", "e = Exp(d)", "m = Sub(e, one)", "n = Mul(scale, m)", "l = Min(n, zero)", "r = Max(x, zero)", "y = Add(r, l)"],
    ],
    "LeakyRelu": [
        ["s = Mul(x, slope)", "y = Max(x, s)"],
        ["s = Mul(slope, x)", "p = GreaterOrEqual(x, zero)", "y = Where(p, x, s)"],
        ["n = Neg(x)", "r = Relu(n)", "s = Mul(r, slope)", "p = Relu(x)", "y = Sub(p, s)"],
    ],
    "Softplus": [["s = Softplus(x)", "p = Greater(x, many)", "y = Where(p, x, s)"]],
}  # fmt: skip


@pytest.mark.parametrize(
    ("becomes", "lines"), [(name, lines) for name, all in ACTIVATIONS.items() for lines in all]
)
def test_activations_in_each_spelling(becomes, lines):
    assert run(lines, "fuse-activation")[0] == [becomes]


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (["n = Neg(x)", "e = Exp(n)", "s = Add(e, one)", "y = Div(x, s)"], ["Sigmoid", "Mul"]),
        (["n = Mul(x, minus)", "e = Exp(n)", "s = Add(one, e)", "y = Div(x, s)"], ["Sigmoid", "Mul"]),
        (["n = Mul(x, slope)", "e = Exp(n)", "s = Add(one, e)", "y = Div(x, s)"], ["Mul", "Sigmoid", "Mul"]),
        (["n = Mul(slope, x)", "e = Exp(n)", "s = Add(one, e)", "y = Reciprocal(s)"], ["Mul", "Sigmoid"]),
        (
            ["t = Tanh(x)", "n = Neg(x)", "e = Exp(n)", "s = Add(e, one)", "y = Div(t, s)"],
            ["Tanh", "Sigmoid", "Mul"],
        ),
    ],
)
def test_gates_written_with_exponentials(lines, wanted):
    assert run(lines, "fuse-activation")[0] == wanted


def test_silu_written_with_an_exponential_is_swish():
    lines = ["n = Neg(x)", "e = Exp(n)", "s = Add(e, one)", "y = Div(x, s)"]
    assert [node.op_type for node in run(lines, "simplify,fuse")[2].graph] == ["Swish"]
    scaled = ["n = Mul(x, quick)", "o = Neg(n)", "e = Exp(o)", "s = Add(e, one)", "y = Div(x, s)"]
    assert [node.op_type for node in run(scaled, "simplify,fuse")[2].graph] == ["QuickGelu"]


def test_a_tensor_of_slopes_gives_prelu():
    slopes = np.array([[0.1], [0.2], [-0.3]], np.float32)
    lines = ["n = Neg(x)", "r = Relu(n)", "s = Mul(r, slopes)", "p = Relu(x)", "y = Sub(p, s)"]
    assert run(lines, "fuse-activation", constants={"slopes": slopes})[0] == ["PRelu"]


def test_softplus_that_overflows_is_fused_on_demand():
    lines = ["e = Exp(x)", "p = Add(one, e)", "y = Log(p)"]
    assert run(lines, "fuse-activation")[0] == ["Exp", "Add", "Log"]
    assert run(lines, "fuse-activation{overflow=true}", check=False)[0] == ["Softplus"]


@pytest.mark.parametrize(
    "lines",
    [
        ["u = Div(x, two)", "t = Erf(u)", *OUTER["half first"]],
        ["u = Div(x, root2)", "t = Erf(u)", "g = Add(t, two)", "h = Mul(x, g)", "y = Mul(h, half)"],
        ["r = Pow(x, two)", "w = Mul(k, r)", "s = Add(x, w)", "u = Mul(s, c)", "t = Tanh(u)", *OUTER["half first"]],
        ["u = Div(x, root2)", "t = Erf(u)", "g = Add(t, one)", "o = Neg(x)", "h = Mul(o, g)", "y = Mul(h, u)"],
        ["a = Add(x, three)", "b = Clip(a, one, six)", "y = Div(b, six)"],
        ["s = Mul(x, two)", "y = Max(x, s)"],
        ["s = Mul(x, slope)", "p = Greater(x, one)", "y = Where(p, x, s)"],
        ["s = Mul(x, slope)", "p = Greater(x, zero)", "y = Where(p, s, s)"],
        ["a = Abs(x)", "p = Add(two, a)", "y = Div(x, p)"],
        ["n = Neg(x)", "e = Exp(n)", "p = Add(e, two)", "y = Div(one, p)"],
        ["d = Div(x, scale)", "e = Exp(d)", "m = Sub(e, one)", "n = Mul(two, m)", "l = Min(zero, n)", "r = Relu(x)", "y = Add(l, r)"],
        ["r = Max(x, one)", "y = Min(minus, r)"],
        ["s = Softplus(x)", "p = Greater(x, three)", "y = Where(p, x, s)"],
    ],
)  # fmt: skip
def test_what_looks_alike_is_left_alone(lines):
    assert not run(lines, "fuse-activation")[1].changed


def test_inner_values_with_other_readers_and_broadcasts_are_left_alone():
    lines = ["u = Div(x, root2)", "t = Erf(u)", *OUTER["half first"]]
    assert not run(lines, "fuse-activation", readers=("g",))[1].changed
    assert not run(lines, "fuse-activation", readers=("u",))[1].changed
    wide = {"one": np.ones((5, 2, 3, 4), np.float32)}
    assert not run(lines, "fuse-activation", constants=wide)[1].changed
    assert not run(lines, "fuse-activation", constants={"one": np.ones((1, 1, 1, 1), np.float32)})[1].changed


SHIFTED = [
    "m = ReduceMax <keepdims = 1> (x, {axis})",
    "d = Sub(x, m)",
    "e = Exp(d)",
    "s = ReduceSum <keepdims = 1> (e, {axis})",
]


@pytest.mark.parametrize("axis", ["last", "first"])
@pytest.mark.parametrize(
    ("tail", "becomes"),
    [
        (["y = Div(e, s)"], "Softmax"),
        (["r = Reciprocal(s)", "y = Mul(r, e)"], "Softmax"),
        (["l = Log(s)", "y = Sub(d, l)"], "LogSoftmax"),
        (["l = Log(s)", "a = Add(l, m)", "y = Sub(x, a)"], "LogSoftmax"),
    ],
)
def test_softmax_in_each_spelling(axis, tail, becomes):
    ops, _, model = run([*(line.format(axis=axis) for line in SHIFTED), *tail], "fuse-softmax")
    assert ops == [becomes]
    assert model.graph[0].attributes.get_int("axis") == {"last": -1, "first": -2}[axis]


@pytest.mark.parametrize("axis", [-1, 1])
def test_the_exponential_of_log_softmax(axis):
    ops, _, model = run([f"l = LogSoftmax <axis = {axis}> (x)", "y = Exp(l)"], "fuse-softmax")
    assert ops == ["Softmax"] and model.graph[0].attributes.get_int("axis") == axis
    lines = [f"l = LogSoftmax <axis = {axis}> (x)", "y = Exp(l)"]
    assert run(lines, "fuse-softmax", readers=("l",))[0] == ["LogSoftmax", "Exp"]


@pytest.mark.parametrize("becomes", ["Softmax", "LogSoftmax"])
def test_a_maximum_taken_off_before_softmax(becomes):
    lines = ["m = ReduceMax <keepdims = 1> (x, {axis})", "d = Sub(x, m)", f"y = {becomes} <axis = -1> (d)"]
    assert run([line.format(axis="last") for line in lines], "fuse-softmax")[0] == [becomes]
    ops, record, _ = run([line.format(axis="first") for line in lines], "fuse-softmax")
    assert ops == ["ReduceMax", "Sub", becomes]
    assert record.left_alone[0].reason == "the maximum is not taken along the axis of the softmax"


def test_log_softmax_by_reductions():
    assert run(["l = ReduceLogSumExp <keepdims = 1> (x, last)", "y = Sub(x, l)"], "fuse-softmax")[0] == [
        "LogSoftmax"
    ]
    lines = [
        "m = ReduceMax <keepdims = 1> (x, last)",
        "d = Sub(x, m)",
        "e = Exp(d)",
        "l = ReduceLogSum <keepdims = 1> (e, last)",
        "y = Sub(d, l)",
    ]
    assert run(lines, "fuse-softmax")[0] == ["LogSoftmax"]


@pytest.mark.parametrize(
    ("lines", "becomes"),
    [
        (["e = Exp(x)", "s = ReduceSum <keepdims = 1> (e, last)", "y = Div(e, s)"], "Softmax"),
        (["p = Softmax <axis = 1> (x)", "y = Log(p)"], "LogSoftmax"),
        (
            ["e = Exp(x)", "s = ReduceSum <keepdims = 1> (e, last)", "l = Log(s)", "y = Sub(x, l)"],
            "LogSoftmax",
        ),
    ],
)
def test_softmax_that_overflows_is_reported_and_fused_on_demand(lines, becomes):
    _, record, _ = run(lines, "fuse-softmax")
    assert not record.changed and "option 'overflow'" in record.left_alone[0].reason
    ops, _, model = run(lines, "fuse-softmax{overflow=true}", check=False)
    assert ops == [becomes]
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    from graphwright.ir.reference import run_reference

    _, _, plain = run(lines, "eliminate-dead", check=False)
    np.testing.assert_allclose(
        run_reference(model, {"x": x})["y"], run_reference(plain, {"x": x})["y"], 1e-5, 1e-6
    )


@pytest.mark.parametrize(
    "lines",
    [
        [
            *(line.format(axis="last") for line in SHIFTED[:3]),
            SHIFTED[3].format(axis="first"),
            "y = Div(e, s)",
        ],
        [*(line.format(axis="both") for line in SHIFTED), "y = Div(e, s)"],
        [*(line.format(axis="last") for line in SHIFTED), "f = Exp(x)", "y = Div(f, s)"],
        [*(line.format(axis="last") for line in SHIFTED), "y = Div(s, e)"],
    ],
)
def test_what_is_no_softmax_is_left_alone(lines):
    assert not run(lines, "fuse-softmax")[1].changed


def norm(axis, *, square="Mul(d, d)", root=("r = Sqrt(e)", "n = Div(d, r)"), tail=("y = Identity(n)",)):
    return [f"m = ReduceMean <keepdims = 1> (x, {axis})", "d = Sub(x, m)", f"s = {square}",
            f"v = ReduceMean <keepdims = 1> (s, {axis})", "e = Add(v, eps)", *root, *tail]  # fmt: skip


ROOTS = [
    ("r = Sqrt(e)", "n = Div(d, r)"),
    ("r = Pow(e, half)", "n = Div(d, r)"),
    ("r = Pow(e, minushalf)", "n = Mul(r, d)"),
    ("r = Sqrt(e)", "i = Reciprocal(r)", "n = Mul(d, i)"),
    ("r = Sqrt(e)", "i = Div(one, r)", "n = Mul(d, i)"),
]
GAIN = np.array([1.0, -2.0, 3.0, 0.5], np.float32)


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("square", ["Pow(d, two)", "Mul(d, d)"])
def test_layer_norm_in_each_spelling(square, root):
    lines = norm("last", square=square, root=root, tail=("k = Mul(n, gain)", "y = Add(k, gain)"))
    ops, _, model = run(lines, "fuse-normalization", constants={"gain": GAIN})
    assert ops == ["LayerNormalization"]
    assert model.graph[0].inputs[2].const_value.numpy().tolist() == GAIN.tolist()


def test_layer_norm_centered_twice_and_by_parts():
    lines = ["m = ReduceMean <keepdims = 1> (x, last)", "d = Sub(x, m)", "c0 = Sub(x, m)", "s = Mul(c0, c0)",
             "v = ReduceMean <keepdims = 1> (s, last)", "e = Add(v, eps)", "r = Sqrt(e)", "y = Div(d, r)"]  # fmt: skip
    assert run(lines, "fuse-normalization")[0] == ["LayerNormalization"]
    keras = norm("last", root=("r = Sqrt(e)", "i = Reciprocal(r)"),
                 tail=("f = Mul(i, gain)", "a = Mul(x, f)", "b = Mul(m, f)", "z = Sub(gain, b)", "y = Add(a, z)"))  # fmt: skip
    assert run(keras, "fuse-normalization", constants={"gain": GAIN})[0] == ["LayerNormalization"]


def test_channels_first_normalization_is_transposed():
    gain = np.array([1.0, 2.0, -3.0], np.float32).reshape(3, 1, 1)
    lines = norm("first", tail=("k = Mul(gain, n)", "y = Add(k, gain)"))
    ops, _, model = run(lines, "fuse-normalization", shape=(2, 3, 4, 5), constants={"gain": gain})
    assert ops == ["Transpose", "LayerNormalization", "Transpose"]
    assert model.graph[1].inputs[1].const_value.numpy().tolist() == [1.0, 2.0, -3.0]


@pytest.mark.parametrize(
    "root", [[line.replace("(d,", "(x,").replace(", d)", ", x)") for line in root] for root in ROOTS]
)
def test_rms_norm_in_each_spelling(root):
    lines = [
        "s = Pow(x, two)",
        "v = ReduceMean <keepdims = 1> (s, last)",
        "e = Add(eps, v)",
        *root,
        "y = Mul(gain, n)",
    ]
    assert run(lines, "fuse-normalization", constants={"gain": GAIN})[0] == ["RMSNormalization"]


@pytest.mark.parametrize(
    "mean",
    [
        ["s = ReduceSumSquare <keepdims = 1> ({of}, last)", "v = Div(s, four)"],
        ["s = ReduceSumSquare <keepdims = 1> ({of}, last)", "v = Mul(quarter, s)"],
        ["q = Mul({of}, {of})", "s = ReduceSum <keepdims = 1> (q, last)", "v = Div(s, four)"],
    ],
)
def test_a_mean_written_as_a_sum_by_its_number(mean):
    constants = {"four": np.float32(4), "quarter": np.float32(0.25)}
    rms = [*(line.format(of="x") for line in mean), "e = Add(v, eps)", "r = Sqrt(e)", "y = Div(x, r)"]
    assert run(rms, "fuse-normalization", constants=constants)[0] == ["RMSNormalization"]
    centered = ["m = ReduceMean <keepdims = 1> (x, last)", "d = Sub(x, m)", *(line.format(of="d") for line in mean),
                "e = Add(v, eps)", "r = Sqrt(e)", "y = Div(d, r)"]  # fmt: skip
    assert run(centered, "fuse-normalization", constants=constants)[0] == ["LayerNormalization"]
    wrong = {"four": np.float32(3), "quarter": np.float32(0.3)}
    ops, record, _ = run(rms, "fuse-normalization", constants=wrong)
    assert "RMSNormalization" not in ops
    assert {each.reason for each in record.left_alone} == {
        "the sum of the squares is not divided by their number"
    }


LENGTHS = [
    ["l = ReduceL2 <keepdims = 1> (x, last)"],
    ["s = ReduceSumSquare <keepdims = 1> (x, last)", "l = Sqrt(s)"],
    ["q = Pow(x, two)", "s = ReduceSum <keepdims = 1> (q, last)", "l = Sqrt(s)"],
]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    "tail",
    [
        ["n = Div(x, l)", "y = Mul(n, two)"],
        ["r = Div(l, two)", "y = Div(x, r)"],
        ["r = Mul(l, half)", "y = Div(x, r)"],
        ["r = Div(two, l)", "y = Mul(r, x)"],
        ["u = Mul(two, x)", "y = Div(u, l)"],
    ],
)
def test_rms_norm_by_the_length(length, tail):
    # Four elements: the factor is their square root.
    ops, _, model = run([*length, *tail], "fuse-normalization")
    assert ops == ["RMSNormalization"]
    assert model.graph[0].attributes.get_float("epsilon") == 0.0
    assert run([*length, *tail], "fuse-normalization", shape=(2, 3, 9))[0] != ["RMSNormalization"]


MOMENTS = ["m = ReduceMean <keepdims = 1> (x, last)", "q = Mul(x, x)", "a = ReduceMean <keepdims = 1> (q, last)",
           "b = Mul(m, m)", "w = Sub(a, b)"]  # fmt: skip


@pytest.mark.parametrize("bounded", [["v = Identity(w)"], ["v = Max(zero, w)"], ["v = Relu(w)"]])
@pytest.mark.parametrize(
    "tail",
    [
        ["d = Sub(x, m)", "r = Sqrt(e)", "n = Div(d, r)", "k = Mul(n, gain)", "y = Add(k, gain)"],
        [
            "d = Sub(x, m)",
            "r = Sqrt(e)",
            "i = Reciprocal(r)",
            "f = Mul(i, gain)",
            "n = Mul(d, f)",
            "y = Add(n, gain)",
        ],
    ],
)
def test_a_variance_of_moments_is_fused_on_demand(bounded, tail):
    lines = [*MOMENTS, *bounded, "e = Add(v, eps)", *tail]
    constants = {"gain": GAIN, "eps": np.float32(1e-3)}
    pipeline = "eliminate-identity,fuse-normalization"
    _, _, model = run(lines, pipeline, constants=constants)
    assert "LayerNormalization" not in [node.op_type for node in model.graph]
    result = optimize(model, "fuse-normalization")
    assert "see the option 'cancellation'" in str(
        [each.reason for each in result.report.records[0].left_alone]
    )
    _, _, model = run(lines, pipeline + "{cancellation=true}", constants=constants, check=False)
    assert [node.op_type for node in model.graph] == ["LayerNormalization"]
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    centered = x - x.mean(-1, keepdims=True)
    expected = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-3) * GAIN + GAIN
    np.testing.assert_allclose(run_reference(model, {"x": x})["y"], expected, rtol=1e-4, atol=1e-5)


def test_half_precision_between_casts_is_stashed():
    lines = ["f = Cast <to = 1> (x)", "s = Pow(f, wide)", "v = ReduceMean <keepdims = 1> (s, last)", "e = Add(v, wideeps)",
             "r = Sqrt(e)", "n = Div(f, r)", "h = Cast <to = 10> (n)", "y = Mul(h, gain)"]  # fmt: skip
    constants = {"wide": np.float32(2), "wideeps": np.float32(1e-3), "gain": GAIN.astype(np.float16)}
    ops, _, model = run(lines, "fuse-normalization", dtype=np.float16, constants=constants)
    assert ops == ["RMSNormalization"] and model.graph[0].inputs[1].dtype == ir.DataType.FLOAT16
    scaled = [*lines[:6], "k = Mul(n, gain)", "y = Cast <to = 10> (k)"]
    ops, record, _ = run(
        scaled, "fuse-normalization", dtype=np.float16, constants={**constants, "gain": GAIN}
    )
    assert ops == ["Cast", "RMSNormalization", "Cast"]
    assert any("applied before the cast" in left.reason for left in record.left_alone)


def test_scales_that_vary_elsewhere_and_inner_readers_are_left_alone():
    lines = norm("last", tail=("y = Mul(n, gain)",))
    gain = np.arange(3, dtype=np.float32).reshape(3, 1)
    ops, record, _ = run(lines, "fuse-normalization", constants={"gain": gain})
    assert ops == ["LayerNormalization", "Mul"]
    assert "is not one over the normalized axes" in record.left_alone[0].reason
    assert not run(norm("last"), "fuse-normalization", readers=("d",))[1].changed
    assert not run(norm("last"), "fuse-normalization", readers=("v",))[1].changed


def test_instance_norm_of_images():
    gain = np.array([1.0, 2.0, -3.0], np.float32).reshape(3, 1, 1)
    lines = norm("image", tail=("k = Mul(gain, n)", "y = Add(k, gain)"))
    ops, _, model = run(
        lines, "fuse-normalization,fuse-group-norm", shape=(2, 3, 4, 5), constants={"gain": gain}
    )
    assert ops == ["InstanceNormalization"]
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == [1.0, 2.0, -3.0]
    over_image = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    lines = norm("image", tail=("y = Mul(over, n)",))
    constants = {"over": over_image}
    pipeline = "fuse-normalization,fuse-group-norm,fuse-normalization"
    assert run(lines, pipeline, shape=(2, 3, 4, 5), constants=constants)[0] == ["LayerNormalization"]


GROUPED = {
    "grouping": [0, 2, -1],
    "shape": [2, 4, 3, 5],
    "ones": np.ones(2, np.float32),
    "zeros": np.zeros(2, np.float32),
}


def test_group_norm_by_instance_norm_between_reshapes():
    lines = ["g0 = Reshape(x, grouping)", "n = InstanceNormalization <epsilon = 0.001> (g0, gains, zeros)", "b = Reshape(n, shape)",
             "k = Mul(b, weight)", "y = Add(weight, k)"]  # fmt: skip
    weight = np.array([1.0, 2.0, -3.0, 0.5], np.float32).reshape(4, 1, 1)
    constants = {**GROUPED, "weight": weight, "gains": np.array([1.0, 2.0], np.float32)}
    ops, _, model = run(lines, "fuse-group-norm", shape=(2, 4, 3, 5), constants=constants)
    assert ops == ["GroupNormalization"] and model.graph[0].attributes.get_int("num_groups") == 2
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == [1.0, 2.0, -6.0, 1.0]


def test_group_norm_of_parts():
    inner = [line.replace("(x", "(g0") for line in norm("third", tail=())]
    lines = ["g0 = Reshape(x, grouping)", *inner, "y = Reshape(n, shape)"]
    pipeline = "fuse-normalization,fuse-group-norm"
    assert run(lines, pipeline, shape=(2, 4, 3, 5), constants=GROUPED)[0] == ["GroupNormalization"]


def test_other_reshapes_are_no_groups():
    lines = [
        "g0 = Reshape(x, grouping)",
        "n = InstanceNormalization(g0, ones, zeros)",
        "y = Reshape(n, shape)",
    ]
    for change in ({"shape": [2, 4, 5, 3]}, {"grouping": [4, 2, -1]}):
        constants = {**GROUPED, **change}
        assert not run(lines, "fuse-group-norm", shape=(2, 4, 3, 5), constants=constants)[1].changed
    per_pixel = {**GROUPED, "weight": np.ones((3, 5), np.float32)}
    ops, record, _ = run(
        [*lines[:2], "b = Reshape(n, shape)", "y = Mul(b, weight)"],
        "fuse-group-norm",
        shape=(2, 4, 3, 5),
        constants=per_pixel,
    )
    assert ops == ["GroupNormalization", "Mul"]
    assert "has not one number per channel" in record.left_alone[0].reason
