"""The standard's attention and rotary embedding: heads, groups of heads, or positions within heads."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.passes.optimize import optimize


def projected(net, x, *widths):
    return [net.matmul(x, width) for width in widths]


def attention_of(model):
    return next(node for node in model.graph if node.op_type == "Attention")


@pytest.mark.parametrize(("q", "kv"), [(4, 4), (4, 2), (4, 1)])
def test_flat_attention_prunes_positions_within_heads(network, assert_exact, q, kv):
    net = network()
    x = net.input(2, 5, 6)
    size = 8
    parts = projected(net, x, q * size, kv * size, kv * size)
    y = net.op("Attention", *parts, q_num_heads=q, kv_num_heads=kv)
    pruned, removed = assert_exact(net.model(net.matmul(y, 3)))
    assert removed == 4 + 4
    node = attention_of(pruned)
    assert node.attributes.get_float("scale") == pytest.approx(size**-0.5)
    assert [v.shape[2] for v in node.inputs[:3]] == [q * 4, kv * 4, kv * 4]


def test_flat_attention_with_many_small_heads_prunes_heads(network, assert_exact):
    net = network()
    parts = projected(net, net.input(2, 5, 6), 16 * 2, 8 * 2, 8 * 2)
    y = net.op("Attention", *parts, q_num_heads=16, kv_num_heads=8, is_causal=1)
    pruned, removed = assert_exact(net.model(net.matmul(y, 3)))
    assert removed == 4
    node = attention_of(pruned)
    assert (node.attributes.get_int("q_num_heads"), node.attributes.get_int("kv_num_heads")) == (8, 4)
    assert "scale" not in node.attributes


def heads(net, x, count, size):
    y = net.op("Reshape", net.matmul(x, count * size), net.ints(0, 0, count, size))
    return net.op("Transpose", y, perm=[0, 2, 1, 3])


@pytest.mark.parametrize(("q", "kv", "left"), [(8, 8, (4, 4)), (8, 4, (4, 2)), (8, 1, (4, 1))])
def test_heads_over_four_axes_go_with_their_key_value_head(network, assert_exact, q, kv, left):
    net = network()
    x = net.input(2, 5, 6)
    mask = net.op("Sigmoid", net.weight(1, q, 5, 5))
    parts = [heads(net, x, count, 2) for count in (q, kv, kv)]
    y = net.op("Attention", *parts, mask, softcap=5.0)
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, q * 2))
    pruned, removed = assert_exact(net.model(net.matmul(y, 3)))
    assert removed > 0
    query, key = attention_of(pruned).inputs[:2]
    if kv > 1:
        assert (query.shape[1], key.shape[1]) == left


def test_cache_of_the_interface_keeps_heads_and_sizes(network, assert_exact):
    net = network()
    x = net.input(2, 5, 6)
    past = [net.input(2, 4, 3, 2, name=name) for name in ("past_key", "past_value")]
    parts = [heads(net, x, 4, 2) for _ in range(3)]
    y, present_key, present_value = net.op("Attention", *parts, None, *past, outputs=3)
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, 8))
    hidden = net.op("Gelu", net.matmul(y, 10))
    pruned, removed = assert_exact(net.model(net.matmul(hidden, 3), present_key, present_value))
    assert removed == 5


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("partial", [0, 4])
@pytest.mark.parametrize("flat", [False, True])
def test_rotary_embedding_ties_the_pair_that_turns_together(
    network, assert_exact, interleaved, partial, flat
):
    net = network()
    x = net.input(2, 5, 6)
    count, size = 2, 8
    turned = (partial or size) // 2
    angles = net.rng.uniform(0, 3, (5, turned)).astype(np.float32)
    caches = [net.constant(np.cos(angles)), net.constant(np.sin(angles))]
    positions = net.constant(np.tile(np.arange(5), (2, 1)))
    options = {"interleaved": interleaved, "rotary_embedding_dim": partial}
    if flat:
        options["num_heads"] = count
    parts = []
    for _ in range(2):
        part = net.matmul(x, count * size) if flat else heads(net, x, count, size)
        parts.append(net.op("RotaryEmbedding", part, *caches, positions, **options))
    parts.append(net.matmul(x, count * size) if flat else heads(net, x, count, size))
    if flat:
        y = net.op("Attention", *parts, q_num_heads=count, kv_num_heads=count)
    else:
        y = net.op("Transpose", net.op("Attention", *parts), perm=[0, 2, 1, 3])
        y = net.op("Reshape", y, net.ints(0, 0, count * size))
    pruned, removed = assert_exact(net.model(net.matmul(y, 3)))
    rotary = next(node for node in pruned.graph if node.op_type == "RotaryEmbedding")
    # The first half of the classes of every group: pairs, single positions that do not turn, values.
    assert removed == turned // 2 + (size - 2 * turned) // 2 + size // 2
    assert rotary.inputs[1].shape[1] == turned // 2
    if partial:
        assert rotary.attributes.get_int("rotary_embedding_dim") == 2 * (turned // 2)


def test_grouped_queries_spelled_out(network, assert_exact):
    net = network()
    x = net.input(2, 5, 6)
    query = heads(net, x, 8, 2)
    repeated = []
    for _ in range(2):
        part = net.op("Unsqueeze", heads(net, x, 4, 2), net.ints(2))
        part = net.op("Expand", part, net.ints(2, 4, 2, 5, 2))
        repeated.append(net.op("Reshape", part, net.ints(2, 8, 5, 2)))
    scores = net.op("MatMul", query, net.op("Transpose", repeated[0], perm=[0, 1, 3, 2]))
    y = net.op("MatMul", net.op("Softmax", scores, axis=-1), repeated[1])
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, 16))
    pruned, removed = assert_exact(net.model(net.matmul(y, 3)))
    weights = [
        list(n.inputs[1].shape)
        for n in pruned.graph
        if n.op_type == "MatMul" and n.inputs[1].is_initializer()
    ]
    assert weights == [[6, 8], [6, 4], [6, 4], [8, 3]]


def test_relative_position_bias_from_a_table(network, assert_exact):
    net = network()
    x = net.input(2, 4, 6)
    parts = [heads(net, x, 6, 2) for _ in range(3)]
    places = net.constant(net.rng.integers(0, 7, (16, 1)))
    bias = net.op("Reshape", net.op("GatherND", net.weight(7, 6), places), net.ints(4, 4, 6))
    bias = net.op("Unsqueeze", net.op("Transpose", bias, perm=[2, 0, 1]), net.ints(0))
    scores = net.op("MatMul", parts[0], net.op("Transpose", parts[1], perm=[0, 1, 3, 2]))
    y = net.op("MatMul", net.op("Softmax", net.op("Add", scores, bias), axis=-1), parts[2])
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, 12))
    pruned, removed = assert_exact(net.model(net.matmul(y, 3)))
    table = next(node for node in pruned.graph if node.op_type == "GatherND").inputs[0]
    assert removed == 3 and list(table.shape) == [7, 3]


def test_shifted_windows_pass_channels_through(network, assert_exact):
    net = network()
    x = net.op("Transpose", net.conv(net.input(1, 3, 4, 4), 8), perm=[0, 2, 3, 1])
    for axis in (1, 2):
        parts = [net.op("Slice", x, net.ints(a), net.ints(b), net.ints(axis)) for a, b in ((1, 4), (0, 1))]
        x = net.op("Concat", *parts, axis=axis)
    y = net.op("Reshape", x, net.ints(1, 2, 2, 2, 2, 8))
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), net.ints(4, 4, 8))
    merged = [
        net.op("Slice", x, net.ints(a, b), net.ints(9, 9), net.ints(1, 2), net.ints(2, 2))
        for a in (0, 1)
        for b in (0, 1)
    ]
    merged = net.matmul(net.op("Concat", *merged, axis=-1), 5)
    pruned, removed = assert_exact(net.model(net.matmul(y, 3), merged))
    assert removed == 4


def test_scale_computed_from_a_size_stays_the_number_it_was(network, assert_exact):
    net = network()
    x = net.input("N", 5, 6)
    q, k = heads(net, x, 2, 8), heads(net, x, 2, 8)
    size = net.op("Gather", net.op("Shape", q), net.constant(np.array(-1)), axis=0)
    root = net.op("Sqrt", net.op("Cast", size, to=int(ir.DataType.FLOAT)))
    scores = net.op("Div", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), root)
    y = net.op("Reshape", net.op("Softmax", scores, axis=-1), net.ints(0, 50))
    pruned, removed = assert_exact(net.model(net.matmul(y, 3)), dims={"N": 2})
    assert removed == 4


def spelled_out(net, count=2, size=8, joint=False):
    """Self-attention of `count` heads, with one projection for queries, keys and values, or three."""
    x = net.input(2, 5, 6)
    if joint:
        parts = net.op("Split", net.matmul(x, 3 * count * size), outputs=3, axis=2, num_outputs=3)
    else:
        parts = projected(net, x, *[count * size] * 3)
    shape = net.ints(2, 5, count, size)
    q, k, v = (net.op("Transpose", net.op("Reshape", part, shape), perm=[0, 2, 1, 3]) for part in parts)
    weights = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    y = net.op("Transpose", net.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    return net.model(net.matmul(net.op("Reshape", y, net.ints(2, 5, -1)), 3))


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(("wish", "left"), [("heads", 2), ("dims", 8), ("auto", 8)])
def test_heads_or_positions_as_one_likes(network, joint, wish, left):
    model = spelled_out(network(), joint=joint)
    record = optimize(model, f"prune-channels{{ratio=0.5 attention={wish}}}").report.records[-1]
    assert {group["before"] for group in record.details["groups"]} == {left}
    assert record.details["proof"]["error"] < 1e-5
    assert record.details["parameters"][1] < 0.6 * record.details["parameters"][0]


def test_heads_of_the_fused_operator_as_one_likes(network):
    net = network()
    parts = projected(net, net.input(2, 5, 6), 32, 32, 32)
    model = net.model(net.matmul(net.op("Attention", *parts, q_num_heads=4, kv_num_heads=4), 3))
    pruned = optimize(model, "prune-channels{ratio=0.5 attention=heads}").model
    node = attention_of(pruned)
    assert node.attributes.get_int("q_num_heads") == 2
    assert [v.shape[2] for v in node.inputs[:3]] == [16, 16, 16]


def test_a_wish_for_heads_that_are_not_there_is_told(network):
    net = network()
    model = net.model(net.matmul(net.matmul(net.input(2, 6), 8), 3))
    record = optimize(model, "prune-channels{attention=heads}").report.records[-1]
    assert "attention=heads: nothing of that kind can go" in record.notes
