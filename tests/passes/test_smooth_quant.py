"""SmoothQuant and AWQ: factors that move between activations and weights, and what they gain."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.constants import constant_array
from graphwright.ir.errors import PassError
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import Reference
from graphwright.passes.equivalence import check_equivalent
from graphwright.passes.optimize import optimize
from graphwright.passes.quantization.repair.smoothing import best_strength
from graphwright.passes.smooth_quant import smoothing


def transformer(network, pre_norm=True, norm="LayerNormalization", split_norm=False, gated=False):
    """One block of width 16 with four outlier channels where normalizations make them."""
    net = network(5)
    width = 16
    outliers = np.ones(width, np.float32)
    outliers[[1, 5, 6, 11]] = (60, 90, 40, 120)
    x = net.input("n", 6, width)

    def normalized(value):
        shift = net.constant((0.1 * net.rng.standard_normal(width)).astype(np.float32) * outliers)
        if split_norm:
            ones = net.constant(np.ones(width, np.float32))
            plain = net.op("LayerNormalization", value, ones, axis=-1)
            return net.op("Add", net.op("Mul", plain, net.constant(outliers)), shift)
        operands = [net.constant(outliers)] + ([shift] if norm == "LayerNormalization" else [])
        return net.op(norm, value, *operands, axis=-1)

    def read(value, channels):
        # As in trained models: what reads the outliers weighs them less.
        weight = net.rng.standard_normal((width, channels)).astype(np.float32) / outliers[:, None]
        return net.op("Add", net.op("MatMul", value, net.constant(weight)), net.weight(channels))

    def heads(value):
        return net.op("Transpose", net.op("Reshape", value, net.ints(0, 6, 4, 4)), perm=[0, 2, 1, 3])

    y = normalized(x) if pre_norm else net.op("Add", normalized(x), x)
    q, k, v = (read(y, width) for _ in range(3))
    scores = net.op("MatMul", heads(q), net.op("Transpose", heads(k), perm=[0, 1, 3, 2]))
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), heads(v))
    merged = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(0, 6, width))
    x = net.op("Add", net.matmul(merged, width), x)
    y = normalized(x)
    if gated:
        hidden = net.op("Mul", read(y, 32), net.op("Sigmoid", read(y, 32)))
    else:
        hidden = net.op("Gelu", read(y, 32))
    return net.model(net.op("Add", net.matmul(hidden, width), x if pre_norm else y))


def batches(model, count=6, first=0):
    return [random_inputs(model, seed=first + seed, dims={"n": 4}) for seed in range(count)]


def sqnr(model, other):
    feeds = batches(model, 3, 100)
    parts = [np.concatenate([Reference(m).run(each)["y0"] for each in feeds]) for m in (model, other)]
    return compare(*parts).sqnr_db


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "smooth-quant"),
        ({"split_norm": True}, "smooth-quant"),
        ({}, "smooth-quant{alpha=0.5}"),
        ({"norm": "RMSNormalization"}, "smooth-quant{alpha=0.5}"),
        ({"gated": True}, "smooth-quant{alpha=0.5}"),
    ],
    ids=["search", "search-split", "layer-norm", "rms-norm", "gated"],
)
def test_outliers_move_and_outputs_stay(network, options, text):
    model = transformer(network, **options)
    data = batches(model)
    result = optimize(model, text, calibration=data)
    found = check_equivalent(model, result.model)
    assert found.passed, found
    rows = result.report.records[-1].details["smoothed"]
    assert max(row["outlier_before"] for row in rows) > 20
    if "alpha" in text:
        assert max(row["outlier_after"] for row in rows) < 15
        assert sum(len(row["readers"]) for row in rows) == (7 if options.get("gated") else 5)
    plain = optimize(model, "insert-qdq", calibration=data).model
    smoothed = optimize(result.model, "insert-qdq", calibration=data).model
    assert sqnr(model, smoothed) > sqnr(model, plain) + 3.0


def test_the_formula_of_the_paper():
    activations, weights = np.array([4.0, 100.0, 0.0, 1.0]), np.array([1.0, 0.25, 1.0, 0.0])
    factors = smoothing(activations, weights, 0.5)
    # sqrt(4 / 1) and sqrt(100 / 0.25), brought to a geometric mean of 1; dead channels stay.
    np.testing.assert_allclose(factors, [2 / np.sqrt(40), 20 / np.sqrt(40), 1, 1])


def test_where_nothing_is_to_gain_nothing_moves():
    rng = np.random.default_rng(0)
    rows, weights = rng.uniform(-1, 1, (256, 32)), rng.uniform(-1, 1, (32, 8))
    assert best_strength(rows, [weights], lambda largest, strength: np.linspace(0.01, 100, 32)) is None
    rows[:, 3] *= 100
    strength = best_strength(
        rows, [weights], lambda largest, a: smoothing(largest, np.abs(weights).max(axis=1), a)
    )
    assert strength is not None


def test_layers_that_stay_are_told_or_get_a_multiplication(network):
    model = transformer(network, pre_norm=False)
    data = batches(model)
    plain = optimize(model, "smooth-quant{alpha=0.5}", calibration=data).report.records[-1]
    told = {each.node: each.reason for each in plain.left_alone}
    assert sum("Add" in reason for reason in told.values()) >= 3
    assert any("Gelu" in reason for reason in told.values())
    result = optimize(model, "smooth-quant{alpha=0.5 insert=true}", calibration=data)
    found = check_equivalent(model, result.model)
    assert found.passed, found
    assert result.report.records[-1].statistics["inserted multiplications"] >= 2
    gains = [
        sqnr(model, optimize(model, f"{text},insert-qdq", calibration=data).model)
        for text in ("eliminate-dead", "smooth-quant{insert=true}")
    ]
    assert gains[1] > gains[0] + 3.0


@pytest.mark.parametrize("options", [{"gated": True}, {"split_norm": True}])
def test_awq_scales_without_changing_outputs(network, options):
    model = transformer(network, **options)
    result = optimize(model, "awq{clip=false block=0 min_size=1}", calibration=batches(model))
    found = check_equivalent(model, result.model)
    assert found.passed, found
    rows = result.report.records[-1].details["scaled"]
    assert all(row["error_after"] < row["error_before"] for row in rows)


def test_awq_lowers_the_error_of_weight_only_quantization(network):
    model = transformer(network)
    data = batches(model)
    form = "form=int4 block=16 symmetric=false min_size=1"
    store = f"quantize-weights{{{form} scale=absmax}}"
    found = [
        sqnr(model, optimize(model, text, calibration=data).model)
        for text in (store, f"awq{{{form} clip=false}},{store}", f"awq{{{form} clip=true}},{store}")
    ]
    assert found[1] > found[0] + 1.0
    assert found[2] > found[0] + 1.0


def test_awq_cuts_outliers_of_weights(network):
    net = network()
    weight = net.rng.standard_normal((32, 24)).astype(np.float32)
    weight[3] *= 12  # met by inputs that are next to nothing
    x = net.input("n", 32)
    model = net.model(net.op("MatMul", x, net.constant(weight, "w")))
    data = batches(model)
    for feeds in data:
        feeds["x"][:, 3] *= 1e-3
    result = optimize(model, "awq{clip=true block=0 min_size=1}", calibration=data)
    node = next(iter(result.model.graph))
    cut = constant_array(node.inputs[1])
    assert np.abs(cut[3]).max() < 0.8 * np.abs(weight[3]).max()
    assert (cut == weight)[np.arange(32) != 3].mean() > 0.98


def test_nan_in_activations_is_told(network):
    net = network()
    x = net.input("n", 8)
    y = net.op("LayerNormalization", x, net.weight(8), axis=-1)
    y = net.op("MatMul", net.op("Mul", y, net.op("Sqrt", x)), net.weight(8, 8))
    model = net.model(net.op("MatMul", net.op("Relu", y), net.weight(8, 4)))
    data = [{"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)}]
    for text in ("smooth-quant", "smooth-quant{alpha=0.3}", "awq{min_size=1}"):
        result = optimize(model, text, calibration=data)
        assert any("not finite" in each.reason for each in result.report.records[-1].left_alone)
        for value in result.model.graph.initializers.values():
            if value.dtype == ir.DataType.FLOAT:
                assert np.isfinite(constant_array(value)).all()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("smooth-quant{alpha=1.5}", "alpha"),
        ("smooth-quant{samples=0}", "samples"),
        ("smooth-quant", "it measures activations"),
        ("awq", "it measures activations"),
        ("awq{block=-1}", "block"),
        ("awq{form=int2 symmetric=false}", "symmetric"),
    ],
)
def test_bad_input(network, text, match):
    with pytest.raises(PassError, match=match):
        optimize(transformer(network), text)
