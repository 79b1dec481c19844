"""Fusions into functions: gates, convolutions and products with what follows, squeeze-and-excitation.

Positive cases are proven against ONNX Runtime without optimizations, on random and edge-case inputs.
"""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.account import account
from graphwright.ir.load import load
from graphwright.ir.reference import run_reference
from graphwright.ir.save import save
from graphwright.ir.shapes import infer_shapes
from graphwright.ir.verify import verify
from graphwright.passes.optimize import optimize
from hypothesis import given, settings
from hypothesis import strategies as st

ALL = "fuse-activation,fuse-gemm,fuse-swish,fuse-squeeze-excite,fuse-conv-activation,eliminate-dead"


def weights(*shape, seed=0):
    fan = max(int(np.prod(shape[1:])), 1)
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(fan)).astype(np.float32)


def model_of(lines, shape, constants, outputs=("y",)):
    names = ", ".join(f"float {name}" for name in constants)
    header = f"float[{','.join(map(str, shape))}] x" + (f", {names}" if names else "")
    results = ", ".join(f"float {name}" for name in outputs)
    body = "\n".join(lines)
    model = ir.from_onnx_text(
        f'<ir_version: 11, opset_import: ["" : 23]>\ng ({header}) => ({results}) {{\n{body}\n}}'
    )
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    for value in list(model.graph.inputs)[1:]:
        tensor = ir.tensor(np.asarray(constants[value.name]), name=value.name)
        model.graph.inputs.remove(value)
        value.const_value, value.shape, value.type = (
            tensor,
            ir.Shape(tensor.shape),
            ir.TensorType(tensor.dtype),
        )
        model.graph.register_initializer(value)
    for value in model.graph.outputs:
        value.shape = None
    infer_shapes(model)
    return model


def run(lines, pipeline, *, shape=(1, 4, 8, 8), constants=None, outputs=("y",)):
    """Apply a pipeline and prove it; returns the operator types, the first record and the model."""
    result = optimize(model_of(lines, shape, constants or {}, outputs), pipeline, check_each=True)
    infer_shapes(result.model)
    verify(result.model)
    return [node.op_type for node in result.model.graph], result.report.records[0], result.model


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["s = Sigmoid(x)", "y = Mul(x, s)"], ["Swish"]),
        (["s = Sigmoid(x)", "y = Mul(s, x)"], ["Swish"]),
        (["n = Neg(x)", "e = Exp(n)", "p = Add(e, one)", "g = Reciprocal(p)", "y = Mul(g, x)"], ["Swish"]),
        (["a = Mul(x, quick)", "s = Sigmoid(a)", "y = Mul(s, x)"], ["QuickGelu"]),
        (["r = Neg(x)", "s = Sigmoid(r)", "y = Mul(s, r)"], ["Neg", "Swish"]),
    ],
)
def test_gates_become_calls(lines, expected):
    constants = {"quick": np.float32(1.702), "one": np.float32(1)}
    used = {name: value for name, value in constants.items() if any(name in line for line in lines)}
    ops, _, model = run(lines, "fuse-activation,fuse-swish", constants=used)
    assert ops == expected
    if expected == ["QuickGelu"]:
        assert model.graph[0].attributes.get_float("alpha") == pytest.approx(1.702)


@pytest.mark.parametrize(
    "lines",
    [
        ["r = Relu(x)", "s = Sigmoid(x)", "y = Mul(r, s)"],
        ["a = Add(x, one)", "s = Sigmoid(a)", "y = Mul(x, s)"],
        ["s = Sigmoid(x)", "p = Mul(x, s)", "y = Add(p, s)"],
        ["s = Sigmoid(x)", "p = Add(s, one)", "y = Mul(x, p)"],
    ],
)
def test_other_gates_are_left_alone(lines):
    used = {"one": np.float32(1)} if any("one" in line for line in lines) else {}
    assert not run(lines, "fuse-swish", constants=used)[1].changed


