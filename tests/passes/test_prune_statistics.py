"""Normalized axes go only on request, and then equal the normalization of what stays, written by hand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.clone import clone
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import run_reference
from graphwright.passes.channels import analyse, apply_removal, find_groups, masked_model, plan_removal
from graphwright.passes.rewriter import Rewriter


def normalized(net, kind, x, width):
    parameters = [net.weight(width), net.weight(width)]
    if kind == "RMSNormalization":
        return net.op(kind, x, parameters[0], epsilon=1e-3)
    return net.op(kind, x, *parameters, epsilon=1e-3)


def residual_stream(net, kind, width=8):
    x = net.matmul(net.input(2, 5, 6), width)
    for _ in range(2):
        hidden = net.op("Gelu", net.matmul(normalized(net, kind, x, width), 12))
        x = net.op("Add", x, net.matmul(hidden, width))
    return net.model(net.matmul(normalized(net, kind, x, width), 3))


@pytest.mark.parametrize("kind", ["LayerNormalization", "RMSNormalization"])
def test_residual_streams_go_on_request_only(network, assert_exact, kind):
    model = residual_stream(network(), kind)
    assert assert_exact(model)[1] == 12
    pruned, removed = assert_exact(model, allow_statistical=True)
    assert removed == 12 + 4
    assert [list(n.inputs[1].shape) for n in pruned.graph if n.op_type == kind] == [[4]] * 3


@pytest.mark.parametrize("kind", ["LayerNormalization", "RMSNormalization"])
def test_masked_model_normalizes_what_stays(network, kind):
    net = network()
    x = net.input(3, 8)
    y = normalized(net, kind, net.op("MatMul", x, net.weight(8, 8)), 8)
    model = net.model(net.op("MatMul", y, net.weight(8, 4)))
    found = analyse(model, allow_statistical=True)
    (group,) = find_groups(found)
    np.testing.assert_array_equal(found.statistical, group.classes)
    removal = plan_removal(found, group.classes[[1, 4, 5]].tolist())
    feeds = random_inputs(model)
    first, norm, last = model.graph
    stay = [0, 2, 3, 6, 7]
    data = feeds["x"].astype(np.float64) @ first.inputs[1].const_value.numpy()
    data = data[:, stay]
    if kind == "LayerNormalization":
        data = data - data.mean(axis=1, keepdims=True)
    data = data / np.sqrt((data**2).mean(axis=1, keepdims=True) + 1e-3)
    data = data * norm.inputs[1].const_value.numpy()[stay]
    if kind == "LayerNormalization":
        data = data + norm.inputs[2].const_value.numpy()[stay]
    expected = data @ last.inputs[1].const_value.numpy()[stay]
    pruned = clone(model)
    apply_removal(pruned, removal, Rewriter(pruned))
    for each in (masked_model(model, removal), pruned):
        np.testing.assert_allclose(run_reference(each, feeds)["y0"], expected, rtol=1e-4, atol=1e-5)


def test_whole_groups_of_a_group_normalization_are_exact(network, assert_exact):
    net = network()
    x = net.conv(net.input(2, 3, 4, 4), 12)
    x = net.op("GroupNormalization", x, net.weight(12), net.weight(12), num_groups=4)
    pruned, removed = assert_exact(net.model(net.conv(net.op("Relu", x), 2)))
    assert removed == 2
    node = next(n for n in pruned.graph if n.op_type == "GroupNormalization")
    assert node.attributes.get_int("num_groups") == 2 and list(node.inputs[1].shape) == [6]


def test_group_normalization_spelled_out_by_torch_loses_whole_groups(network, assert_exact):
    net = network()
    x = net.conv(net.input(2, 3, 4, 4), 12)
    y = net.op("Reshape", x, net.ints(0, 4, -1))
    y = net.op("InstanceNormalization", y, net.weight(4), net.weight(4))
    y = net.op("Mul", net.op("Reshape", y, net.ints(2, 12, 4, 4)), net.weight(12, 1, 1))
    assert assert_exact(net.model(net.conv(y, 2)))[1] == 2


def test_one_group_is_statistical(network, assert_exact):
    for spelled_out in (False, True):
        net = network()
        x = net.conv(net.input(2, 3, 4, 4), 12)
        if spelled_out:
            y = net.op("Reshape", x, net.ints(0, 1, -1))
            y = net.op("InstanceNormalization", y, net.weight(1), net.weight(1))
            y = net.op("Reshape", y, net.ints(2, 12, 4, 4))
        else:
            y = net.op("GroupNormalization", x, net.weight(12), net.weight(12), num_groups=1)
        model = net.model(net.conv(y, 2))
        assert assert_exact(model)[1] == 0
        assert assert_exact(model, allow_statistical=True)[1] == 6


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_softmax_over_channels_is_statistical(network, assert_exact, kind):
    net = network()
    x = net.op(kind, net.conv(net.input(1, 3, 4, 4), 8), axis=1)
    model = net.model(net.conv(x, 2))
    assert assert_exact(model)[1] == 0
    assert assert_exact(model, allow_statistical=True)[1] == 4


def test_half_precision_normalizes_in_single(network, assert_exact):
    net = network()
    x = net.matmul(net.input(2, 5, 6), 8)
    scale = net.op("Cast", net.weight(8), to=int(ir.DataType.FLOAT16))
    half = net.op("LayerNormalization", net.op("Cast", x, to=int(ir.DataType.FLOAT16)), scale)
    y = net.op("Cast", half, to=int(ir.DataType.FLOAT))
    model = net.model(net.matmul(y, 3))
    found = analyse(model, allow_statistical=True)
    removal = plan_removal(found, find_groups(found)[0].classes[:4].tolist())
    pruned = clone(model)
    apply_removal(pruned, removal, Rewriter(pruned))
    feeds = random_inputs(model)
    masked = run_reference(masked_model(model, removal), feeds)["y0"]
    np.testing.assert_allclose(run_reference(pruned, feeds)["y0"], masked, atol=5e-3)


@pytest.mark.parametrize(
    "kind",
    ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSumExp", "ReduceSumSquare", "ReduceL1"],
)
def test_reductions_over_channels_are_exact(network, assert_exact, kind):
    net = network()
    x = net.conv(net.input(2, 3, 4, 4), 8)
    attention = net.op(kind, x, net.ints(1), keepdims=1)
    pruned, removed = assert_exact(net.model(net.conv(net.op("Mul", x, net.op("Sigmoid", attention)), 2)))
    assert removed == 4


def test_a_mean_keeps_its_divisor(network):
    net = network()
    x = net.input(2, 3)
    model = net.model(net.op("ReduceMean", net.op("MatMul", x, net.weight(3, 8)), net.ints(1), keepdims=0))
    found = analyse(model)
    (group,) = find_groups(found)
    removal = plan_removal(found, group.classes[:6].tolist())
    pruned = clone(model)
    apply_removal(pruned, removal, Rewriter(pruned))
    feeds = random_inputs(model)
    weight = next(iter(model.graph)).inputs[1].const_value.numpy()
    expected = (feeds["x"] @ weight)[:, 6:].sum(axis=1) / 8
    np.testing.assert_allclose(run_reference(pruned, feeds)["y0"], expected, rtol=1e-5)


@pytest.mark.parametrize(("kind", "p"), [("CumSum", None), ("LpNormalization", 1), ("LpNormalization", 2)])
def test_running_sums_and_norms_along_channels_are_exact(network, assert_exact, kind, p):
    net = network()
    x = net.matmul(net.input(2, 5), 8)
    if kind == "CumSum":
        y = net.op("CumSum", x, net.constant(np.array(1)), exclusive=1, reverse=1)
    else:
        y = net.op("LpNormalization", x, axis=-1, p=p)
    assert assert_exact(net.model(net.matmul(y, 3)))[1] == 4
