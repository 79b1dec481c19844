"""Recovery makes the pruned model's outputs better on data it has not seen, and does exactly what it says."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.clone import clone
from graphwright.ir.errors import PassError
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import Reference
from graphwright.passes.channels import analyse, apply_removal, find_groups, plan_removal
from graphwright.passes.optimize import optimize
from graphwright.passes.pruning.layers import linear_layer
from graphwright.passes.rewriter import Rewriter


def smooth(generator, shape):
    """Inputs with structure: channels that depend on each other, a mean that is not zero."""
    base = generator.standard_normal((shape[0], 2, *shape[2:]))
    mix = np.linspace(-1.0, 1.0, shape[1] * 2).reshape(shape[1], 2)
    return (np.einsum("ci,ni...->nc...", mix, base) + 0.5).astype(np.float32)


def data(count, shape, seed):
    generator = np.random.default_rng(seed)
    return [{"x": smooth(generator, shape)} for _ in range(count)]


def convolutional(net):
    x = net.block(net.input(4, 3, 12, 12), 12)
    y = net.norm(net.conv(net.block(x, 12, stride=1), 12))
    x = net.op("Relu", net.op("Add", x, y))
    x = net.op("Relu", net.conv(x, 16, group=4))
    x = net.op("Relu", net.conv(x, 8, kernel=1, stride=2))
    return net.model(net.linear(net.op("Flatten", net.op("GlobalAveragePool", x)), 5))


def strided(net):
    """Windows of every kind: stride, dilation, automatic and uneven padding."""
    x = net.op("Relu", net.conv(net.input(4, 3, 11, 13), 8))
    x = net.op("Relu", net.op("Conv", x, net.weight(8, 8, 3, 2), strides=[2, 1], auto_pad="SAME_UPPER"))
    x = net.op("Relu", net.op("Conv", x, net.weight(8, 8, 2, 3), dilations=[1, 2], pads=[1, 0, 0, 2]))
    return net.model(net.op("Conv", x, net.weight(3, 8, 1, 1), auto_pad="VALID"))


def attention(net, width=16):
    x = net.input(4, 3, 10, 1)
    x = net.op("Transpose", net.op("Squeeze", x, net.ints(3)), perm=[0, 2, 1])
    x = net.matmul(x, width)
    y = net.op("Gelu", net.op("MatMul", x, net.weight(width, 4 * width)))
    x = net.op("Add", x, net.op("MatMul", y, net.weight(4 * width, width)))
    return net.model(net.matmul(x, 3))


def transposed(net):
    """Transposed convolutions of every kind: strides, dilations, groups, uneven padding."""
    x = net.op("Relu", net.op("Conv", net.input(4, 3, 5, 6), net.weight(8, 3, 3, 3)))
    x = net.op(
        "Relu", net.op("ConvTranspose", x, net.weight(8, 6, 3, 4), net.weight(12), group=2, strides=[2, 3])
    )
    options = {"strides": [1, 2], "dilations": [2, 1], "pads": [1, 0, 0, 1], "output_padding": [0, 1]}
    x = net.op("Tanh", net.op("ConvTranspose", x, net.weight(12, 8, 2, 3), **options))
    return net.model(net.op("ConvTranspose", x, net.weight(8, 3, 1, 1), pads=[0, 1, 0, 0]))


def experts(net):
    """Products with several axes, or one per expert."""
    x = net.op("Squeeze", net.op("Transpose", net.input(4, 3, 10, 1), perm=[0, 2, 1, 3]), net.ints(3))
    y = net.op("Relu", net.op("Einsum", x, net.weight(3, 4, 6), equation="btd,dhk->bhtk"))
    y = net.op("Einsum", net.weight(6, 8, 4), y, equation="kdh,bhtk->btd")
    y = net.op("Relu", net.op("Einsum", y, net.weight(3, 8, 12), equation="btd,edf->bef"))
    y = net.op("MatMul", net.op("Transpose", y, perm=[1, 0, 2]), net.weight(3, 12, 5))
    return net.model(net.op("ReduceSum", y, net.ints(0), keepdims=0))


MODELS = {
    "convolutional": (convolutional, (4, 3, 12, 12)),
    "transposed": (transposed, (4, 3, 5, 6)),
    "experts": (experts, (4, 3, 10, 1)),
    "strided": (strided, (4, 3, 11, 13)),
    "attention": (attention, (4, 3, 10, 1)),
}


def error(model, pruned, feeds):
    ours, theirs = Reference(model), Reference(pruned)
    total = 0.0
    for each in feeds:
        (a,), (b,) = ours.run(each).values(), theirs.run(each).values()
        total += float(np.square(a.astype(np.float64) - b).sum())
    return total


@pytest.mark.parametrize("name", MODELS)
def test_held_out_error_falls_from_none_to_bias_to_weights(network, name):
    build, shape = MODELS[name]
    model = build(network())
    seen, unseen = data(12, shape, 0), data(6, shape, 1)
    errors = {}
    for how in ("none", "bias", "weights"):
        result = optimize(model, f"prune-channels{{ratio=0.4 recover={how}}}", calibration=seen)
        errors[how] = error(model, result.model, unseen)
    assert errors["weights"] < errors["bias"] < errors["none"], errors
    assert errors["weights"] < 0.5 * errors["none"]
    rows = result.report.records[0].details["recovered"]
    assert rows and all(row["error_after"] < row["error_before"] for row in rows)


def test_a_channel_that_others_span_is_made_up_for_entirely(network):
    """Channel 3 is the sum of 0 and 1, without a non-linearity: least squares finds that."""
    net = network()
    first = net.weight(4, 3, 1, 1)
    array = first.const_value.numpy().copy()
    array[3] = (array[0] + array[1]) * 0.5
    array[:3] *= 10
    first.const_value = ir.tensor(array, name=first.name)
    hidden = net.op("Conv", net.input(2, 3, 6, 6), first)
    model = net.model(net.op("Conv", hidden, net.weight(5, 4, 3, 3), pads=[1] * 4))
    generator = np.random.default_rng(0)
    feeds = [{"x": generator.standard_normal((2, 3, 6, 6)).astype(np.float32)} for _ in range(12)]
    pruned = optimize(model, "prune-channels{ratio=0.25 recover=weights}", calibration=feeds[:8]).model
    plain = optimize(model, "prune-channels{ratio=0.25}").model
    assert error(model, pruned, feeds[8:]) < 1e-6 * error(model, plain, feeds[8:])


def test_bias_is_the_mean_of_what_was_removed(network):
    net = network()
    x = net.op("Relu", net.matmul(net.input(8, 6), 10))
    model = net.model(net.op("MatMul", x, net.weight(10, 4)))
    generator = np.random.default_rng(0)
    feeds = [{"x": generator.standard_normal((8, 6)).astype(np.float32)} for _ in range(5)]
    pruned = optimize(model, "prune-channels{ratio=0.5 recover=bias}", calibration=feeds).model
    plain = optimize(model, "prune-channels{ratio=0.5}").model
    (added,) = [node for node in pruned.graph if node.outputs[0] is pruned.graph.outputs[0]]
    assert added.op_type == "Add"
    a, b = Reference(model), Reference(plain)
    missing = np.concatenate(
        [next(iter(a.run(f).values())) - next(iter(b.run(f).values())) for f in feeds]
    ).mean(0)
    bias = next(v.const_value.numpy() for v in added.inputs if v.const_value is not None)
    np.testing.assert_allclose(bias, missing, rtol=1e-4, atol=1e-6)


def test_windows_are_those_that_the_convolution_sees(network):
    """Features times weights give the convolution's own result."""
    model = strided(network())
    (feeds,) = data(1, (4, 3, 11, 13), 0)
    reference = Reference(model)
    for node in [node for node in model.graph if node.op_type == "Conv"]:
        layer, _ = linear_layer(node)
        names = [layer.source.name, node.outputs[0].name]
        source, result = reference.run_values(feeds, names).values()
        ((features, targets),) = layer.rows(source, result, np.random.default_rng(0), 10**9)
        weight = layer.weight.const_value.numpy().reshape(layer.outputs, -1)
        bias = node.inputs[2].const_value.numpy() if len(node.inputs) > 2 else 0.0
        np.testing.assert_allclose(features @ weight.T + bias, targets, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_change_of_the_weight_does_what_its_features_say(network, name):
    """result(W + D) - result(W) = features x D, for every layer and in every layout."""
    build, shape = MODELS[name]
    model = build(network())
    (feeds,) = data(1, shape, 0)
    layers = [layer for layer in (linear_layer(node)[0] for node in model.graph) if layer is not None]
    assert layers
    for layer in layers:
        names = [layer.source.name, layer.node.outputs[0].name]
        source, before = Reference(model).run_values(feeds, names).values()
        change = np.random.default_rng(1).standard_normal((layer.outputs, layer.features))
        weight = layer.weight.const_value
        layer.weight.const_value = ir.tensor(layer.changed(weight.numpy(), change), name=weight.name)
        after = Reference(model).run_values(feeds, names[1:])[names[1]]
        layer.weight.const_value = weight
        effect = (after - before).astype(np.float64)
        per_group = layer.outputs // layer.groups
        for group, (features, wanted) in enumerate(
            layer.rows(source, effect, np.random.default_rng(0), 10**9)
        ):
            mine = change[group * per_group : (group + 1) * per_group]
            np.testing.assert_allclose(features @ mine.T, wanted, atol=1e-3, err_msg=layer.node.op_type)


def test_layers_that_cannot_be_fitted_are_reported(network):
    net = network()
    shared = net.weight(8, 8, 3, 3)
    x = net.op("Relu", net.conv(net.input(2, 3, 8, 8), 8))
    x = net.op("Relu", net.op("Conv", x, shared, pads=[1] * 4))
    model = net.model(net.conv(net.op("Conv", x, shared, pads=[1] * 4), 3))
    feeds = data(4, (2, 3, 8, 8), 0)
    record = optimize(model, "prune-channels{recover=weights}", calibration=feeds).report.records[0]
    assert any("shares its weight" in entry.reason for entry in record.left_alone)


def test_data_must_be_there_and_readable_again(network):
    model = convolutional(network())
    with pytest.raises(PassError, match="needs calibration data"):
        optimize(model, "prune-channels{recover=bias}")
    with pytest.raises(PassError, match="read once only"):
        optimize(model, "prune-channels{recover=bias}", calibration=iter(data(3, (4, 3, 12, 12), 0)))


def test_the_original_is_not_touched(network):
    model = convolutional(network())
    before = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}
    optimize(model, "prune-channels{recover=weights}", calibration=data(3, (4, 3, 12, 12), 0))
    for name, value in model.graph.initializers.items():
        np.testing.assert_array_equal(value.const_value.numpy(), before[name])