CONV = ["c = Conv <pads = [1, 1, 1, 1], strides = [2, 2], dilations = [1, 1], group = 2> (x, w, b)"]
PARAMETERS = {"w": weights(6, 2, 3, 3), "b": weights(6, seed=1)}
FOLLOWERS = {
    "Relu": ["y = Relu({c})"],
    "Sigmoid": ["y = Sigmoid({c})"],
    "Tanh": ["y = Tanh({c})"],
    "LeakyRelu": ["y = LeakyRelu <alpha = 0.3> ({c})"],
    "Elu": ["y = Elu({c})"],
    "HardSwish": ["y = HardSwish({c})"],
    "HardSigmoid": ["y = HardSigmoid <beta = 0.25> ({c})"],
    "Mish": ["y = Mish({c})"],
    "Gelu": ['y = Gelu <approximate = "tanh"> ({c})'],
    "Clip": ["y = Clip({c}, low, high)"],
    "PRelu": ["y = PRelu({c}, slope)"],
    "Swish": ["s = Sigmoid({c})", "y = Mul({c}, s)"],
    "QuickGelu": ["a = Mul({c}, quick)", "s = Sigmoid(a)", "y = Mul({c}, s)"],
}
EXTRAS = {
    "low": np.float32(-0.5), "high": np.float32(0.5), "slope": weights(6, 1, 1, seed=2), "quick": np.float32(1.702),
}  # fmt: skip


def extras(lines):
    return {name: value for name, value in EXTRAS.items() if any(name in line for line in lines)}


@pytest.mark.parametrize("name", FOLLOWERS)
def test_a_convolution_takes_each_activation(name):
    lines = [*CONV, *(line.format(c="c") for line in FOLLOWERS[name])]
    ops, _, model = run(lines, ALL, constants={**PARAMETERS, **extras(lines)})
    assert ops == [f"Conv{name}"]
    assert [key[1] for key in model.functions] == [f"Conv{name}"]
    assert account(model).macs == 6 * 16 * 2 * 9


@pytest.mark.parametrize("name", ["Relu", "Swish", "Clip", "QuickGelu"])
@pytest.mark.parametrize("order", ["c, z", "z, c"])
def test_a_residual_sum_in_between(name, order):
    lines = [
        "z = AveragePool <kernel_shape = [1, 1]> (x)",
        "c = Conv <pads = [1, 1, 1, 1]> (x, w)",
        f"t = Add({order})",
    ]
    lines += [line.format(c="t") for line in FOLLOWERS[name]]
    ops, _, _ = run(lines, ALL, constants={"w": weights(4, 4, 3, 3), **extras(lines)})
    assert ops == ["AveragePool", f"ConvAdd{name}"]


@pytest.mark.parametrize(
    ("lines", "shape", "expected"),
    [
        (["c = ConvTranspose <strides = [2, 2], output_padding = [1, 1]> (x, t)", "y = Relu(c)"], (1, 4, 5, 5), "ConvTransposeRelu"),
        (['c = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)', "y = Relu(c)"], (1, 4, 7, 8), "ConvRelu"),
        (['c = Conv <auto_pad = "SAME_LOWER", strides = [2, 3]> (x, w)', "y = Relu(c)"], (1, 4, 9, 8), "ConvRelu"),
        (['c = Conv <auto_pad = "VALID"> (x, w)', "y = Relu(c)"], (1, 4, 7, 8), "ConvRelu"),
        (["c = Conv(x, line)", "y = Relu(c)"], (1, 4, 9), "ConvRelu"),
        (["c = Gemm <transB = 1, alpha = 0.5> (x, m, b)", "y = Relu(c)"], (3, 4), "GemmRelu"),
        (["c = MatMul(x, n)", "d = Add(b, c)", "y = Gelu(d)"], (2, 3, 4), "MatMulAddGelu"),
        (["c = MatMul(x, n)", "d = Add(c, b)", "y = Relu(d)"], (3, 4), "GemmRelu"),
        (["c = MatMul(x, n)", "y = Tanh(c)"], (2, 3, 4), "MatMulTanh"),
        (["c = Conv(x, w)", "d = Conv(x, w)", "s = Sum(c, d)", "y = Relu(s)"], (1, 4, 5, 5), "ConvAddRelu"),
    ],
)  # fmt: skip
def test_other_anchors_and_padding_by_name(lines, shape, expected):
    stored = {"w": weights(6, 4, 3, 2), "t": weights(4, 3, 3, 3), "line": weights(5, 4, 3), "m": weights(6, 4),
              "n": weights(4, 6), "b": weights(6)}  # fmt: skip
    constants = {
        name: value
        for name, value in stored.items()
        if any(f" {name})" in line or f" {name}," in line or f"({name}," in line for line in lines)
    }
    assert run(lines, ALL, shape=shape, constants=constants)[0][-1] == expected


