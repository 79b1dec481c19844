"""Operators that look at neighbouring channels go on seeing all of them, zeros in place of those that are gone."""

from __future__ import annotations

import numpy as np
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import run_reference
from graphwright.passes.optimize import optimize


def gated(net, x, kernel=3, dilation=1):
    """Efficient channel attention: a convolution over the channels of the pooled image makes their gates."""
    batch, channels = x.shape[0], x.shape[1]
    pooled = net.op("GlobalAveragePool", x)
    rows = net.op("Reshape", pooled, net.ints(batch if isinstance(batch, int) else -1, 1, channels))
    pad = dilation * (kernel // 2)
    gate = net.op("Conv", rows, net.weight(1, 1, kernel), pads=[pad, pad], dilations=[dilation])
    gate = net.op("Reshape", net.op("Sigmoid", gate), net.ints(-1, channels, 1, 1))
    return net.op("Mul", x, gate)


@pytest.mark.parametrize(("kernel", "dilation", "batch"), [(3, 1, 2), (5, 1, "N"), (3, 2, 1)])
def test_channel_attention(network, assert_exact, kernel, dilation, batch):
    net = network()
    x = gated(net, net.block(net.input(batch, 3, 4, 4), 8), kernel, dilation)
    model = net.model(net.conv(net.conv(x, 6), 2))
    pruned, removed = assert_exact(model, dims={"N": 2})
    assert removed == 4 + 3
    (attention,) = (
        node for node in pruned.graph if node.op_type == "Conv" and len(node.inputs[1].shape) == 3
    )
    assert list(attention.inputs[1].shape) == [1, 1, kernel]
    assert attention.inputs[0].shape[2] == attention.outputs[0].shape[2] == 8
    widths = [
        node.inputs[1].shape[0] for node in pruned.graph if node.op_type == "Conv" and node is not attention
    ]
    assert widths == [4, 3, 2]


def test_a_window_that_changes_the_number_of_channels_keeps_them(network, assert_exact):
    net = network()
    x = net.linear(net.input(2, 6), 8)
    rows = net.op("Conv", net.op("Reshape", x, net.ints(2, 1, 8)), net.weight(1, 1, 3))
    pruned, removed = assert_exact(net.model(net.op("Relu", rows)))
    assert removed == 0


def test_local_response_normalization(network, assert_exact):
    net = network()
    x = net.op("LRN", net.block(net.input(2, 3, 4, 4), 8), size=5, alpha=0.1, beta=0.75, bias=1.0)
    pruned, removed = assert_exact(net.model(net.conv(x, 2)))
    assert removed == 4
    assert [list(n.inputs[1].shape) for n in pruned.graph if n.op_type == "Conv"] == [
        [4, 3, 3, 3],
        [2, 4, 3, 3],
    ]


@pytest.mark.parametrize("shared", [False, True])
def test_in_steps(network, shared):
    net = network()
    x = net.block(net.input(1, 3, 4, 4), 16)
    y = gated(net, x)
    y = net.op("LRN", y, size=3, alpha=0.1) if shared else y
    model = net.model(net.conv(y, 2))
    result = optimize(model, "prune-channels{ratio=0.5 steps=2}")
    (record,) = result.report.records
    assert sum(row["before"] - row["after"] for row in record.details["groups"]) == 8
    assert record.details["proof"]["error"] <= 1e-5
    feeds = random_inputs(model)
    assert not compare(run_reference(model, feeds), run_reference(result.model, feeds)).equal


@pytest.mark.parametrize("axis", [1, 2])
def test_fourier_mixing(network, assert_exact, axis):
    net = network()
    x = net.matmul(net.input(2, 6, 5), 8)
    rows = net.op("Unsqueeze", x, net.ints(-1))
    turned = net.op("DFT", rows, None, net.constant(np.array(axis, np.int64)))
    real = net.op("Squeeze", net.op("Slice", turned, net.ints(0), net.ints(1), net.ints(3)), net.ints(3))
    pruned, removed = assert_exact(net.model(net.matmul(net.op("Add", x, real), 3)))
    assert removed == 4
    (kept,) = (node for node in pruned.graph if node.op_type == "DFT")
    assert kept.inputs[0].shape[2] == (8 if axis == 2 else 4)


def window(net, x, op_type="AveragePool", channels=8, **attributes):
    """Over neighbouring channels, as torch writes local response normalization."""
    y = net.op("Reshape", net.op("Mul", x, x), net.ints(2, 1, channels, 4, 4))
    pads = [2, 0, 0, 2, 0, 0]
    y = net.op(op_type, y, kernel_shape=[5, 1, 1], pads=pads, count_include_pad=1, **attributes)
    return net.op("Reshape", y, net.ints(2, -1, 4, 4))


def test_local_response_normalization_as_pooling(network, assert_exact):
    net = network()
    x = net.block(net.input(2, 3, 4, 4), 8)
    root = net.op("Sqrt", net.op("Add", window(net, x), net.constant(np.float32(0.1))))
    pruned, removed = assert_exact(net.model(net.conv(net.op("Div", x, root), 2)))
    assert removed == 4
    assert [list(n.inputs[1].shape) for n in pruned.graph if n.op_type == "Conv"] == [
        [4, 3, 3, 3],
        [2, 4, 3, 3],
    ]


def test_pooling_that_merges_channels_keeps_them(network, assert_exact):
    net = network()
    x = net.block(net.input(2, 3, 4, 4), 8)
    assert assert_exact(net.model(net.conv(window(net, x, strides=[2, 1, 1]), 2)))[1] == 0
