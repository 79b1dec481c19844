"""Positions read and written, strides, and other operators that pruning passes through."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest


def through(network, assert_exact, make, channels=8, shape=(2, 3, 4, 4), **options):
    """Number of classes removed from one convolution whose result goes through `make`."""
    net = network()
    y = make(net, net.conv(net.input(*shape), channels))
    y = net.op("Reshape", y, net.ints(2, -1)) if len(y.shape) != 2 else y
    return assert_exact(net.model(net.linear(y, 3)), **options)


def test_gather_of_a_grid_of_positions(network, assert_exact):
    for picked in (np.arange(8).reshape(8, 1, 1), np.array([[0, 0, 1], [4, 4, 2]]), np.array([[0], [-1]])):
        make = lambda net, x, p=picked: net.op("Gather", x, net.constant(p), axis=1)  # noqa: E731
        assert through(network, assert_exact, make)[1] > 0


def test_elements_along_another_axis(network, assert_exact):
    def gathered(net, x):
        return net.op("GatherElements", x, net.constant(net.rng.integers(0, 4, (2, 8, 4, 3))), axis=3)

    def scattered(net, x):
        places = net.constant(net.rng.permuted(np.tile(np.arange(4), (2, 8, 4, 1)), axis=3))
        return net.op("ScatterElements", x, places, net.op("Tanh", x), axis=3)

    assert through(network, assert_exact, gathered)[1] == 4
    assert through(network, assert_exact, scattered)[1] == 4


def test_elements_along_the_pruned_axis_stay(network, assert_exact):
    make = lambda net, x: net.op("GatherElements", x, net.constant(np.zeros((2, 8, 4, 4), np.int64)), axis=1)  # noqa: E731
    assert through(network, assert_exact, make)[1] == 0


def test_gather_nd_and_scatter_nd_of_whole_rows(network, assert_exact):
    def gathered(net, x):
        rows = net.op("Transpose", x, perm=[2, 3, 0, 1])
        y = net.op("GatherND", rows, net.constant(np.array([[0, 1], [3, 3], [2, 0]])))
        return net.op("Transpose", y, perm=[1, 0, 2])

    def scattered(net, x):
        rows = net.op("Transpose", x, perm=[2, 0, 3, 1])
        part = net.op("Gather", net.op("Sin", rows), net.ints(0, 3), axis=0)
        y = net.op("ScatterND", rows, net.constant(np.array([[1], [2]])), part)
        return net.op("Transpose", y, perm=[1, 0, 2, 3])

    assert through(network, assert_exact, gathered)[1] == 4
    assert through(network, assert_exact, scattered)[1] == 4


def test_strides_and_reversals_of_channels(network, assert_exact):
    def halves(net, x):
        even, odd = (net.op("Slice", x, net.ints(i), net.ints(99), net.ints(1), net.ints(2)) for i in (0, 1))
        return net.op("Concat", net.op("Mul", even, net.op("Sigmoid", odd)), odd, axis=1)

    def reversed_(net, x):
        y = net.op("Slice", x, net.ints(-1), net.ints(-(2**31)), net.ints(1), net.ints(-1))
        return net.op("Add", y, net.weight(8, 1, 1))

    assert through(network, assert_exact, halves)[1] == 2
    assert through(network, assert_exact, reversed_)[1] == 4


def test_one_hot_and_triangles_beside_channels(network, assert_exact):
    net = network()
    x = net.conv(net.input(2, 3, 4, 4), 8)
    chosen = net.op("ArgMax", net.op("ReduceSum", x, net.ints(1), keepdims=0), axis=1, keepdims=0)
    hot = net.op("OneHot", chosen, net.constant(np.array(5)), net.constant(np.array([0, 1], np.float32)))
    triangle = net.op("Trilu", x)
    out = net.linear(net.op("Flatten", triangle), 3)
    assert assert_exact(net.model(out, net.op("Relu", hot)))[1] == 4


def test_grids(network, assert_exact):
    def sampled(net, x):
        grid = net.constant(net.rng.uniform(-1, 1, (2, 3, 3, 2)).astype(np.float32))
        return net.op("GridSample", x, grid)

    assert through(network, assert_exact, sampled)[1] == 4


@pytest.mark.parametrize(("group", "out", "left"), [(2, 8, 2), (6, 12, 3), (3, 6, 2)])
def test_grouped_transposed_convolution(network, assert_exact, group, out, left):
    net = network()
    x = net.conv(net.input(2, 3, 4, 4), 12)
    x = net.op("ConvTranspose", x, net.weight(12, out // group, 2, 2), net.weight(out), group=group)
    pruned, removed = assert_exact(net.model(net.conv(x, 2)))
    assert removed > 0
    node = next(n for n in pruned.graph if n.op_type == "ConvTranspose")
    assert node.attributes.get_int("group") == left


@pytest.mark.parametrize("group", [2, 4])
def test_shuffled_chain_of_grouped_convolutions(network, assert_exact, group):
    net = network()
    x = net.conv(net.input(1, 3, 4, 4), 16)
    for _ in range(2):
        x = net.conv(x, 16, kernel=1, group=group)
        x = net.op("Reshape", x, net.ints(1, group, 16 // group, 4, 4))
        x = net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1, 3, 4]), net.ints(1, 16, 4, 4))
        x = net.conv(x, 16, group=16)
    assert assert_exact(net.model(net.conv(x, 2)))[1] > 0


def test_a_size_of_another_tensor_resizes(network, assert_exact):
    net = network()
    x = net.conv(net.input("N", 3, 4, 4), 8)
    y = net.conv(net.input("N", 3, 8, 8, name="z"), 8)
    sizes = net.op("Concat", net.op("Shape", x, start=0, end=2), net.op("Shape", y, start=2), axis=0)
    up = net.op("Resize", x, None, None, sizes, mode="nearest")
    pruned, removed = assert_exact(net.model(net.conv(net.op("Add", up, y), 3)), dims={"N": 2})
    assert removed == 4


def test_filled_by_a_computed_shape(network, assert_exact):
    net = network()
    x = net.conv(net.input("N", 3, 4, 4), 8)
    zeros = net.op("ConstantOfShape", net.op("Shape", x), value=ir.tensor(np.array([2], np.float32)))
    assert assert_exact(net.model(net.conv(net.op("Mul", x, zeros), 3)), dims={"N": 2})[1] == 4


def test_weights_that_are_transposed_at_run_time_make_channels(network, assert_exact):
    net = network()
    first, second = net.weight(8, 5), net.weight(3, 8)
    x = net.op("MatMul", net.input(2, 5), net.op("Transpose", first))
    pruned, removed = assert_exact(
        net.model(net.op("MatMul", net.op("Tanh", x), net.op("Transpose", second)))
    )
    assert removed == 4
    assert [list(v.shape) for v in pruned.graph.initializers.values()] == [[4, 5], [3, 4]]


def test_a_pointwise_convolution_passes_its_other_axes_through(network, assert_exact):
    net = network()
    x = net.op("Conv", net.matmul(net.input(2, 3, 6), 8), net.weight(1, 3, 1), net.weight(1))
    pruned, removed = assert_exact(net.model(net.linear(net.op("Squeeze", x, net.ints(1)), 3)))
    assert removed == 4
    assert list(next(n for n in pruned.graph if n.op_type == "MatMul").inputs[1].shape) == [6, 4]