@pytest.mark.parametrize(
    ("lines", "outputs", "reason"),
    [
        ([*CONV, "y = Relu(c)", "z = Neg(c)"], ("y", "z"), "'c' has other readers"),
        ([*CONV, "y = Relu(c)"], ("y", "c"), "'c' has other readers"),
        ([*CONV, "t = Add(c, z)", "y = Relu(t)"], ("y", "t"), "'t' has other readers"),
        ([*CONV, "t = Add(c, wide)", "y = Relu(t)"], ("y",), "what is added broadcasts the product"),
    ],
)
def test_shared_values_and_broadcasts_are_left_alone_with_a_reason(lines, outputs, reason):
    constants = {**PARAMETERS, "z": weights(1, 6, 4, 4), "wide": weights(3, 6, 4, 4)}
    used = {name: value for name, value in constants.items() if any(f", {name}" in line for line in lines)}
    _, record, _ = run(lines, "fuse-conv-activation", constants=used, outputs=outputs)
    assert not record.changed
    assert reason in record.left_alone[0].reason


def test_padding_that_depends_on_an_unknown_size_is_left_alone():
    model = model_of(
        ['c = Conv <auto_pad = "SAME_UPPER"> (x, w)', "y = Relu(c)"],
        (1, 4, "h", 8),
        {"w": weights(6, 4, 3, 2)},
    )
    record = optimize(model, "fuse-conv-activation").report.records[0]
    assert not record.changed and "a size that its padding depends on" in record.left_alone[0].reason


def test_activations_in_bodies_stay_with_them_and_fuse_inside():
    text = """<ir_version: 11, opset_import: ["" : 23]>
    g (float[1,4,8,8] x, bool c, float[4,4,1,1] w) => (float[1,4,8,8] y) {
        o = Conv(x, w)
        y = If (c) <then_branch = t () => (float[1,4,8,8] a) { i = Conv(x, w)
                                                              a = Relu(i) },
                    else_branch = e () => (float[1,4,8,8] b) { b = Relu(o) }>
    }"""
    model = ir.from_onnx_text(text)
    names = iter(range(100))
    for node in model.graph.all_nodes():
        node.name = f"n{next(names)}"
    infer_shapes(model)
    result = optimize(model, "fuse-conv-activation", check_each=True).model
    assert sorted(node.op_type for node in result.graph.all_nodes()) == ["Conv", "ConvRelu", "If", "Relu"]
    for flag in (True, False):
        feeds = {"x": weights(1, 4, 8, 8), "c": np.array(flag), "w": weights(4, 4, 1, 1, seed=3)}
        np.testing.assert_allclose(run_reference(result, feeds)["y"], run_reference(model, feeds)["y"], 1e-5)


def test_the_file_runs_anywhere_and_fuses_no_further(tmp_path):
    lines = [*CONV, *(line.format(c="c") for line in FOLLOWERS["Swish"])]
    model = run(lines, ALL, constants=PARAMETERS)[2]
    save(model, tmp_path / "m.onnx")
    import onnx
    import onnx.reference

    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"), full_check=True)
    feeds = {"x": weights(1, 4, 8, 8)}
    expected = run_reference(model, feeds)["y"]
    (got,) = onnx.reference.ReferenceEvaluator(str(tmp_path / "m.onnx")).run(None, feeds)
    np.testing.assert_allclose(got, expected, 1e-5, 1e-6)
    again = optimize(load(tmp_path / "m.onnx"), ALL)
    assert not any(record.changed for record in again.report.records)


EXCITE = {
    "w1": weights(2, 4, 1, 1),
    "b1": weights(2),
    "w2": weights(4, 2, 1, 1, seed=1),
    "b2": weights(4, seed=2),
}
MEANS = ["p = GlobalAveragePool(x)", "p = ReduceMean <keepdims = 1> (x, axes)"]


