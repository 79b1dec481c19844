"""merge-pads: paddings that add up, and what convolutions and poolings take over."""

import numpy as np
import pytest
from graphwright.ir.reference import run_reference
from graphwright.passes.optimize import optimize


def run(model):
    result = optimize(model, "merge-pads", check_each=True)
    reasons = [left.reason for left in result.report.records[0].left_alone]
    return [node.op_type for node in result.model.graph], result.model, reasons


def padded(net, x, pads, value=0.0, mode="constant", axes=None):
    constant = None if value is None else net.constant(np.array(value, x.dtype.numpy()))
    inputs = [x, net.ints(*pads), constant]
    if axes is not None:
        inputs.append(net.ints(*axes))
    while inputs[-1] is None:
        inputs.pop()
    return net.op("Pad", *inputs, mode=mode)


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        ({"pads": [0, 1, 2, 0]}, {"pads": [1, 0, 1, 1]}, 1),
        ({"pads": [1, 2], "axes": [-1]}, {"pads": [3, 0], "axes": [0]}, 1),
        (
            {"pads": [0, 1, 2, 0], "mode": "edge", "value": None},
            {"pads": [1, 0, 1, 1], "mode": "edge", "value": None},
            1,
        ),
        (
            {"pads": [0, 1, 1, 0], "mode": "reflect", "value": None},
            {"pads": [1, 0, 1, 1], "mode": "reflect", "value": None},
            2,
        ),
        ({"pads": [0, 1, 2, 0], "value": 1.0}, {"pads": [1, 0, 1, 1]}, 2),
        ({"pads": [0, -1, 2, 0]}, {"pads": [1, 1, 1, 1]}, 2),
        ({"pads": [0, 1, 2, 0], "value": float("nan")}, {"pads": [1, 0, 1, 1], "value": float("nan")}, 2),
    ],
)
def test_pads_in_a_row(network, first, second, left):
    net = network()
    ops, _, reasons = run(net.model(padded(net, padded(net, net.input(3, 4), **first), **second)))
    assert ops == ["Pad"] * left and bool(reasons) == (left == 2)


def test_a_padding_that_others_read_stays(network):
    net = network()
    once = padded(net, net.input(3, 4), [1, 1, 1, 1])
    assert run(net.model(padded(net, once, [1, 1, 1, 1]), once))[0] == ["Pad", "Pad"]


@pytest.mark.parametrize(
    ("pad", "conv", "expected"),
    [
        ({"pads": [0, 0, 1, 2, 0, 0, 3, 0]}, {}, [1, 2, 3, 0]),
        ({"pads": [1, 2], "axes": [-1]}, {"pads": [1, 0, 1, 0]}, [1, 1, 1, 2]),
        ({"pads": [0, 0, 1, 1, 0, 0, 1, 1]}, {"auto_pad": "VALID", "strides": [2, 2]}, [1, 1, 1, 1]),
        ({"pads": [0, 0, 1, 1, 0, 0, 1, 1]}, {"auto_pad": "SAME_UPPER"}, None),
        ({"pads": [0, 0, 1, 1, 0, 0, 1, 1], "value": 1.0}, {}, None),
        ({"pads": [0, 0, 1, 1, 0, 0, 1, 1], "mode": "reflect", "value": None}, {}, None),
        ({"pads": [0, 0, -1, 1, 0, 0, 1, 1]}, {}, None),
        ({"pads": [1, 0, 1, 1, 0, 0, 1, 1]}, {}, None),
    ],
)
def test_convolutions_pad_with_zeros(network, pad, conv, expected):
    net = network()
    made = net.op(
        "Conv",
        padded(net, net.input("N", 2, 6, 7), **pad),
        net.weight(3, 2, 3, 3),
        kernel_shape=[3, 3],
        **conv,
    )
    ops, model, reasons = run(net.model(made))
    if expected is None:
        assert ops == ["Pad", "Conv"] and reasons
    else:
        assert ops == ["Conv"] and list(model.graph[0].attributes.get_ints("pads")) == expected


SAME = [0, 0, 1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("op", "pad", "pool", "relu", "taken"),
    [
        ("AveragePool", {}, {}, False, True),
        ("AveragePool", {}, {"count_include_pad": 1, "pads": [1, 0, 0, 1]}, False, True),
        ("AveragePool", {}, {"pads": [1, 0, 0, 1]}, False, False),
        ("AveragePool", {}, {"ceil_mode": 1, "strides": [2, 2]}, False, False),
        ("AveragePool", {"value": 1.0}, {}, False, False),
        ("AveragePool", {"pads": [0, 0, 3, 0, 0, 0, 0, 0]}, {}, False, False),
        ("LpPool", {}, {"pads": [1, 0, 0, 1]}, False, True),
        ("MaxPool", {"value": -np.inf}, {"strides": [2, 2], "pads": [0, 1, 1, 0]}, False, True),
        ("MaxPool", {}, {"strides": [2, 2]}, True, True),
        ("MaxPool", {}, {"strides": [2, 2]}, False, False),
        ("MaxPool", {"value": 1.0}, {}, True, False),
        ("MaxPool", {"value": -np.inf}, {"dilations": [2, 2]}, False, False),
        ("MaxPool", {"value": -np.inf}, {"auto_pad": "SAME_LOWER"}, False, False),
    ],
)
def test_poolings(network, op, pad, pool, relu, taken):
    net = network()
    x = net.input("N", 2, 7, 8)
    data = net.op("Relu", x) if relu else x
    made = net.op(op, padded(net, data, **{"pads": SAME, **pad}), kernel_shape=[3, 3], **pool)
    model = net.model(made)
    ops, after, reasons = run(model)
    assert ("Pad" in ops) != taken and bool(reasons) != taken
    numbers = np.random.default_rng(0).choice(
        [np.nan, np.inf, -np.inf, 1.0, -2.0, 0.0], (1, 2, 7, 8), p=[0.02, 0.1, 0.2, 0.28, 0.2, 0.2]
    )
    feeds = {"x": numbers.astype(np.float32)}
    np.testing.assert_array_equal(run_reference(model, feeds)["y0"], run_reference(after, feeds)["y0"])


def test_indices_of_a_pooling_depend_on_the_padding(network):
    net = network()
    x = padded(net, net.input(1, 2, 6, 6), SAME, value=-np.inf)
    most, where = net.op("MaxPool", x, outputs=2, kernel_shape=[3, 3])
    ops, _, reasons = run(net.model(most, where))
    assert ops == ["Pad", "MaxPool"] and reasons == ["its indices are read"]
