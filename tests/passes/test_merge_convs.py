"""merge-convs: products of weights, where they are no more work."""

import numpy as np
import pytest
from graphwright.passes.optimize import optimize


def run(model, pipeline="merge-convs"):
    result = optimize(model, pipeline, check_each=True)
    reasons = [left.reason for left in result.report.records[0].left_alone]
    return [node.op_type for node in result.model.graph], result.model, reasons


def conv(net, x, channels, kernel, group=1, bias=True, **attributes):
    inputs = [x, net.weight(channels, x.shape[1] // group, *kernel)]
    if bias:
        inputs.append(net.weight(channels))
    return net.op("Conv", *inputs, group=group, kernel_shape=list(kernel), **attributes)


WIDE = {"channels": 8, "kernel": (3, 3), "pads": [1, 0, 1, 1]}
POINT = {"channels": 8, "kernel": (1, 1)}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (WIDE, POINT),
        (WIDE, {**POINT, "channels": 2, "bias": False}),
        ({**WIDE, "bias": False}, POINT),
        ({**WIDE, "strides": [2, 1]}, {**POINT, "strides": [1, 2], "channels": 4}),
        ({**WIDE, "dilations": [2, 1]}, POINT),
        ({**WIDE, "group": 2}, {**POINT, "group": 2}),
        ({**WIDE, "channels": 16}, {**POINT, "channels": 4, "group": 2}),
        (POINT, {"channels": 4, "kernel": (3, 3)}),
        ({**POINT, "bias": False}, WIDE),
        ({**POINT, "bias": False}, {**WIDE, "strides": [2, 2], "group": 1, "channels": 3}),
        (POINT, POINT),
        ({**WIDE, "auto_pad": "VALID", "pads": None}, POINT),
    ],
)
@pytest.mark.parametrize("batch", [2, "N"])
def test_pairs_become_one(network, first, second, batch):
    first, second = ({k: v for k, v in each.items() if v is not None} for each in (first, second))
    net = network()
    model = net.model(conv(net, conv(net, net.input(batch, 8, 9, 10), **first), **second))
    ops, after, _ = run(model)
    assert ops == ["Conv"]
    assert sum(v.const_value.size for v in after.graph.initializers.values()) <= sum(
        v.const_value.size for v in model.graph.initializers.values()
    )


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (WIDE, {**POINT, "channels": 80}, "takes more multiplications"),
        ({**POINT, "channels": 2}, {**WIDE, "channels": 64, "pads": [0] * 4}, "takes more multiplications"),
        ({**WIDE, "group": 8}, POINT, "takes more multiplications"),
        (POINT, WIDE, "bias of the convolution before it"),
        (WIDE, {**POINT, "pads": [1, 1, 1, 1]}, "plain 1x1"),
        ({**POINT, "strides": [2, 2]}, {**WIDE, "pads": [0] * 4}, "plain 1x1"),
        (WIDE, WIDE, "plain 1x1"),
        ({**WIDE, "auto_pad": "SAME_UPPER", "pads": None}, POINT, "depends on the size"),
    ],
)
def test_pairs_that_stay(network, first, second, reason):
    first, second = ({k: v for k, v in each.items() if v is not None} for each in (first, second))
    net = network()
    ops, _, reasons = run(net.model(conv(net, conv(net, net.input(2, 8, 9, 10), **first), **second)))
    assert ops == ["Conv", "Conv"] and any(reason in each for each in reasons), reasons


def test_what_others_read_and_shared_weights_stay(network):
    net = network()
    middle = conv(net, net.input(1, 4, 5, 5), 4, (1, 1))
    ops, _, reasons = run(net.model(conv(net, middle, 4, (1, 1)), middle))
    assert ops == ["Conv", "Conv"] and "other readers" in reasons[0]
    net = network()
    weight = net.weight(4, 4, 1, 1)
    twice = net.op("Conv", net.op("Conv", net.input(1, 4, 5, 5), weight), weight)
    _, _, reasons = run(net.model(twice))
    assert "shared" in reasons[0]


def test_unknown_sizes_with_strides_stay(network):
    net = network()
    model = net.model(conv(net, conv(net, net.input(1, 4, "H", "W"), 4, (3, 3)), 4, (1, 1), strides=[2, 2]))
    ops, _, reasons = run(model)
    assert ops == ["Conv", "Conv"] and reasons == ["the size of a result is not known"]


@pytest.mark.parametrize(("middle", "left"), [(16, 1), (2, 2)])
def test_products(network, middle, left):
    net = network()
    inner = net.op("MatMul", net.input(2, "N", 8), net.weight(8, middle))
    ops, _, _ = run(net.model(net.op("MatMul", inner, net.weight(middle, 8))))
    assert ops == ["MatMul"] * left


def test_weights_that_overflow_stay(network):
    net = network()
    big = [net.constant(np.full((4, 4, 1, 1), 1e30, np.float32)) for _ in range(2)]
    x = net.op("Mul", net.input(1, 4, 5, 5), net.constant(np.float32(1e-38)))
    ops, _, reasons = run(net.model(net.op("Conv", net.op("Conv", x, big[0]), big[1])))
    assert ops == ["Mul", "Conv", "Conv"] and "overflow" in reasons[0]
