"""Element-wise operators: polynomials against float64, every operator against the reference."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.backends.target import host_target

# Operator, attributes, input types: a signature per group of operators keeps the number of builds small.
UNARY = [
    "Abs",
    "Neg",
    "Relu",
    "Sigmoid",
    "Tanh",
    "Exp",
    "Erf",
    "Softplus",
    "Softsign",
    "Sqrt_abs",
    "Log_abs",
    "Floor",
    "Ceil",
    "Round",
    "Sign",
    "Reciprocal",
    "HardSigmoid",
    "HardSwish",
    "Elu",
    "Selu",
    "Celu",
    "Gelu",
    "Mish",
    "Sin",
    "Cos",
    "Tan",
    "Asin_unit",
    "Acos_unit",
    "Atan",
    "Sinh",
    "Cosh",
    "Asinh",
    "Atanh_unit",
    "LeakyRelu",
    "ThresholdedRelu",
    "Shrink",
    "Swish",
]
BINARY = ["Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu", "Mean", "Sum"]
COMPARE = ["Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"]
INTEGER = ["Add", "Sub", "Mul", "Div", "Max", "Min", "Mod", "BitwiseAnd", "BitwiseOr", "BitwiseXor"]


def graph(nodes: list[str], inputs: str, outputs: str, opset: int = 23) -> ir.Model:
    body = "\n".join(nodes)
    return ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : {opset}]>\ng ({inputs}) => ({outputs}) {{\n{body}\n}}'
    )


def assert_close(outputs, expected, relative=2e-6):
    assert outputs.keys() == expected.keys()
    for name, wanted in expected.items():
        given = outputs[name]
        assert given.dtype == wanted.dtype and given.shape == wanted.shape, name
        if wanted.dtype.kind != "f":
            assert np.array_equal(given, wanted), name
            continue
        scale = max(1.0, float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0)))
        assert np.allclose(given, wanted, rtol=1e-4, atol=relative * scale, equal_nan=True), name


def test_unary_operators(through_tvm):
    nodes, outputs = [], []
    for word in UNARY:
        op, _, domain = word.partition("_")
        source = {"": "x", "abs": "positive", "unit": "unit"}[domain]
        nodes.append(f"{op.lower()} = {op}({source})")
        outputs.append(f"float[5,37] {op.lower()}")
    model = graph(
        nodes, "float[5,37] x, float[5,37] positive, float[5,37] unit", ", ".join(outputs), opset=24
    )
    generator = np.random.default_rng(1)
    x = (generator.standard_normal((5, 37)) * 4).astype(np.float32)
    x[0, :4] = [0.0, 1.5, -2.5, 30.0]
    feeds = {"x": x, "positive": np.abs(x) + 0.01, "unit": np.tanh(x / 8).astype(np.float32)}
    outputs, expected, _ = through_tvm(model, feeds)
    assert_close(outputs, expected)


def test_operators_of_two_operands_broadcast(through_tvm):
    shapes = {"a": (4, 3, 17), "b": (3, 1)}
    nodes = [f"{op.lower()} = {op}(a, b)" for op in [*BINARY, *COMPARE]]
    outputs = [f"float[4,3,17] {op.lower()}" for op in BINARY] + [
        f"bool[4,3,17] {op.lower()}" for op in COMPARE
    ]
    model = graph(nodes, "float[4,3,17] a, float[3,1] b", ", ".join(outputs))
    generator = np.random.default_rng(2)
    feeds = {
        name: generator.integers(-3, 4, shape).astype(np.float32) + 0.5 for name, shape in shapes.items()
    }
    outputs, expected, _ = through_tvm(model, feeds)
    assert_close(outputs, expected)


@pytest.mark.parametrize("kind", ["int64"])
def test_integer_operators(through_tvm, kind):
    nodes = [f"{op.lower()} = {op}(a, b)" for op in INTEGER] + [
        "fmod = Mod<fmod = 1>(a, b)",
        "p = Pow(a, two)",
    ]
    names = [op.lower() for op in INTEGER] + ["fmod", "p"]
    outputs = ", ".join(f"{kind}[6,11] {name}" for name in names)
    constant = f"two = Constant<value = {kind}[1] {{2}}>()"
    model = graph([constant, *nodes], f"{kind}[6,11] a, {kind}[6,11] b", outputs)
    generator = np.random.default_rng(3)
    a = generator.integers(-20, 20, (6, 11)).astype(kind)
    b = generator.integers(1, 6, (6, 11)).astype(kind) * np.where(
        generator.random((6, 11)) < 0.5, -1, 1
    ).astype(kind)
    outputs, expected, _ = through_tvm(model, {"a": a, "b": b})
    assert_close(outputs, expected)


def test_truth_values_casts_and_selection(through_tvm):
    nodes = [
        "p = Greater(x, y)",
        "q = Less(x, z)",
        "conjunction = And(p, q)",
        "disjunction = Or(p, q)",
        "exclusive = Xor(p, q)",
        "negation = Not(p)",
        "same = Equal(p, q)",
        "chosen = Where(p, x, y)",
        "whole = Cast<to = 6>(x)",
        "byte = Cast<to = 2>(w)",
        "double = Cast<to = 11>(x)",
        "half = Cast<to = 10>(x)",
        "back = Cast<to = 1>(p)",
        "nan = IsNaN(w)",
        "infinite = IsInf(w)",
        "positive = IsInf<detect_negative = 0>(w)",
    ]
    names = ["conjunction", "disjunction", "exclusive", "negation", "same", "nan", "infinite", "positive"]
    outputs = [f"bool[7,9] {name}" for name in names]
    outputs += [
        "float[7,9] chosen",
        "int32[7,9] whole",
        "double[7,9] double",
        "float16[7,9] half",
        "float[7,9] back",
    ]
    model = graph(nodes, ", ".join(f"float[7,9] {name}" for name in "xyzw"), ", ".join(outputs))
    generator = np.random.default_rng(4)
    feeds = {name: generator.standard_normal((7, 9)).astype(np.float32) * 3 for name in "xyzw"}
    feeds["w"][0, :3] = [np.inf, -np.inf, np.nan]
    outputs, expected, _ = through_tvm(model, feeds)
    assert_close(outputs, expected)


def test_integers_made_of_truth_values_are_reduced(through_tvm):
    nodes = [
        "p = Greater(x, y)",
        "n = Cast<to = 7>(p)",
        "rows = ReduceMax<keepdims = 0>(n, last)",
        "any = Cast<to = 9>(rows)",
        "columns = ReduceSum<keepdims = 0>(n, first)",
    ]
    nodes = ["last = Constant<value_ints = [-1]>()", "first = Constant<value_ints = [0]>()", *nodes]
    model = graph(nodes, "float[5,21] x, float[5,21] y", "bool[5] any, int64[21] columns")
    generator = np.random.default_rng(6)
    feeds = {name: generator.standard_normal((5, 21)).astype(np.float32) for name in "xy"}
    feeds["x"][2] = -9
    outputs, expected, _ = through_tvm(model, feeds)
    assert_close(outputs, expected)


def test_clip_powers_and_quantization(through_tvm):
    model = graph(
        [
            "low = Constant<value = float {-0.5}>()",
            "high = Constant<value = float {1.5}>()",
            "clipped = Clip(x, low, high)",
            "only_high = Clip(x, , high)",
            *[f"e{i} = Constant<value = float {{{e}}}>()" for i, e in enumerate((2.0, 3.0, 0.5, -1.0, 1.7))],
            "square = Pow(x, e0)",
            "cube = Pow(x, e1)",
            "root = Pow(positive, e2)",
            "inverse = Pow(positive, e3)",
            "power = Pow(positive, e4)",
            "scales = Constant<value = float[3] {0.02, 0.1, 0.3}>()",
            "zeros = Constant<value = uint8[3] {128, 0, 255}>()",
            "q = QuantizeLinear<axis = 1>(x, scales, zeros)",
            "d = DequantizeLinear<axis = 1>(q, scales, zeros)",
        ],
        "float[2,3,19] x, float[2,3,19] positive",
        ", ".join(
            f"float[2,3,19] {n}"
            for n in ["clipped", "only_high", "square", "cube", "root", "inverse", "power", "d"]
        )
        + ", uint8[2,3,19] q",
    )
    generator = np.random.default_rng(5)
    x = generator.standard_normal((2, 3, 19)).astype(np.float32) * 2
    outputs, expected, _ = through_tvm(model, {"x": x, "positive": np.abs(x) + 0.1})
    assert_close(outputs, expected)


def evaluated(function, x: np.ndarray) -> np.ndarray:
    """A TIR expression of one variable, compiled and applied to every element."""
    import tvm
    from graphwright.backends.tvm import loops

    source, target = (loops.buffer(x.shape, "float32", name) for name in "xy")
    body = loops.nest(
        [loops.Axis(x.shape[0])],
        16,
        loops.elements(lambda at: loops.store(target, function(source[at]), at)),
        loops.Machine(512, 1),
    )
    func = loops.function([source, target], body).with_attr("global_symbol", "apply")
    library = tvm.tirx.build(func, target=tvm.target.Target(host_target().to_tvm()))
    result = tvm.runtime.tensor(np.zeros_like(x))
    library["apply"](tvm.runtime.tensor(x), result)
    return result.numpy()


@pytest.mark.parametrize("name", ["exp", "tanh", "sigmoid", "erf", "sinh", "cosh", "asinh", "softplus"])
def test_polynomials_are_close_to_the_exact_functions(name):
    import math

    from graphwright.backends.tvm import approximations

    exact = {
        "exp": np.exp,
        "tanh": np.tanh,
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
        "erf": np.vectorize(math.erf),
        "sinh": np.sinh,
        "cosh": np.cosh,
        "asinh": np.arcsinh,
        "softplus": lambda x: np.logaddexp(0, x),
    }[name]
    x = np.concatenate([np.linspace(-80, 80, 4001), np.linspace(-1, 1, 2001), [1e-6, -1e-6, 0]]).astype(
        np.float32
    )
    given = evaluated(getattr(approximations, name), x)
    wanted = exact(x.astype(np.float64))
    error = np.abs(given - wanted) / np.maximum(np.abs(wanted), 1e-6)
    assert error.max() < 2e-6


def test_exp_keeps_infinities_nan_and_underflow():
    from graphwright.backends.tvm import approximations

    x = np.array([np.inf, -np.inf, np.nan, 200, -200, -95, 88.7, 0] * 2, np.float32)
    with np.errstate(over="ignore"):
        wanted = np.exp(x)
    assert np.allclose(evaluated(approximations.exp, x), wanted, rtol=1e-5, equal_nan=True)


def test_sigmoid_saturates_and_leaves_nothing_of_large_negative_numbers():
    from graphwright.backends.tvm import approximations

    x = np.array([np.inf, -np.inf, np.nan, 1e38, -1e38, -88.5, 88.5, 0] * 2, np.float32)
    given = evaluated(approximations.sigmoid, x)
    assert np.allclose(given, [1, 0, np.nan, 1, 0, 0, 1, 0.5] * 2, rtol=1e-6, atol=1e-37, equal_nan=True)
    assert given[4] == 0  # x * sigmoid(x) is zero there, too


def test_falling_exp_is_close_and_makes_no_denormal_numbers():
    from graphwright.backends.tvm import approximations

    x = np.concatenate([np.linspace(-120, 0, 4001), [-np.inf, np.nan, -0.0, -87, -1e-6]]).astype(np.float32)
    given = evaluated(approximations.falling_exp, x)
    wanted = np.where(x < -87, 0, np.exp(x.astype(np.float64)))
    assert np.allclose(given, wanted, rtol=2e-6, atol=0, equal_nan=True)
    assert np.nanmin(given[given != 0]) > np.finfo(np.float32).tiny
