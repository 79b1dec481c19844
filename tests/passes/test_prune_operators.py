"""Through every operator the analysis knows, the pruned model equals the masked original."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest


def weight_shapes(model):
    return [list(node.inputs[1].shape) for node in model.graph if node.op_type in ("Conv", "Gemm")]


def test_chain_with_functions_that_do_not_keep_zero(network, assert_exact):
    net = network()
    x = net.op("Sigmoid", net.block(net.input(2, 3, 8, 8), 8))
    x = net.op("Add", x, net.weight(1, 8, 1, 1))
    x = net.op("Exp", net.op("Mul", x, net.constant(np.float32(0.5))))
    assert assert_exact(net.model(net.conv(x, 4)))[1] == 4


def test_residual_network_prunes_tied_layers_together(network, assert_exact):
    net = network()
    x = net.block(net.input(1, 3, 8, 8), 8)
    for channels, stride in ((8, 1), (16, 2)):
        short = x if stride == 1 else net.norm(net.conv(x, channels, kernel=1, stride=stride))
        y = net.norm(net.conv(net.block(x, channels, stride=stride), channels))
        x = net.op("Relu", net.op("Add", y, short))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    model = net.model(net.linear(x, 10))
    pruned, removed = assert_exact(model)
    # stem+block 1, inside 1, inside 2, shortcut+block 2
    assert removed == 4 + 4 + 8 + 8
    assert weight_shapes(pruned)[0] == [4, 3, 3, 3]
    assert weight_shapes(pruned)[-1] == [10, 8]


def test_depthwise_block_follows_its_input(network, assert_exact):
    net = network()
    x = net.block(net.input(1, 3, 8, 8), 8, kernel=1)
    expanded = net.block(x, 24, kernel=1)
    deep = net.block(expanded, 24, group=24)
    y = net.op("Add", x, net.norm(net.conv(deep, 8, kernel=1)))
    pruned, removed = assert_exact(net.model(net.conv(y, 2)))
    depthwise = next(n for n in pruned.graph if n.attributes.get_int("group", 1) > 1)
    assert depthwise.attributes.get_int("group") == 12
    assert list(depthwise.inputs[1].shape) == [12, 1, 3, 3]
    assert removed == 4 + 12


def test_depthwise_with_channel_multiplier(network, assert_exact):
    net = network()
    x = net.block(net.input(1, 3, 6, 6), 6)
    pruned, removed = assert_exact(net.model(net.conv(net.block(x, 18, group=6), 2)))
    assert removed == 3
    assert weight_shapes(pruned) == [[3, 3, 3, 3], [9, 1, 3, 3], [2, 9, 3, 3]]


@pytest.mark.parametrize(("channels", "group", "expected"), [(12, 2, [6, 3, 3, 3]), (16, 8, [8, 2, 3, 3])])
def test_grouped_convolution_keeps_equal_groups(network, assert_exact, channels, group, expected):
    net = network()
    x = net.block(net.input(1, 3, 6, 6), channels)
    pruned, removed = assert_exact(net.model(net.conv(net.block(x, channels, group=group), 2)))
    assert removed > 0
    assert expected in weight_shapes(pruned)


def test_squeeze_excite_gate(network, assert_exact):
    net = network()
    x = net.block(net.input(1, 3, 8, 8), 16)
    gate = net.op("GlobalAveragePool", x)
    gate = net.op("Relu", net.conv(gate, 4, kernel=1))
    gate = net.op("Sigmoid", net.conv(gate, 16, kernel=1))
    pruned, removed = assert_exact(net.model(net.conv(net.op("Mul", x, gate), 5)))
    assert removed == 8 + 2
    assert weight_shapes(pruned) == [[8, 3, 3, 3], [2, 8, 1, 1], [8, 2, 1, 1], [5, 8, 3, 3]]


def test_concat_of_branches_and_dense_growth(network, assert_exact):
    net = network()
    x = net.block(net.input(1, 3, 8, 8), 6)
    fire = net.op("Concat", net.block(x, 8, kernel=1), net.block(x, 4), axis=1)
    dense = net.op("Concat", fire, net.block(fire, 4), axis=1)
    dense = net.op("Concat", dense, net.block(dense, 4), axis=1)
    pruned, removed = assert_exact(net.model(net.conv(net.norm(dense), 2)))
    assert removed == 3 + 4 + 2 + 2 + 2
    assert weight_shapes(pruned)[-1] == [2, 10, 3, 3]


@pytest.mark.parametrize("how", ["Flatten", "Reshape", "ReshapeBatch"])
def test_flatten_to_linear_with_spatial_extent(network, assert_exact, how):
    net = network()
    x = net.op("MaxPool", net.block(net.input(1, 3, 8, 8), 6), kernel_shape=[2, 2], strides=[2, 2])
    if how == "Flatten":
        x = net.op("Flatten", x)
    else:
        x = net.op("Reshape", x, net.ints(*((1, 96) if how == "Reshape" else (-1, 96))))
    pruned, _ = assert_exact(net.model(net.linear(net.op("Relu", net.linear(x, 10)), 3)))
    assert weight_shapes(pruned) == [[3, 3, 3, 3], [5, 48], [3, 5]]


def test_dynamic_batch_with_hard_coded_channels(network, assert_exact):
    net = network()
    x = net.block(net.input("N", 3, 4, 4), 8)
    x = net.op("Reshape", x, net.ints(-1, 8, 16))
    x = net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1]), net.ints(0, 128))
    model = net.model(net.linear(x, 3))
    for batch in (1, 3):
        pruned, removed = assert_exact(model, dims={"N": batch})
    assert removed == 4
    assert weight_shapes(pruned)[-1] == [3, 64]


def test_computed_shape_operand_is_restated(network, assert_exact):
    net = network()
    x = net.input("N", 3, 4, 4)
    y = net.block(x, 8)
    size = net.op("Concat", net.op("Shape", x, start=0, end=1), net.ints(8, 16), axis=0)
    y = net.op("Reshape", y, size)
    y = net.op("Reshape", net.op("Relu", y), net.ints(0, 8, 4, 4))
    pruned, removed = assert_exact(net.model(net.conv(y, 2)), dims={"N": 2})
    assert removed == 4


@pytest.mark.parametrize("perm", [[0, 2, 3, 1], [0, 3, 1, 2], [1, 0, 2, 3], [3, 2, 1, 0]])
def test_transposes_carry_channels_along(network, assert_exact, perm):
    net = network()
    x = net.op("Transpose", net.block(net.input(2, 3, 4, 5), 8), perm=perm)
    x = net.op("Add", net.op("Relu", x), net.weight(*x.shape))
    x = net.op("Transpose", x, perm=[perm.index(i) for i in range(4)])
    assert assert_exact(net.model(net.conv(x, 2)))[1] == 4


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_channel_shuffle(network, assert_exact, groups):
    net = network()
    x = net.block(net.input(1, 3, 4, 4), 12)
    x = net.op("Reshape", x, net.ints(1, groups, 12 // groups, 4, 4))
    x = net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1, 3, 4]), net.ints(1, 12, 4, 4))
    pruned, removed = assert_exact(net.model(net.conv(net.block(x, 12, group=12), 2)))
    assert removed > 0


def test_grouped_convolution_after_a_shuffle_that_crosses_its_groups(network, assert_exact):
    net = network()
    x = net.block(net.input(1, 3, 4, 4), 12)
    x = net.op("Reshape", x, net.ints(1, 4, 3, 4, 4))
    x = net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1, 3, 4]), net.ints(1, 12, 4, 4))
    model = net.model(net.conv(net.block(x, 12, group=4), 2))
    # Four groups of three against three runs of four: the inputs hang together, only outputs can go.
    pruned, removed = assert_exact(model)
    assert removed == 1
    assert weight_shapes(pruned) == [[12, 3, 3, 3], [8, 3, 3, 3], [2, 8, 3, 3]]


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_pixel_shuffle_as_operator(network, assert_exact, mode):
    net = network()
    x = net.op("DepthToSpace", net.block(net.input(1, 3, 4, 4), 16), blocksize=2, mode=mode)
    pruned, removed = assert_exact(net.model(net.conv(x, 2)))
    assert removed == 2
    assert weight_shapes(pruned) == [[8, 3, 3, 3], [2, 2, 3, 3]]


def test_pixel_shuffle_spelled_out_and_space_to_depth(network, assert_exact):
    net = network()
    x = net.op("SpaceToDepth", net.block(net.input(1, 3, 4, 4), 6), blocksize=2)
    x = net.op("Reshape", net.conv(x, 20), net.ints(1, 5, 2, 2, 2, 2))
    x = net.op("Reshape", net.op("Transpose", x, perm=[0, 1, 4, 2, 5, 3]), net.ints(1, 5, 4, 4))
    pruned, removed = assert_exact(net.model(net.conv(x, 2)))
    assert removed == 3 + 2
    assert weight_shapes(pruned) == [[3, 3, 3, 3], [12, 12, 3, 3], [2, 3, 3, 3]]


def test_split_slice_gather_and_concat_shift_positions(network, assert_exact):
    net = network()
    x = net.block(net.input(1, 3, 4, 4), 12)
    a, b = net.op("Split", x, net.ints(4, 8), outputs=2, axis=1)
    c = net.op("Slice", x, net.ints(2), net.ints(10), net.ints(1))
    d = net.op("Gather", x, net.ints(11, 0, 5, 5), axis=1)
    joined = net.op("Concat", net.op("Sigmoid", a), b, c, net.op("Exp", d), axis=1)
    pruned, removed = assert_exact(net.model(net.conv(joined, 2)), ratio=0.4)
    assert removed == 4


def test_gated_linear_unit_ties_both_halves(network, assert_exact):
    net = network()
    x = net.conv(net.input(1, 3, 4, 4), 12)
    a, b = net.op("Split", x, outputs=2, axis=1, num_outputs=2)
    pruned, removed = assert_exact(net.model(net.conv(net.op("Mul", a, net.op("Sigmoid", b)), 2)))
    assert removed == 3
    assert weight_shapes(pruned) == [[6, 3, 3, 3], [2, 3, 3, 3]]


def test_resize_pad_squeeze_and_means(network, assert_exact):
    net = network()
    x = net.block(net.input(1, 3, 4, 4), 8)
    x = net.op("Resize", x, None, None, net.ints(1, 8, 8, 8), mode="nearest")
    x = net.op("Resize", x, None, net.constant(np.array([1, 1, 0.5, 0.5], np.float32)), mode="linear")
    x = net.op("Pad", x, net.ints(0, 0, 1, 1, 0, 0, 1, 1))
    x = net.op("ReduceMean", x, net.ints(2, 3), keepdims=1)
    x = net.op("Unsqueeze", net.op("Squeeze", x, net.ints(2, 3)), net.ints(1))
    x = net.op("Squeeze", x, net.ints(1))
    assert assert_exact(net.model(net.linear(x, 3)))[1] == 4


def test_squeeze_without_axes_survives_a_single_channel(network, assert_exact):
    net = network()
    x = net.op("GlobalAveragePool", net.conv(net.input(2, 3, 4, 4), 2))
    x = net.op("Squeeze", x)
    pruned, removed = assert_exact(net.model(net.linear(x, 3)))
    assert removed == 1


def test_padded_channels_stay_where_they_are(network, assert_exact):
    net = network()
    x = net.block(net.input(1, 3, 4, 4), 4)
    wide = net.op("Pad", x, net.ints(0, 2, 0, 0, 0, 2, 0, 0), net.constant(np.float32(0.5)))
    pruned, removed = assert_exact(net.model(net.conv(wide, 2)))
    assert removed == 2
    assert weight_shapes(pruned)[-1] == [2, 6, 3, 3]


def test_transformer_block_prunes_hidden_neurons_and_head_dimensions(network, assert_exact):
    net = network()
    tokens, width, heads = 5, 12, 3
    x = net.input("N", tokens, width)
    scale = [net.constant(np.ones(width, np.float32)), net.constant(np.zeros(width, np.float32))]
    y = net.op("LayerNormalization", x, *scale)
    parts = []
    for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        part = net.op("Reshape", net.matmul(y, width), net.ints(0, 0, heads, width // heads))
        parts.append(net.op("Transpose", part, perm=perm))
    scores = net.op("Mul", net.op("MatMul", parts[0], parts[1]), net.constant(np.float32(0.5)))
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), parts[2])
    mixed = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(0, 0, width))
    x = net.op("Add", x, net.matmul(mixed, width))
    x = net.op("Add", x, net.matmul(net.op("Gelu", net.matmul(x, 20)), width))
    model = net.model(x)
    pruned, removed = assert_exact(model, dims={"N": 2})
    weights = [
        list(n.inputs[1].shape)
        for n in pruned.graph
        if n.op_type == "MatMul" and n.inputs[1].is_initializer()
    ]
    assert weights == [[12, 6], [12, 6], [12, 6], [6, 12], [12, 10], [10, 12]]


def test_fused_attention_keeps_its_scale(network, assert_exact):
    net = network()
    y = net.input(1, 5, 12)
    parts = []
    for _ in range(3):
        part = net.op("Reshape", net.matmul(y, 12), net.ints(1, 5, 3, 4))
        parts.append(net.op("Transpose", part, perm=[0, 2, 1, 3]))
    mixed = net.op("Attention", *parts)
    mixed = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(1, 5, 12))
    pruned, removed = assert_exact(net.model(net.matmul(mixed, 6)))
    assert removed > 0
    attention = next(node for node in pruned.graph if node.op_type == "Attention")
    assert attention.attributes.get_float("scale") == pytest.approx(0.5)


def test_einsum_and_transposed_convolution(network, assert_exact):
    net = network()
    x = net.op("ConvTranspose", net.block(net.input(1, 3, 4, 4), 6), net.weight(6, 8, 2, 2), net.weight(8))
    x = net.op("ConvTranspose", x, net.weight(8, 1, 2, 2), group=8)
    x = net.op("Einsum", x, net.weight(8, 7), equation="nchw,cd->ndhw")
    pruned, removed = assert_exact(net.model(net.conv(x, 2)))
    assert removed == 3 + 4 + 3


def test_shared_weights_are_pruned_for_all_their_users(network, assert_exact):
    net = network()
    x = net.block(net.input(1, 3, 6, 6), 6)
    shared = net.weight(6, 6, 3, 3)
    for _ in range(2):
        x = net.op("Relu", net.op("Conv", x, shared, pads=[1, 1, 1, 1]))
    pruned, removed = assert_exact(net.model(net.conv(x, 2)))
    assert removed == 3
    assert weight_shapes(pruned) == [[3, 3, 3, 3], [3, 3, 3, 3], [3, 3, 3, 3], [2, 3, 3, 3]]


def test_shared_weights_with_conflicting_positions_are_tied_through(network, assert_exact):
    net = network()
    x = net.block(net.input(1, 3, 6, 6), 6)
    first, second = net.op("Split", x, outputs=2, axis=1, num_outputs=2)
    shared = net.weight(4, 3, 3, 3)
    both = [net.op("Conv", part, shared, pads=[1, 1, 1, 1]) for part in (first, second)]
    assert assert_exact(net.model(net.conv(net.op("Concat", *both, axis=1), 2)))[1] > 0


def test_quantized_weights_are_sliced_before_dequantization(network, assert_exact):
    net = network()
    x = net.input(1, 3, 6, 6)
    weight = net.constant(net.rng.integers(-127, 127, (6, 3, 3, 3)).astype(np.int8))
    scale = net.constant(net.rng.uniform(0.01, 0.02, 6).astype(np.float32))
    weight = net.op("DequantizeLinear", weight, scale, axis=0)
    x = net.op("Relu", net.op("Conv", x, weight, pads=[1, 1, 1, 1]))
    pruned, removed = assert_exact(net.model(net.conv(x, 2)))
    assert removed == 3
    dequantize = pruned.graph.node(0)
    assert [list(value.shape) for value in dequantize.inputs] == [[3, 3, 3, 3], [3]]


def test_several_outputs_and_unused_ones(network, assert_exact):
    net = network()
    x = net.block(net.input(1, 3, 6, 6), 8)
    seen = net.block(x, 6)
    pruned, removed = assert_exact(net.model(net.conv(seen, 2), net.linear(net.op("Flatten", x), 3), seen))
    # `seen` is an output: only the first layer may shrink.
    assert removed == 4


def test_computed_shapes_follow_the_axes_they_read(network, assert_exact):
    net = network()
    x = net.input("N", "T", 12)
    k = net.op("Reshape", net.matmul(x, 12), net.ints(0, 0, 3, 4))
    k = net.op("Transpose", k, perm=[0, 2, 1, 3])
    sizes = net.op("Shape", k)
    pieces = [net.op("Slice", sizes, net.ints(i), net.ints(i + 1)) for i in range(4)]
    flat = net.op("Reshape", k, net.op("Concat", net.ints(-1), pieces[2], pieces[3], axis=0))
    flat = net.op("Transpose", net.op("Tanh", flat), perm=[0, 2, 1])
    back = net.op("Concat", pieces[0], pieces[1], net.ints(4), pieces[2], axis=0)
    back = net.op("Transpose", net.op("Reshape", flat, back), perm=[0, 3, 1, 2])
    merged = net.op("Reshape", back, net.ints(0, 0, 12))
    pruned, removed = assert_exact(net.model(net.matmul(merged, 5)), dims={"N": 2, "T": 3})
    assert removed == 2
    assert [list(n.inputs[1].shape) for n in pruned.graph if n.op_type == "MatMul"] == [[12, 6], [6, 5]]
    assert any(n.op_type == "Add" and n.outputs[0].dtype == ir.DataType.INT64 for n in pruned.graph)


def test_a_size_used_in_arithmetic_stays_the_number_it_was(network, assert_exact):
    net = network()
    x = net.conv(net.input(1, 3, 4, 4), 8)
    size = net.op("Cast", net.op("Shape", x, start=1, end=2), to=int(ir.DataType.FLOAT))
    pruned, removed = assert_exact(net.model(net.conv(net.op("Div", x, size), 2)))
    assert removed == 4
    divisor = next(node for node in pruned.graph if node.op_type == "Div").inputs[1]
    np.testing.assert_array_equal(divisor.const_value.numpy(), np.array([8], np.float32))


def test_expanded_by_a_size_that_is_read(network, assert_exact):
    net = network()
    x = net.conv(net.input("N", 3, 4, 4), 8)
    shape = net.op("Concat", net.op("Shape", x, start=0, end=2), net.ints(1, 1), axis=0)
    y = net.op("Mul", x, net.op("Expand", net.weight(1, 1, 4, 4), shape))
    pruned, removed = assert_exact(net.model(net.conv(y, 2)), dims={"N": 2})
    assert removed == 4


@pytest.mark.parametrize(("columns", "expected"), [(8, 4 + 3), (3, 3)])
def test_columns_of_a_learned_table_are_channels_but_coordinates_are_not(
    network, assert_exact, columns, expected
):
    net = network()
    query = net.matmul(net.input(2, 5, 4), 6)
    key = net.op("MatMul", net.weight(10, columns), net.weight(columns, 6))
    pruned, removed = assert_exact(net.model(net.op("MatMul", query, net.op("Transpose", key))))
    assert removed == expected


def test_splits_that_contradict_each_other_are_made_to_agree(network, assert_exact):
    net = network()
    x = net.conv(net.conv(net.input(1, 3, 4, 4), 96), 96, kernel=1, group=12)
    # By size the convolution would keep the positions in its groups, and the heads theirs: nothing could go.
    heads = net.op("Reshape", x, net.ints(1, 4, 24, 16))
    a, b, c = net.op("Split", heads, net.ints(8, 8, 8), outputs=3, axis=2)
    y = net.op("Reshape", net.op("Add", net.op("Mul", a, b), c), net.ints(1, 32, 4, 4))
    pruned, removed = assert_exact(net.model(net.conv(y, 2)))
    assert removed == 4 + 4
    assert weight_shapes(pruned)[:2] == [[48, 3, 3, 3], [48, 4, 1, 1]]


@pytest.mark.parametrize("stored_first", [False, True])
def test_neurons_of_experts_that_are_picked_at_run_time(network, assert_exact, stored_first):
    net = network()
    x = net.matmul(net.input(5, 4), 6)
    chosen = net.input(5, name="expert", dtype=ir.DataType.INT64)
    up = net.op("Gather", net.weight(3, 8, 6), chosen)
    down = net.op("Gather", net.weight(3, 8, 6), chosen)
    if stored_first:
        hidden = net.op("MatMul", up, net.op("Unsqueeze", x, net.ints(-1)))
        hidden = net.op("Transpose", net.op("Relu", hidden), perm=[0, 2, 1])
    else:
        hidden = net.op(
            "Relu",
            net.op("MatMul", net.op("Unsqueeze", x, net.ints(1)), net.op("Transpose", up, perm=[0, 2, 1])),
        )
    model = net.model(net.op("MatMul", hidden, down))
    pruned, removed = assert_exact(model)
    assert removed == 3 + 4
    assert sorted(
        list(value.shape) for value in pruned.graph.initializers.values() if len(value.shape) == 3
    ) == [
        [3, 4, 3],
        [3, 4, 6],
    ]
