"""GPTQ, AdaRound and HQQ: against plain reference implementations, and never worse than rounding to nearest."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.constants import constant_array
from graphwright.ir.errors import PassError
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import Reference
from graphwright.passes.ada_round import learn_rounding
from graphwright.passes.gptq import round_by_hessian
from graphwright.passes.hqq import fit_blocks, norms
from graphwright.passes.optimize import optimize
from graphwright.passes.quantization.original import original_of
from graphwright.passes.quantization.repair.blocks import BlockedWeight
from graphwright.passes.quantization.repair.layers import find_layers
from graphwright.passes.quantization.repair.rounding import Grids, quadratic_error


def grids(outputs=5, features=12, groups=1, low=-7, high=7, seed=0):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((groups, outputs, features))
    scales = np.broadcast_to(np.abs(weight).max(axis=-1, keepdims=True) / high, weight.shape)
    zeros = np.zeros(weight.shape, np.int32)
    codes = np.clip(np.rint(weight / scales), low, high).astype(np.int32)
    return Grids(weight, codes, scales, zeros, low, high)


def correlated_rows(rows, features, seed=1):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((rows, 4)) @ rng.standard_normal((4, features))
    return mixed + 0.3 * rng.standard_normal((rows, features))


def optimal_brain_quantizer(weight, scale, hessian, order, low, high):
    """Row by row: round one feature, move the others by the exact minimizer, drop it from the inverse."""
    codes = np.zeros_like(weight)
    for row in range(len(weight)):
        w, inverse = weight[row].copy(), np.linalg.inv(hessian)
        for j in order:
            q = np.clip(np.rint(w[j] / scale[row, j]), low, high)
            codes[row, j] = q
            w = w - (w[j] - scale[row, j] * q) / inverse[j, j] * inverse[j]
            inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


@pytest.mark.parametrize("act_order", [True, False])
def test_gptq_is_optimal_brain_quantization_in_a_fixed_order(act_order):
    made = grids(outputs=6, features=150)
    x = correlated_rows(400, 150)
    gram = x.T @ x
    damped = gram + 0.01 * np.diag(gram).mean() * np.eye(150)
    order = np.argsort(-np.diag(gram), kind="stable") if act_order else range(150)
    expected = optimal_brain_quantizer(made.weight[0], made.scales[0], damped, order, -7, 7)
    found = round_by_hessian(made, gram[None], 0.01, act_order)[0]
    assert (found != expected).mean() < 0.003  # ties of rounding
    assert (found != made.codes[0]).mean() > 0.05


def test_gptq_takes_groups_apart_and_survives_dead_features():
    made = grids(groups=3)
    x = np.stack([correlated_rows(60, 12, seed) for seed in range(3)])
    x[1, :, 4] = 0.0
    gram = x.transpose(0, 2, 1) @ x
    found = round_by_hessian(made, gram)
    for group in range(3):
        alone = Grids(
            *(each[group : group + 1] for each in (made.weight, made.codes, made.scales, made.zeros)), -7, 7
        )
        np.testing.assert_array_equal(found[group], round_by_hessian(alone, gram[group : group + 1])[0])
    np.testing.assert_array_equal(found[1, :, 4], made.codes[1, :, 4])


def test_learned_rounding_comes_close_to_the_best_there_is():
    # Few enough features to try every combination of up and down.
    made = grids(outputs=4, features=10)
    x = correlated_rows(200, 10)
    gram = (x.T @ x)[None]
    found = learn_rounding(made, x[None].astype(np.float32), 500, 10.0, np.random.default_rng(0))
    floor = np.floor(made.weight / made.scales)
    assert np.isin(found - floor, (0, 1)).all()
    choices = ((np.arange(1024)[:, None] >> np.arange(10)) & 1).astype(np.float64)
    best = 0.0
    for row in range(4):
        tried = np.clip(floor[0, row] + choices, -7, 7)
        best += quadratic_error(made.scales[0, row] * tried - made.weight[0, row], gram[0]).min()
    learned, nearest = (
        quadratic_error(made.decode(codes) - made.weight, gram).sum() for codes in (found, made.codes)
    )
    assert best <= learned <= best + 0.5 * (nearest - best)


def test_learned_rounding_by_batches_of_rows():
    made = grids(outputs=6, features=600)
    x = correlated_rows(700, 600)
    found = learn_rounding(made, x[None].astype(np.float32), 200, 10.0, np.random.default_rng(0))
    gram = (x.T @ x)[None]
    before = quadratic_error(made.decode(made.codes) - made.weight, gram)
    after = quadratic_error(made.decode(found) - made.weight, gram)
    assert after.sum() < 0.5 * before.sum()


def cnn(network):
    net = network(3)
    y = net.op("Relu", net.conv(net.input("n", 3, 8, 8), 8))
    y = net.op("Relu", net.conv(y, 8, group=8))
    y = net.op("Relu", net.conv(net.conv(y, 12, group=2), 16, kernel=1))
    y = net.op("ReduceMean", y, net.ints(2, 3), keepdims=0)
    return net.model(net.matmul(net.op("Relu", net.linear(y, 24)), 10))


def batches(model, count=6, first=0):
    return [random_inputs(model, seed=first + seed, dims={"n": 4}) for seed in range(count)]


def sqnr(model, quantized, feeds):
    parts = [np.concatenate([Reference(m).run(each)["y0"] for each in feeds]) for m in (model, quantized)]
    return compare(*parts).sqnr_db


FORMS = [
    "insert-qdq",
    "insert-qdq{target=x86}",
    "quantize-weights{form=int8 min_size=1}",
    "quantize-weights{form=int4 min_size=1 block=16}",
    "quantize-weights{form=int4 min_size=1 block=16 symmetric=false}",
]


@pytest.mark.parametrize(
    ("form", "repair"),
    [*((form, "gptq") for form in FORMS), *((form, "ada-round{iterations=100}") for form in FORMS[::3])],
)
def test_every_form_stays_itself_and_errs_less(network, form, repair):
    model = cnn(network)
    data = batches(model)
    plain = optimize(model, form, calibration=data).model
    result = optimize(model, f"{form},{repair}", calibration=data)
    assert result.report.records[-1].statistics["weights moved"] > 0
    for before, after in zip(plain.graph, result.model.graph, strict=True):
        assert (before.op_type, before.attributes.keys()) == (after.op_type, after.attributes.keys())
    for name, value in plain.graph.initializers.items():
        now = result.model.graph.initializers[name].const_value
        assert (now.dtype, now.shape) == (value.const_value.dtype, value.const_value.shape)
        if "quantized" not in name:
            np.testing.assert_array_equal(now.numpy(), value.const_value.numpy())
        elif now.dtype == ir.DataType.INT8:
            # 7 bits stay 7 bits.
            assert (
                np.abs(now.numpy().astype(int)).max() <= np.abs(value.const_value.numpy().astype(int)).max()
            )
    rows = result.report.records[-1].details["layers"]
    assert len(rows) >= 3
    assert all(row["sqnr_after_db"] >= row["sqnr_before_db"] for row in rows)
    fresh = batches(model, 4, 100)
    assert sqnr(model, result.model, fresh) > sqnr(model, plain, fresh)


def upsampler(network, group=2, **attributes):
    net = network(4)
    y = net.op("Relu", net.conv(net.input("n", 4, 6, 5), 8))
    inputs = [y, net.weight(8, 6, 3, 2), net.weight(6 * group)]
    y = net.op("ConvTranspose", *inputs, group=group, kernel_shape=[3, 2], **attributes)
    return net.model(net.op("ReduceMean", y, net.ints(3), keepdims=0))


TRANSPOSED = [
    {},
    {"group": 1, "strides": [2, 3], "pads": [1, 0, 0, 1]},
    {"group": 4, "strides": [2, 2], "pads": [1, 1, 1, 0], "output_padding": [1, 0]},
    {"dilations": [2, 1], "strides": [1, 2]},
]


@pytest.mark.parametrize("attributes", TRANSPOSED)
def test_transposed_convolutions_are_products_of_their_rows(network, attributes):
    model = upsampler(network, **attributes)
    quantized = optimize(model, "quantize-weights{form=int8 min_size=1}").model
    layers = find_layers(quantized, model, lambda node: True, lambda node, why: pytest.fail(why))
    layer = next(layer for layer in layers if layer.node.op_type == "ConvTranspose")
    (feeds,) = batches(model, 1)
    names = [layer.float_source, layer.float_result]
    source, result = Reference(model).run_values(feeds, names).values()
    made = Grids.of(layer)
    rows = layer.linear.rows(source, result, np.random.default_rng(0), 10**6)
    bias = constant_array(layer.original.inputs[2]).reshape(layer.linear.groups, -1)
    for (x, y), weight, b in zip(rows, made.weight, bias, strict=True):
        np.testing.assert_allclose(x @ weight.T + b, y, rtol=1e-4, atol=1e-5)
    # The integers lie where the numbers do, and go back to where they were.
    np.testing.assert_allclose(made.decode(made.codes), made.weight, atol=0.02)
    stored = constant_array(layer.stored.integers)
    np.testing.assert_array_equal(layer.stored_form(layer.stored.codes), stored)


@pytest.mark.parametrize("attributes", TRANSPOSED[:3])
@pytest.mark.parametrize(
    ("form", "repair"),
    [
        ("quantize-weights{form=int4 min_size=1}", "gptq"),
        ("quantize-weights{form=int4 min_size=1 block=2 symmetric=false}", "gptq"),
        ("quantize-weights{form=int4 min_size=1}", "ada-round{iterations=100}"),
        ("insert-qdq{target=cuda}", "gptq,bias-correction"),
    ],
)
def test_transposed_convolutions_err_less(network, attributes, form, repair):
    model = upsampler(network, **attributes)
    data = batches(model)
    plain = optimize(model, form, calibration=data).model
    result = optimize(model, f"{form},{repair}", calibration=data)
    rounded = next(record for record in result.report.records if "layers" in record.details)
    rows = {row["node"]: row for row in rounded.details["layers"]}
    name = next(node.name for node in model.graph if node.op_type == "ConvTranspose")
    assert rows[name]["moved"] > 0 and rows[name]["sqnr_after_db"] > rows[name]["sqnr_before_db"]
    if "int4" in form:
        # With 8 bits the activations err as much as the weights do.
        fresh = batches(model, 4, 100)
        assert sqnr(model, result.model, fresh) > sqnr(model, plain, fresh)


def test_transposed_convolutions_that_hqq_leaves_are_told(network):
    model = upsampler(network)
    text = "quantize-weights{form=int4 min_size=1},hqq{convolutions=true}"
    record = optimize(model, text).report.records[-1]
    assert "its blocks" in {each.reason[:10] for each in record.left_alone}
    model.graph[-2].attributes.add(ir.AttrString("auto_pad", "SAME_UPPER"))
    text = "quantize-weights{form=int4 min_size=1},gptq"
    record = optimize(model, text, calibration=batches(model)).report.records[-1]
    assert "it chooses its padding by the size of its result" in {each.reason for each in record.left_alone}


def test_few_rows_are_not_fitted_by_gptq(network):
    net = network(5)
    y = net.op("Relu", net.linear(net.input("n", 12), 256))
    model = net.model(net.linear(y, 64))
    few = [random_inputs(model, seed=0, dims={"n": 24})]
    many = [random_inputs(model, seed=seed, dims={"n": 256}) for seed in range(8)]
    text = "quantize-weights{form=int4 min_size=1},gptq{samples=4096}"
    record = optimize(model, text, calibration=many).report.records[-1]
    assert record.statistics["layers rounded anew"] == 2 and not record.left_alone
    # Fitted to noise: features that never vary together elsewhere.
    noise = [{"x": np.eye(12, dtype=np.float32)}]
    record = optimize(model, text, calibration=noise).report.records[-1]
    assert any("on held-out rows of the 12" in each.reason for each in record.left_alone)
    fresh = [random_inputs(model, seed=99, dims={"n": 512})]
    plain = optimize(model, "quantize-weights{form=int4 min_size=1}").model
    for data in (few, noise):
        made = optimize(model, text, calibration=data).model
        assert sqnr(model, made, fresh) > sqnr(model, plain, fresh) - 0.3


def test_layers_that_gptq_cannot_better_are_told(network):
    net = network()
    weight = net.rng.integers(-7, 8, (32, 24)).astype(np.float32)
    weight[0], weight[16] = 7.0, -7.0
    model = net.model(net.op("MatMul", net.input("n", 32), net.constant(weight, "w")))
    text = "quantize-weights{form=int4 min_size=1 block=16 scale=absmax}"
    (record,) = optimize(model, f"{text},gptq", calibration=batches(model, 40)).report.records[1:]
    assert [each.reason for each in record.left_alone] == ["no rounding that was found errs less"]
    assert not record.details.get("layers") and "layers rounded anew" not in record.statistics


def test_hqq_lowers_its_norm_and_forgives_outliers(network):
    net = network()
    x = net.input("n", 32)
    weight = net.rng.standard_t(2, (32, 24)).astype(np.float32)
    model = net.model(net.op("MatMul", x, net.constant(weight, "w")))
    for options in (
        "form=int4 block=16 scale=absmax",
        "form=int4 block=16 symmetric=false scale=absmax",
        "form=int8 scale=absmax",
    ):
        text = f"quantize-weights{{{options} min_size=1}}"
        plain = optimize(model, text).model
        result = optimize(model, f"{text},hqq")
        (row,) = result.report.records[-1].details["layers"]
        assert row["norm_after"] < row["norm_before"]
        norms = []
        for each in (plain, result.model):
            (layer,) = find_layers(each, original_of(each, None), lambda node: True, lambda node, why: None)
            norms.append((np.abs(layer.stored.decode() - layer.weight) ** 0.7).sum())
        np.testing.assert_allclose(norms, [row["norm_before"], row["norm_after"]], rtol=1e-5)
        # What ONNX Runtime decodes is what was measured.
        (feeds,) = batches(model, 1)
        (layer,) = find_layers(result.model, model, lambda node: True, lambda node, why: None)
        expected = feeds["x"] @ layer.stored.decode().T
        np.testing.assert_allclose(Reference(result.model).run(feeds)["y0"], expected, rtol=1e-4, atol=1e-4)


def test_hqq_finds_what_a_search_over_scales_finds():
    rng = np.random.default_rng(0)
    weight = rng.standard_t(4, (24, 4, 64))
    scales = np.abs(weight).max(axis=-1) / 7
    zeros = np.zeros(scales.shape)
    codes = np.rint(weight / scales[..., None])
    parts = BlockedWeight(weight, np.ones(weight.shape, bool), codes, scales, zeros, -7, 7, False, 256)
    best = norms(parts, 0.7)
    for share in np.linspace(0.4, 1.2, 81):
        decoded = scales[..., None] * share * np.clip(np.rint(weight / scales[..., None] / share), -7, 7)
        error = np.abs(weight - decoded)
        allowed = np.square(error).sum(axis=-1) <= norms(parts, 2.0)
        best = np.where(allowed, np.minimum(best, (error**0.7).sum(axis=-1)), best)
    assert (parts.with_kept_sums().codes != codes).any()
    fitted = fit_blocks(parts, 0.7, 20)
    found = norms(fitted, 0.7)
    assert (found <= norms(parts, 0.7)).all() and (norms(fitted, 2.0) <= norms(parts, 2.0)).all()
    assert found.sum() < 1.03 * best.sum() < 0.95 * norms(parts, 0.7).sum()


def test_hqq_leaves_convolutions_unless_told(network):
    model = cnn(network)
    text = "quantize-weights{form=int4 min_size=1 block=16 scale=absmax}"
    record = optimize(model, f"{text},hqq").report.records[-1]
    assert sum("convolutions=true" in each.reason for each in record.left_alone) == 4
    told = optimize(model, f"{text},hqq{{convolutions=true}}").report.records[-1]
    assert told.statistics["layers fitted"] > record.statistics["layers fitted"]


def test_hqq_leaves_layers_with_integer_biases(network):
    model = cnn(network)
    record = optimize(model, "insert-qdq,hqq", calibration=batches(model)).report.records[-1]
    assert {each.reason for each in record.left_alone} == {"its int32 bias is tied to its scales"}


def test_shared_packed_and_missing_layers_are_told(network):
    net = network()
    x = net.input("n", 16)
    weight = net.weight(16, 16)
    y = net.op("MatMul", net.op("Relu", net.op("MatMul", x, weight)), weight)
    model = net.model(net.op("MatMul", y, net.weight(16, 4)))
    data = batches(model)
    record = optimize(model, "quantize-weights{min_size=1},gptq", calibration=data).report.records[-1]
    assert sum("shares its weight" in each.reason for each in record.left_alone) == 2
    record = optimize(model, "quantize-weights{form=nf4 min_size=1},gptq", calibration=data).report.records[
        -1
    ]
    assert "no layer has integer weights" in record.notes[0]
    quantized = optimize(model, "quantize-weights{min_size=1}").model
    for node in quantized.graph:
        if node.op_type == "MatMul":
            node.name = f"other.{node.name}"
    record = optimize(quantized, "gptq", calibration=data).report.records[-1]
    assert {"the float model has no layer of its name"} == {each.reason for each in record.left_alone}


def test_same_seed_same_weights(network):
    model = cnn(network)
    data = batches(model, 3)
    text = "quantize-weights{form=int4 min_size=1},ada-round{iterations=20}"
    made = [optimize(model, text, calibration=data, seed=4).model for _ in range(2)]
    for first, second in zip(*(each.graph.initializers.values() for each in made), strict=True):
        np.testing.assert_array_equal(constant_array(first), constant_array(second))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("gptq{damping=0}", "damping"),
        ("gptq{samples=0}", "samples"),
        ("ada-round{iterations=0}", "iterations"),
        ("ada-round{regularization=0}", "regularization"),
        ("hqq{p=2}", "option 'p'"),
        ("hqq{iterations=0}", "iterations"),
        ("gptq", "compares layers on data"),
        ("ada-round", "compares layers on data"),
        ("hqq", "the float model is not known"),
    ],
)
def test_bad_input(network, text, match):
    with pytest.raises(PassError, match=match):
        optimize(cnn(network), text)
