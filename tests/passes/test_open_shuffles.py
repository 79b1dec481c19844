"""Channel shuffles become Gathers, with equal results, where more channels can be pruned then."""

from __future__ import annotations

import pytest
from graphwright.ir.clone import clone
from graphwright.ir.compare import compare
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import run_reference
from graphwright.ir.shapes import infer_shapes
from graphwright.passes.base import PassContext
from graphwright.passes.optimize import optimize
from graphwright.passes.prune_channels import PruneChannels
from graphwright.passes.pruning.sensitivity import scan
from graphwright.passes.pruning.shuffles import ShuffleToGather
from graphwright.passes.quantization.calibration import as_calibration


def shuffled(net, x, middle, perm, *, copies=False):
    dims = list(x.shape)
    x = net.op("Reshape", x, net.ints(*middle))
    x = net.op("Identity", x) if copies else x
    x = net.op("Transpose", x, perm=perm)
    x = net.op("Identity", x) if copies else x
    return net.op("Reshape", x, net.ints(*(dim if isinstance(dim, int) else -1 for dim in dims)))


def ops(model):
    return [node.op_type for node in model.graph if node.op_type != "Constant"]


def opened(model):
    model = clone(model)
    infer_shapes(model)
    PassContext().rewrite(model, ShuffleToGather())
    return model


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize(
    ("shape", "middle", "perm", "axis"),
    [
        ((2, 12, 3, 4), (2, 3, 4, 3, 4), (0, 2, 1, 3, 4), 1),
        ((2, 12, 3, 4), (2, 3, 4, 12), (0, 2, 1, 3), 1),
        ((1, 12, 3, 4), (2, 6, 12), (1, 0, 2), 1),
        ((2, 12, 3, 4), (2, 2, 3, 2, 3, 4), (0, 3, 1, 2, 4, 5), 1),
        (("N", 12, 3, 4), (-1, 2, 6, 3, 4), (0, 2, 1, 3, 4), 1),
        ((2, 5, 8), (2, 5, 2, 4), (0, 1, 3, 2), 2),
    ],
)
def test_a_shuffle_is_a_gather(network, shape, middle, perm, axis, copies):
    net = network()
    model = net.model(net.op("Relu", shuffled(net, net.input(*shape), middle, perm, copies=copies)))
    found = opened(model)
    assert ops(found) == ["Gather", "Relu"]
    assert found.graph[0].attributes.get_int("axis") == axis
    feeds = random_inputs(model, dims={"N": 2})
    assert compare(run_reference(model, feeds), run_reference(found, feeds)).equal


@pytest.mark.parametrize(
    ("shape", "middle", "perm", "after"),
    [
        # Heads change places with positions, two axes mix, another shape comes out, nothing moves.
        ((2, 6, 8), (2, 6, 2, 4), (0, 2, 1, 3), (2, 6, 8)),
        ((4, 6), (2, 2, 2, 3), (0, 2, 1, 3), (4, 6)),
        ((2, 6, 8), (2, 2, 3, 8), (0, 2, 1, 3), (2, 3, 16)),
        ((2, 6, 8), (2, 2, 3, 8), (0, 1, 2, 3), (2, 6, 8)),
    ],
)
def test_what_is_no_shuffle_of_one_axis_stays(network, shape, middle, perm, after):
    net = network()
    x = net.op("Reshape", net.input(*shape), net.ints(*middle))
    model = net.model(net.op("Reshape", net.op("Transpose", x, perm=perm), net.ints(*after)))
    assert ops(opened(model)) == ["Reshape", "Transpose", "Reshape"]


def test_a_shuffle_that_is_read_halfway_stays(network):
    net = network()
    x = net.op("Reshape", net.input(2, 6, 8), net.ints(2, 2, 3, 8))
    turned = net.op("Transpose", x, perm=(0, 2, 1, 3))
    model = net.model(net.op("Reshape", turned, net.ints(2, 6, 8)), net.op("Relu", turned))
    assert "Gather" not in ops(opened(model))


def stage(net, units=3, channels=12):
    """A stage of ShuffleNet V2: half of the channels pass, the others are convolved, then all are shuffled."""
    x = net.conv(net.input(1, 3, 4, 4), channels)
    half = channels // 2
    for _ in range(units):
        kept, taken = net.op("Split", x, net.ints(half, half), outputs=2, axis=1)
        x = net.op("Concat", kept, net.conv(taken, half), axis=1)
        x = shuffled(net, x, (1, 2, half, 4, 4), (0, 2, 1, 3, 4))
    return net.model(net.conv(x, 2))


def test_every_channel_of_a_shuffled_stage_can_go(network):
    model = stage(network())
    result = optimize(model, "prune-channels{ratio=0.5}")
    (record,) = result.report.records
    assert "Transpose" not in ops(result.model)
    assert record.details["proof"]["error"] <= 1e-5
    widths = [node.inputs[1].shape[0] for node in result.model.graph if node.op_type == "Conv"]
    # Channels that take different ways count apart, so that halves are rounded here and there.
    assert all(kept <= 0.7 * full for kept, full in zip(widths[:-1], (12, 6, 6, 6), strict=True))
    assert [entry.node for entry in record.left_alone if entry.op_type == "Conv"][:-1] == []


def test_shuffles_stay_where_nothing_is_gained(network):
    net = network()
    x = shuffled(net, net.input(1, 12, 4, 4), (1, 3, 4, 4, 4), (0, 2, 1, 3, 4))
    result = optimize(net.model(net.conv(net.conv(x, 8), 2)), "prune-channels")
    assert "Transpose" in ops(result.model)


def test_sensitivity_sees_the_same_groups(network):
    model = stage(network())
    infer_shapes(model)
    found = scan(
        model, as_calibration([random_inputs(model)]), PruneChannels(), ratios=(0.5,), pareto_ratios=()
    )
    groups = optimize(model, "prune-channels{ratio=0.5}").report.records[0].details["groups"]
    assert len(found.by_group) == len(groups) == 4


def test_a_channel_with_a_way_of_its_own_is_named(network):
    net = network()
    x = net.input(1, 3, 4, 4)
    first, second, third = (net.conv(x, 4) for _ in range(3))
    picked = net.op("Gather", net.op("Concat", first, second, axis=1), net.ints(0, 1, 2, 4), axis=1)
    (record,) = optimize(
        net.model(net.conv(net.op("Add", picked, third), 2), net.conv(second, 2)), "prune-channels"
    ).report.records
    assert sorted((row["before"], row["after"]) for row in record.details["groups"]) == [(3, 2), (3, 2)]
    assert any("conv1, conv2 takes a way of its own" in entry.reason for entry in record.left_alone)