def test_recovery_keeps_the_sizes_of_the_pruned_model(network):
    model = convolutional(network())
    found = analyse(model)
    removed = [int(c) for group in find_groups(found) for c in group.classes[: len(group.classes) // 2]]
    plain = clone(model)
    apply_removal(plain, plan_removal(found, removed), Rewriter(plain))
    result = optimize(model, "prune-channels{recover=weights}", calibration=data(3, (4, 3, 12, 12), 0))
    shapes = [list(node.inputs[1].shape) for node in plain.graph if node.op_type == "Conv"]
    assert [list(n.inputs[1].shape) for n in result.model.graph if n.op_type == "Conv"] == shapes


def test_layers_whose_tokens_went_too_are_fitted(network):
    net = network()
    x = net.matmul(net.input(2, 8, 6), 6)
    mixed = net.matmul(net.op("Relu", net.matmul(net.op("Transpose", x, perm=[0, 2, 1]), 12)), 16)
    y = net.op("Tanh", net.op("Transpose", mixed, perm=[0, 2, 1]))
    y = net.matmul(net.op("Relu", net.matmul(y, 10)), 6)
    model = net.model(net.op("ReduceMean", y, net.ints(1), keepdims=0))
    data = [random_inputs(model, seed=seed) for seed in range(8)]
    text = "prune-channels{ratio=0.5 recover=bias}"
    record = optimize(model, text, calibration=data).report.records[-1]
    assert any(row["error_after"] < row["error_before"] for row in record.details["recovered"])