def excite(mean, inner=("h = Relu(a)",), gate=("g = Sigmoid(s)",), product="y = Mul(x, g)"):
    return [mean, "a = Conv(p, w1, b1)", *inner, "s = Conv(h, w2, b2)", *gate, product]


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (excite(MEANS[0]), "ReluSigmoid"),
        (excite(MEANS[1], product="y = Mul(g, x)"), "ReluSigmoid"),
        (excite(MEANS[1], gate=("g = HardSigmoid <alpha = 0.16666667> (s)",)), "ReluHardSigmoid"),
        (excite(MEANS[0], inner=("q = Sigmoid(a)", "h = Mul(a, q)")), "SwishSigmoid"),
        (excite(MEANS[0], inner=("f = Mul(a, quick)", "q = Sigmoid(f)", "h = Mul(a, q)"), gate=("k = Tanh(s)", "g = Identity(k)")), None),
        (excite(MEANS[0], inner=("f = Mul(a, quick)", "q = Sigmoid(f)", "h = Mul(a, q)")), "QuickGeluSigmoid"),
        (excite(MEANS[0], gate=("g = Clip(s, low, high)",)), "ReluClip"),
    ],
)  # fmt: skip
def test_squeeze_excite_by_convolutions(lines, name):
    constants = {**EXCITE, **extras(lines)} | ({"axes": np.array([-1, 2])} if "axes" in lines[0] else {})
    pipeline = "fuse-swish,fuse-squeeze-excite,eliminate-dead"
    ops, _, model = run(lines, pipeline, constants=constants)
    assert (ops == [f"SqueezeExcite{name}"]) is (name is not None)
    if name:
        assert account(model).macs == 16


@pytest.mark.parametrize(
    ("mean", "unflatten"),
    [
        (["p0 = GlobalAveragePool(x)", "p = Flatten(p0)"], "g = Reshape(k, shape)"),
        (["p = ReduceMean <keepdims = 0> (x, axes)"], "g = Unsqueeze(k, axes)"),
        (["p0 = GlobalAveragePool(x)", "p = Squeeze(p0, axes)"], "g = Reshape(k, shape)"),
    ],
)
@pytest.mark.parametrize("transposed", [0, 1])
def test_squeeze_excite_by_products(mean, unflatten, transposed):
    lines = [
        *mean,
        f"a = Gemm <transB = {transposed}> (p, w1, b1)",
        "h = Relu(a)",
        "s = Gemm(h, w2)",
        "k = Sigmoid(s)",
        unflatten,
        "y = Mul(x, g)",
    ]
    constants = {
        "w1": weights(*((2, 4) if transposed else (4, 2))),
        "b1": weights(2),
        "w2": weights(2, 4, seed=1),
    }
    if any("axes" in line for line in lines):
        constants["axes"] = np.array([2, 3])
    if "shape" in unflatten:
        constants["shape"] = np.array([3, 4, 1, 1])
    ops, _, _ = run(lines, "fuse-squeeze-excite", shape=(3, 4, 5, 5), constants=constants)
    assert ops == ["SqueezeExciteGemmReluSigmoid"]


def test_squeeze_excite_by_products_without_bias():
    lines = [
        "p = ReduceMean <keepdims = 0> (x, axes)",
        "a = MatMul(p, w1)",
        "h = Relu(a)",
        "s = MatMul(h, w2)",
    ]
    lines += ["k = Sigmoid(s)", "g = Reshape(k, shape)", "y = Mul(x, g)"]
    constants = {"w1": weights(4, 2), "w2": weights(2, 4, seed=1), "axes": np.array([2, 3])}
    constants["shape"] = np.array([3, 4, 1, 1])
    ops, _, _ = run(lines, "fuse-squeeze-excite", shape=(3, 4, 5, 5), constants=constants)
    assert ops == ["SqueezeExciteGemmReluSigmoid"]


def test_a_gate_whose_shift_went_into_the_convolution():
    gate = ("t = Add(s, three)", "c = Clip(t, zero, six)", "g = Div(c, six)")
    numbers = {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)}
    constants = {**EXCITE, **numbers, "axes": np.array([2, 3])}
    pipeline = f"fold-batch-norm,{ALL}"
    ops, _, _ = run(excite(MEANS[1], gate=gate), pipeline, constants=constants)
    assert ops == ["SqueezeExciteReluHardSigmoid"]


