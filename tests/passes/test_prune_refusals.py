"""What stops a group is named, with the way round it; and what must not stop one does not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.errors import PassError
from graphwright.passes.optimize import optimize
from graphwright.passes.prune_channels import PruneChannels


def record_of(model, options="ratio=0.5"):
    return optimize(model, f"prune-channels{{{options}}}").report.records[-1]


def reasons(record):
    return {entry.node: entry.reason for entry in record.left_alone}


def test_the_node_that_ties_all_channels_is_named(network):
    net = network()
    y = net.op("Relu", net.conv(net.input(1, 3, 6, 6), 8))
    # A circulant sum: every channel goes together with its neighbour.
    turned = net.op("Gather", y, net.constant(np.roll(np.arange(8), 1)), axis=1)
    y = net.op("Add", y, turned)
    culprit = y.producer().name
    record = record_of(net.model(net.conv(y, 4)))
    assert "ties channels: all channels of conv0 can only go together" in reasons(record)[culprit]
    assert "nothing was pruned" in record.notes[0]


def test_a_normalization_that_stops_says_what_lets_it_go(network):
    net = network()
    y = net.matmul(net.input(2, 5, 6), 8)
    y = net.op("LayerNormalization", y, net.weight(8), axis=-1)
    model = net.model(net.matmul(y, 3))
    (reason,) = [r for r in reasons(record_of(model)).values() if "LayerNormalization" in r]
    assert (
        "allow_statistical=true lets it shrink" in reason and "keeps the output channels of matmul0" in reason
    )
    assert record_of(model, "ratio=0.5 allow_statistical=true").statistics["groups pruned"] == 1


def attention(net, heads, shared, size):
    """Query heads that share key-value heads by Expand, spelled out."""
    x = net.input(2, 5, 12)
    q, k, v = (net.matmul(x, n * size) for n in (heads, heads // shared, heads // shared))

    def split(y, count):
        return net.op("Transpose", net.op("Reshape", y, net.ints(2, 5, count, size)), perm=[0, 2, 1, 3])

    def repeat(y):
        y = net.op("Unsqueeze", split(y, heads // shared), net.ints(2))
        y = net.op("Expand", y, net.ints(2, heads // shared, shared, 5, size))
        return net.op("Reshape", y, net.ints(2, heads, 5, size))

    q, k, v = split(q, heads), repeat(k), repeat(v)
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(2, 5, heads * size))
    return net.model(net.matmul(y, 3))


@pytest.mark.parametrize(("heads", "shared", "size"), [(8, 4, 8), (8, 8, 8), (4, 2, 4)])
def test_keys_and_values_shrink_where_heads_are_as_many_as_positions(network, heads, shared, size):
    record = record_of(attention(network(), heads, shared, size))
    pruned = {made["node"] for group in record.details["groups"] for made in group["producers"]}
    assert pruned == {"matmul0", "matmul2", "matmul4"}
    assert record.details["proof"]["error"] < 1e-5


def test_gather_nd_by_constant_positions_renumbers_them(network, assert_exact):
    net = network()
    y = net.op("Transpose", net.matmul(net.input(2, 6), 8), perm=[1, 0])
    y = net.op("GatherND", y, net.constant(np.array([[7], [0], [3], [1], [2]])))
    _, removed = assert_exact(net.model(net.matmul(net.op("Transpose", y, perm=[1, 0]), 3)))
    assert removed == 4


def test_zero_states_that_layers_share_tie_nothing(network):
    net = network()
    y, zeros = net.input(5, 2, 6), net.constant(np.zeros((1, 2, 8), np.float32))
    for size in (6, 8):
        weights = net.weight(1, 24, size), net.weight(1, 24, 8)
        y, _ = net.op("GRU", y, *weights, None, None, zeros, hidden_size=8, outputs=2)
        y = net.op("Squeeze", y, net.ints(1))
    record = record_of(net.model(net.matmul(y, 3)))
    assert record.statistics["groups pruned"] == 2
    assert record.statistics["constants separated"] == 1


def test_initializers_made_without_type_and_shape():
    stored = [
        ir.Value(
            name=name,
            const_value=ir.tensor(np.random.default_rng(0).normal(size=shape).astype("f4"), name=name),
        )
        for name, shape in (("a", (8, 3, 3, 3)), ("b", (8,)), ("c", (4, 8, 1, 1)))
    ]
    x = ir.Value(name="x", shape=ir.Shape([1, 3, 8, 8]), type=ir.TensorType(ir.DataType.FLOAT))
    hidden = ir.node("Conv", [x, stored[0], stored[1]])
    last = ir.node("Conv", [hidden.outputs[0], stored[2]])
    y = last.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape([1, 4, 6, 6]), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [y], nodes=[hidden, last], initializers=stored, opset_imports={"": 23}, name="bare")
    result = optimize(ir.Model(graph, ir_version=10), "prune-channels{ratio=0.5}")
    assert list(result.model.graph.initializers["c"].shape) == [4, 4, 1, 1]
    assert stored[0].shape is None


def test_selectors_do_not_keep_the_preparation_from_its_work(network):
    net = network()
    y = net.conv(net.input(1, 3, 6, 6), 8)
    parts = net.op("SplitToSequence", y, net.ints(4, 4), axis=1)
    first, last = (net.op("SequenceAt", parts, net.constant(np.array(index))) for index in (0, 1))
    y = net.op("Mul", net.op("Tanh", first), last)
    record = record_of(net.model(net.conv(y, 4)), "ratio=0.5 only=conv0")
    assert record.statistics["groups pruned"] == 1


def test_why_nothing_was_pruned(network):
    net = network()
    model = net.model(net.conv(net.block(net.input(1, 3, 8, 8), 12), 4))

    def notes(options):
        return optimize(model, f"prune-channels{{{options}}}").report.records[0].notes

    assert notes("ratio=0.2 multiple=8") == [
        "nothing was pruned, as ratio=0.2 with multiple=8 min_channels=1 max_ratio=1 leaves every group whole"
    ]
    assert notes("only=Relu") == ["nothing was pruned, as the selectors choose no layer that makes channels"]
    assert notes("macs=1.0") == ["nothing was pruned, as the budgets hold without it"]
    assert notes('ratios="decoder.*=0.3"') == ["ratios: 'decoder.*' matches no layer that makes channels"]


@pytest.mark.parametrize("tolerance", ["0", "-1", "nan"])
def test_a_tolerance_that_proves_nothing(tolerance):
    with pytest.raises(PassError, match="'tolerance' must be above 0, not"):
        PruneChannels(tolerance=float(tolerance))
