"""Channels are followed into the bodies of If, Loop and Scan, and out of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.opset import CANONICAL_OPSET


def body(net, build, inputs=()):
    """A graph built by `build(net, *inputs)` with the builder of its outer network."""
    outer, net.graph = net.graph, ir.Graph(list(inputs), [], nodes=[], opset_imports=net.imports, name="body")
    body_graph = net.graph
    try:
        outputs = build(net, *inputs)
        body_graph.outputs.extend(outputs)
    finally:
        net.graph = outer
    for node in body_graph:
        for output in node.outputs:
            output.name = f"{net.prefix}{output.name}"
        node.name = f"{net.prefix}{node.name}"
    return body_graph


def value(name, shape, dtype=ir.DataType.FLOAT):
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def add(net, op_type, inputs, attributes, shapes):
    node = ir.node(
        op_type, inputs, attributes, num_outputs=len(shapes), name=op_type, version=CANONICAL_OPSET
    )
    for index, (output, shape) in enumerate(zip(node.outputs, shapes, strict=True)):
        output.name = f"{op_type}_{index}"
        output.shape, output.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
    net.graph.append(node)
    return node.outputs


def branches(net, x):
    flag = net.input(name="flag", dtype=ir.DataType.BOOL)
    net.prefix = "then_"
    then = body(net, lambda net: [net.op("Relu", net.conv(x, 8))])
    net.prefix = "else_"
    other = body(net, lambda net: [net.op("Add", net.op("Neg", x), net.weight(8, 1, 1))])
    return add(net, "If", [flag], {"then_branch": then, "else_branch": other}, [x.shape])[0]


@pytest.mark.parametrize("seed", range(4))
def test_branches_lose_the_same_channels(network, assert_exact, seed):
    net = network()
    x = net.conv(net.input(1, 3, 4, 4), 8)
    pruned, removed = assert_exact(net.model(net.conv(branches(net, x), 2)), seed=seed)
    assert removed == 4
    branch = next(node for node in pruned.graph if node.op_type == "If")
    inner = next(iter(branch.attributes["then_branch"].as_graph()))
    assert list(inner.inputs[1].shape) == [4, 4, 3, 3]


def test_a_barrier_in_a_body_stops_only_what_reaches_it(network, assert_exact):
    net = network()
    x = net.conv(net.input(1, 3, 4, 4), 8)
    y = net.conv(x, 6)
    flag = net.input(name="flag", dtype=ir.DataType.BOOL)
    net.prefix = "then_"
    then = body(net, lambda net: [net.op("Softmax", y, axis=1)])
    net.prefix = "else_"
    other = body(net, lambda net: [net.op("Neg", y)])
    joined = add(net, "If", [flag], {"then_branch": then, "else_branch": other}, [y.shape])[0]
    assert assert_exact(net.model(net.conv(joined, 2)))[1] == 4


def loop(net, start, step, trips=3):
    inputs = [
        value("i", [], ir.DataType.INT64),
        value("go", [], ir.DataType.BOOL),
        value("state", start.shape),
    ]
    net.prefix = "loop_"

    def build(net, i, go, state):
        after = step(net, state)
        return [net.op("Identity", go), after, net.op("Tanh", after)]

    graph = body(net, build, inputs)
    operands = [net.constant(np.array(trips)), net.constant(np.array(True)), start]
    return add(net, "Loop", operands, {"body": graph}, [start.shape, [trips, *start.shape]])


def test_a_loop_carries_the_same_channels_through_every_step(network, assert_exact):
    net = network()
    x = net.matmul(net.input(2, 3), 8)
    last, each = loop(net, x, lambda net, state: net.op("Sigmoid", net.matmul(state, 8)))
    pruned, removed = assert_exact(net.model(net.matmul(last, 2), net.matmul(each, 3)))
    assert removed == 4
    node = next(node for node in pruned.graph if node.op_type == "Loop")
    product = next(each for each in node.attributes["body"].as_graph() if each.op_type == "MatMul")
    assert list(product.inputs[1].shape) == [4, 4]


def test_a_loop_that_permutes_its_state_ties_what_it_exchanges(network, assert_exact):
    net = network()
    x = net.matmul(net.input(2, 3), 8)
    last, _ = loop(
        net, x, lambda net, state: net.op("Gather", state, net.ints(1, 0, 3, 2, 5, 4, 7, 6), axis=1)
    )
    assert assert_exact(net.model(net.matmul(last, 2)))[1] == 2


def test_a_scan_over_time(network, assert_exact):
    net = network()
    sequence, state = net.matmul(net.input(5, 2, 3), 8), net.weight(2, 8)
    net.prefix = "scan_"

    def build(net, state, x):
        after = net.op("Tanh", net.op("Add", net.matmul(state, 8), x))
        return [after, net.op("Mul", after, after)]

    graph = body(net, build, [value("state", [2, 8]), value("step", [2, 8])])
    last, each = add(
        net, "Scan", [state, sequence], {"body": graph, "num_scan_inputs": 1}, [[2, 8], [5, 2, 8]]
    )
    assert assert_exact(net.model(net.matmul(last, 2), net.matmul(each, 3)))[1] == 4
