"""Axes of open size: heads that share an axis with the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from graphwright.ir.reference import run_reference
from graphwright.passes.channels import analyse
from graphwright.passes.channels.periods import coefficient, one_period, scaled
from graphwright.passes.optimize import optimize
from hypothesis import given
from hypothesis import strategies as st

HEADS, SIZE, LENGTH = 4, 6, 5
WIDTH = HEADS * SIZE


def joined(net, x):
    """[length, batch, width] to [batch*heads, length, size], as torch's attention does."""
    y = net.op("Reshape", net.matmul(x, WIDTH), net.ints(LENGTH, -1, SIZE))
    return net.op("Transpose", y, perm=[1, 0, 2])


def attention(net, averaged=True):
    x = net.input(LENGTH, "batch", 7)
    q, k, v = (joined(net, x) for _ in range(3))
    scores = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1])), axis=-1)
    y = net.op("Transpose", net.op("MatMul", scores, v), perm=[1, 0, 2])
    y = net.matmul(net.op("Reshape", y, net.ints(-1, WIDTH)), 3)
    if not averaged:
        return net.model(y)
    weights = net.op("Reshape", scores, net.ints(-1, HEADS, LENGTH, LENGTH))
    return net.model(y, net.op("ReduceMean", weights, net.ints(1), keepdims=0))


def run(model, batch, seed=3):
    x = np.random.default_rng(seed).standard_normal((LENGTH, batch, 7)).astype(np.float32)
    return list(run_reference(model, {model.graph.inputs[0].name: x}).values())


@pytest.mark.parametrize(("wish", "heads", "size"), [("heads", 2, SIZE), ("dims", HEADS, 3)])
def test_attention_over_batch_times_heads(network, wish, heads, size):
    result = optimize(attention(network()), f"prune-channels{{ratio=0.5 attention={wish}}}", check_each=False)
    (record,) = result.report.records
    assert record.details["proof"]["error"] <= 1e-4
    softmax = next(node for node in result.model.graph if node.op_type == "Softmax")
    assert str(softmax.outputs[0].shape[0]) == f"{heads}*batch"
    product = next(
        node
        for node in result.model.graph
        if node.op_type == "MatMul" and node.outputs[0] is softmax.inputs[0]
    )
    assert product.inputs[0].shape[2] == size
    for batch in (1, 2, 5):
        y, weights = run(result.model, batch)
        assert y.shape == (LENGTH * batch, 3) and weights.shape == (batch, LENGTH, LENGTH)


def test_heads_of_every_batch_go(network, assert_exact):
    pruned, removed = assert_exact(attention(network(), averaged=False))
    assert removed > 0
    assert [y.shape for y in run(pruned, 3)] == [(LENGTH * 3, 3)]


@pytest.mark.parametrize("budget", ["macs=0.6", "macs=0.6 importance=wanda ranking=global recover=weights"])
def test_budgets_and_activations_see_open_sizes(network, budget):
    model = attention(network())
    data = [
        {"x": np.random.default_rng(seed).standard_normal((LENGTH, 3, 7)).astype(np.float32)}
        for seed in range(6)
    ]
    result = optimize(model, f"prune-channels{{{budget} attention=heads}}", calibration=data)
    assert result.report.records[0].details["groups"]


def test_an_operator_that_tells_indices_apart_keeps_the_heads(network):
    net = network()
    x = net.input(LENGTH, "batch", 7)
    y = net.op("Gather", joined(net, x), net.ints(0, 1), axis=0)
    found = analyse(net.model(net.op("ReduceSum", y, net.ints(0, 1, 2), keepdims=0)))
    table = found.model.graph[0].inputs[1]
    free = found.classes_of(table, 1)
    # Positions within heads may go, heads may not.
    assert len(set(free[free >= 0].tolist())) == SIZE


def test_sums_over_batch_and_heads_keep_the_heads(network, assert_exact):
    net = network()
    x = net.input(LENGTH, "batch", 7)
    y = net.op("ReduceSum", joined(net, x), net.ints(0), keepdims=0)
    pruned, removed = assert_exact(net.model(net.matmul(y, 2)))
    assert removed == SIZE // 2
    assert pruned.graph[0].inputs[1].shape[1] == HEADS * SIZE // 2


@given(
    st.integers(1, 6),
    st.lists(st.integers(1, 4), max_size=2),
    st.lists(
        st.one_of(st.integers(1, 6), st.sampled_from(["b", "2*b", "3*b", "4*b", "6*b", "12*b"])), max_size=4
    ),
    st.integers(1, 5),
)
def test_a_period_says_what_every_size_says(count, inner, after, batch):
    labels = np.arange(count)
    found = one_period(labels, inner, after)
    if found is None:
        return
    sizes = [dim if isinstance(dim, int) else coefficient(dim) * batch for dim in after]
    total, inside = math.prod(sizes), math.prod(inner)
    # Only the sizes of a reshape: the labels lie in it a whole number of times.
    if total % (count * inside):
        return
    whole = np.tile(np.repeat(labels, inside), total // (count * inside)).reshape(sizes)
    for axis, (size, period) in enumerate(zip(sizes, found.shape, strict=True)):
        assert period == 1 or size % period == 0, axis
    times = [size // period for size, period in zip(sizes, found.shape, strict=True)]
    assert np.array_equal(np.tile(found, times), whole)


@pytest.mark.parametrize(
    ("dim", "times", "half"),
    [
        ("4*batch", 4, "2*batch"),
        ("2*b*t", 2, "b*t"),
        ("batch", 1, None),
        ("4*b + 2", 1, None),
        ("4*(b + 2)", 4, "2*(b + 2)"),
        ("4*b/3", 1, None),
        (None, 1, None),
    ],
)
def test_what_an_open_size_is_a_multiple_of(dim, times, half):
    assert coefficient(dim) == times
    assert scaled(dim, max(times, 2), max(times, 2) // 2) == half