@pytest.mark.parametrize(
    ("lines", "change", "outputs", "reason"),
    [
        (excite(MEANS[1]), {"axes": np.array([1, 2])}, ("y",), None),
        (excite(MEANS[0]), {}, ("y", "g"), "'g' has other readers"),
        (excite(MEANS[0]), {}, ("y", "p"), "'p' has other readers"),
        (["n = Neg(x)", *excite("p = GlobalAveragePool(n)")], {}, ("y",), None),
        (excite(MEANS[0]), {"w1": weights(2, 2, 1, 1), "group": 2}, ("y",), "is grouped"),
    ],
)
def test_what_is_no_squeeze_excite_is_left_alone(lines, change, outputs, reason):
    change = dict(change)
    if change.pop("group", None):
        lines = [line.replace("Conv(p", "Conv <group = 2> (p") for line in lines]
    if "axes" in change:
        change |= {"w1": weights(2, 1, 1, 1), "w2": weights(1, 2, 1, 1), "b2": weights(1)}
        lines = [
            line.replace("Conv(p", "Conv(p1").replace(MEANS[1], "p0 = ReduceMean <keepdims = 1> (x, axes)")
            for line in lines
        ]
        lines.insert(1, "p1 = ReduceMean <keepdims = 1> (p0, last)")
        change["last"] = np.array([3])
    _, record, _ = run(lines, "fuse-squeeze-excite", constants={**EXCITE, **change}, outputs=outputs)
    assert not record.changed
    if reason:
        assert any(reason in left.reason for left in record.left_alone)


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_random_networks_keep_their_numbers(data):
    """Chains of layers with random activations, sums and shared values: always the same function."""
    lines, values, constants = [], ["x"], {}
    for i in range(data.draw(st.integers(1, 4))):
        source = data.draw(st.sampled_from(values))
        constants[f"w{i}"] = weights(4, 4, 1, 1, seed=i)
        lines.append(f"c{i} = Conv({source}, w{i})")
        current = f"c{i}"
        if data.draw(st.booleans()):
            lines.append(f"t{i} = Add({current}, {data.draw(st.sampled_from(values))})")
            current = f"t{i}"
        name = data.draw(st.sampled_from(["Relu", "Swish", "Tanh", "HardSwish", "LeakyRelu"]))
        for line in FOLLOWERS[name]:
            lines.append(
                line.format(c=current)
                .replace("y =", f"v{i} =")
                .replace("s =", f"s{i} =")
                .replace(", s)", f", s{i})")
            )
        values += [f"v{i}"] + ([current] if data.draw(st.booleans()) else [])
    lines.append(f"y = Identity({values[-1]})")
    run(lines, ALL, constants=constants)


LENGTHS = {
    "norm": ["n = ReduceL2 <keepdims = 1> (x, axes)"],
    "squares": ["q = Mul(x, x)", "s = ReduceSum <keepdims = 1> (q, axes)", "n = Sqrt(s)"],
    "sum of squares": ["s = ReduceSumSquare <keepdims = 1> (x, axes)", "n = Sqrt(s)"],
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    "tail", [["c = Clip(n, eps)", "y = Div(x, c)"], ["c = Max(eps, n)", "y = Div(x, c)"], ["y = Div(x, n)"]]
)
def test_l2_normalization_in_each_spelling(length, tail):
    constants = {"axes": np.array([1]), **({"eps": np.float32(1e-12)} if "eps" in tail[0] else {})}
    ops, _, model = run([*LENGTHS[length], *tail], "fuse-l2-normalization", constants=constants)
    assert ops == ["L2Normalization"]
    assert model.graph[0].attributes.get_float("epsilon", 0.0) == pytest.approx(
        1e-12 if "eps" in tail[0] else 0.0
    )


@pytest.mark.parametrize(
    "lines",
    [
        ["a = Relu(x)", "n = ReduceL2 <keepdims = 1> (a, axes)", "y = Div(x, n)"],
        ["n = ReduceL1 <keepdims = 1> (x, axes)", "y = Div(x, n)"],
        ["n = ReduceL2 <keepdims = 1> (x, axes)", "z = Div(x, n)", "y = Add(z, n)"],
    ],
)
def test_other_quotients_are_left_alone(lines):
    assert not run(lines, "fuse-l2-normalization", constants={"axes": np.array([1])})[1].changed
