"""Blocks are found on the graph, the least influential go, and what is left computes what it should."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.clone import clone
from graphwright.ir.errors import PassError
from graphwright.ir.reference import Reference
from graphwright.ir.verify import verify
from graphwright.passes.optimize import optimize
from graphwright.passes.prune_blocks import measure_influence
from graphwright.passes.pruning.blocks import find_branches, find_layers
from graphwright.passes.quantization.calibration import as_calibration

WIDTH = 8


def linear(net, x, width, scale=1.0):
    weight = net.weight(x.shape[-1], width)
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(scale), name=weight.name)
    return net.op("MatMul", x, weight)


def layer_norm(net, x):
    return net.op("LayerNormalization", x, net.constant(np.ones(WIDTH, np.float32)), axis=-1)


def mix(net, x, mask, scale):
    """Attention over tokens, spelled out, with a mask."""
    query, key, value = (linear(net, x, WIDTH) for _ in range(3))
    scores = net.op("Add", net.op("MatMul", query, net.op("Transpose", key, perm=[0, 2, 1])), mask)
    return linear(net, net.op("MatMul", net.op("Softmax", scores), value), WIDTH, scale)


def transformer(net, scales=((1, 1), (1, 0.01), (0.02, 0.02), (1, 1)), post=False):
    """Layers of attention and feed-forward, each times a scale; pre-norm or post-norm."""
    x = linear(net, net.input(2, 5, 4), WIDTH)
    mask = net.input(2, 1, 5, name="mask")
    for first, second in scales:
        inner = x if post else layer_norm(net, x)
        x = net.op("Add", x, mix(net, inner, mask, first))
        x = layer_norm(net, x) if post else x
        inner = x if post else layer_norm(net, x)
        x = net.op("Add", x, linear(net, net.op("Relu", linear(net, inner, 2 * WIDTH)), WIDTH, second))
        x = layer_norm(net, x) if post else x
    return net.model(linear(net, x, 3))


def feeds(count=3):
    generator = np.random.default_rng(0)
    return [
        {
            "x": generator.standard_normal((2, 5, 4)).astype(np.float32),
            "mask": np.zeros((2, 1, 5), np.float32),
        }
        for _ in range(count)
    ]


def adds(model):
    return [node.name for node in model.graph if node.op_type == "Add"]


@pytest.mark.parametrize("post", [False, True])
def test_layers_are_two_branches_each_whatever_the_mask_does(network, post):
    model = transformer(network(), post=post)
    branches = find_branches(model.graph)
    # The sum of scores and mask is none: the mask is broadcast.
    assert len(branches) == 8 and all(block.operand == 1 for block in branches)
    layers = find_layers(model.graph)
    assert len(layers) == 4
    products = [sum(node.op_type == "MatMul" for node in layer.nodes) for layer in layers]
    assert products == [8] * 4


def test_the_weakest_branch_goes_first(network):
    model = transformer(network())
    result = optimize(model, "prune-blocks{count=3}", calibration=feeds())
    record = result.report.records[0]
    gone = [row["block"] for row in record.details["blocks"]]
    by_layer = find_branches(model.graph)
    assert {by_layer[3].name, by_layer[4].name, by_layer[5].name} == set(gone)
    influences = [row["influence"] for row in record.details["blocks"]]
    assert influences == sorted(influences) and influences[-1] < 0.01
    assert record.details["macs"][1] < record.details["macs"][0]
    verify(result.model)


@pytest.mark.parametrize("post", [False, True])
def test_the_weakest_layer_goes_and_the_rest_is_unchanged(network, post):
    scales = ((1, 1), (0.01, 0.02), (1, 1))
    model = transformer(network(), scales, post=post)
    result = optimize(model, "prune-blocks{unit=layer count=1}", calibration=feeds())
    (row,) = result.report.records[0].details["blocks"]
    middle = find_layers(model.graph)[1]
    assert row["block"] == middle.name
    # By hand: the middle layer's result is its input.
    by_hand = clone(model)
    values = {v.name: v for node in by_hand.graph for v in node.outputs}
    end, start = values[middle.end.name], values[middle.start.name]
    end.replace_all_uses_with(start)
    for each in feeds(2):
        (a,), (b,) = Reference(by_hand).run(each).values(), Reference(result.model).run(each).values()
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_influence_is_one_minus_the_cosine_per_token(network):
    model = transformer(network())
    block = find_branches(model.graph)[0]
    data = feeds()
    found = measure_influence(model, [block], as_calibration(data))[block.key]
    reference, distances = Reference(model), []
    for each in data:
        a, b = reference.run_values(each, [block.start.name, block.end.name]).values()
        for u, v in zip(a.reshape(-1, WIDTH), b.reshape(-1, WIDTH), strict=True):
            distances.append(1 - float(u @ v) / (np.linalg.norm(u) * np.linalg.norm(v)))
    assert found == pytest.approx(np.mean(distances), abs=1e-5)


def convolutional(net):
    x = net.block(net.input(1, 3, 8, 8), 8)
    for channels, stride in ((8, 1), (8, 1), (16, 2), (16, 1)):
        short = x if x.shape[1] == channels else net.norm(net.conv(x, channels, kernel=1, stride=stride))
        x = net.op(
            "Relu", net.op("Add", net.norm(net.conv(net.block(x, channels, stride=stride), channels)), short)
        )
    return net.model(net.conv(x, 2))


def test_convolutional_networks(network):
    model = convolutional(network())
    branches, layers = find_branches(model.graph), find_layers(model.graph)
    # Both operands of the sum that downsamples may go; only blocks that keep the shape are layers.
    assert len(branches) == 5 and len(layers) == 3
    data = [
        {"x": np.random.default_rng(i).standard_normal((1, 3, 8, 8)).astype(np.float32)} for i in range(2)
    ]
    result = optimize(model, "prune-blocks{macs=0.7}", calibration=data)
    before, after = result.report.records[0].details["macs"]
    assert after <= 0.7 * before
    assert Reference(result.model).run(data[0])["y0"].shape == (1, 2, 4, 4)


def test_selectors_threshold_and_amount(network):
    model = transformer(network())
    skipped = optimize(
        model, f'prune-blocks{{count=3 skip="{find_branches(model.graph)[3].name}$"}}', calibration=feeds()
    ).report.records[0]
    assert find_branches(model.graph)[3].name not in [row["block"] for row in skipped.details["blocks"]]
    assert any("selectors" in entry.reason for entry in skipped.left_alone)
    bounded = optimize(
        model, "prune-blocks{ratio=1.0 max_influence=0.02}", calibration=feeds()
    ).report.records[0]
    assert all(row["influence"] <= 0.02 for row in bounded.details["blocks"])
    assert 0 < len(bounded.details["blocks"]) < 8
    assert any("max_influence" in entry.reason for entry in bounded.left_alone)
    once = optimize(model, "prune-blocks{count=3 again=false}", calibration=feeds()).report.records[0]
    assert len(once.details["blocks"]) == 3
    everything = optimize(model, "prune-blocks{ratio=1.0}", calibration=feeds())
    assert not any(node.op_type == "Softmax" for node in everything.model.graph)


def test_a_branch_that_something_else_reads_is_not_a_block(network):
    net = network()
    x = linear(net, net.input(2, 5, 4), WIDTH)
    branch = linear(net, x, WIDTH)
    net.op("Add", x, branch)
    total = net.graph[-1].outputs[0]
    model = net.model(linear(net, total, 3), net.op("Identity", branch))
    assert find_branches(model.graph) == []


def test_data_is_needed_and_options_are_checked(network):
    model = transformer(network())
    with pytest.raises(PassError, match="calibration data"):
        optimize(model, "prune-blocks")
    for options in ("ratio=1.5", "count=-1", "count=1 macs=0.5", "max_influence=0"):
        with pytest.raises(PassError):
            optimize(model, f"prune-blocks{{{options}}}", calibration=feeds())
