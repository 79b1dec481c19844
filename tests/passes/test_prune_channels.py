"""Pruned models equal the masked originals, channel counts are exact, and what cannot be pruned is reported."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.clone import clone
from graphwright.ir.compare import compare
from graphwright.ir.errors import PassError, PipelineError
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import run_reference
from graphwright.ir.shapes import infer_shapes
from graphwright.ir.verify import verify
from graphwright.passes.channels import analyse, apply_removal, find_groups, masked_model, plan_removal
from graphwright.passes.optimize import optimize
from graphwright.passes.rewriter import Rewriter


def prune(model, options="ratio=0.5"):
    """Prune without the pass's own proof, check the result against the masked original here."""
    result = optimize(model, f"prune-channels{{{options} proof=false}}")
    record = result.report.records[0]
    verify(result.model)
    return result.model, record


def assert_exact(model, ratio=0.5, dims=None, seed=0):
    """Remove the first classes of every group; the pruned model must equal the masked one. Returns both counts."""
    model = clone(model)
    infer_shapes(model)
    found = analyse(model)
    groups = find_groups(found)
    removed = [int(c) for g in groups for c in g.classes[: int(len(g.classes) * ratio)]]
    removal = plan_removal(found, removed)
    pruned = clone(model)
    apply_removal(pruned, removal, Rewriter(pruned))
    verify(pruned)
    declared = {v.name: v.shape for node in pruned.graph for v in node.outputs}
    infer_shapes(pruned)
    assert {v.name: v.shape for node in pruned.graph for v in node.outputs} == declared
    feeds = random_inputs(model, seed=seed, dims=dims)
    masked = run_reference(masked_model(model, removal), feeds)
    found_far = compare(masked, run_reference(pruned, feeds))
    assert found_far.max_rel <= 1e-5, found_far
    if removed:
        assert not compare(run_reference(model, feeds), masked).equal
    return pruned, len(removed)


def weight_shapes(model):
    return [list(node.inputs[1].shape) for node in model.graph if node.op_type in ("Conv", "Gemm")]


def reasons(record):
    return {(entry.op_type, entry.reason.split(";")[0]) for entry in record.left_alone}


def test_chain_removes_the_weakest_filters_and_their_columns(network):
    net = network()
    x = net.input(1, 3, 8, 8)
    hidden = net.block(x, 8)
    model = net.model(net.conv(hidden, 4))
    first, second = (node for node in model.graph if node.op_type == "Conv")
    strength = np.abs(first.inputs[1].const_value.numpy()).sum(axis=(1, 2, 3))
    kept = np.sort(np.argsort(strength)[4:])

    pruned, record = prune(model)

    new_first, new_second = (node for node in pruned.graph if node.op_type == "Conv")
    np.testing.assert_array_equal(
        new_first.inputs[1].const_value.numpy(), first.inputs[1].const_value.numpy()[kept]
    )
    np.testing.assert_array_equal(
        new_second.inputs[1].const_value.numpy(), second.inputs[1].const_value.numpy()[:, kept]
    )
    # The masked model by hand: zero columns of the consumer.
    by_hand = clone(model)
    weight = list(by_hand.graph)[-1].inputs[1]
    array = weight.const_value.numpy().copy()
    array[:, [c for c in range(8) if c not in kept]] = 0
    weight.const_value = ir.tensor(array, name=weight.name)
    feeds = random_inputs(model)
    assert compare(run_reference(by_hand, feeds), run_reference(pruned, feeds)).max_rel <= 1e-5
    assert record.statistics["channels removed"] == 4
    (group,) = record.details["groups"]
    assert (group["before"], group["after"]) == (8, 4)
    assert group["producers"] == [{"node": first.name, "channels": 8, "removed": 4}]
    assert group["consumers"] == [second.name]
    assert record.details["macs"] == [64 * 9 * (8 * 3 + 4 * 8), 64 * 9 * (4 * 3 + 4 * 4)]


def test_masked_model_zeroes_the_consumers_of_removed_channels(network):
    net = network()
    model = net.model(net.conv(net.op("Sigmoid", net.conv(net.input(1, 3, 6, 6), 6)), 2))
    found = analyse(model)
    (group,) = find_groups(found)
    removal = plan_removal(found, group.classes[:2].tolist())
    feeds = random_inputs(model)
    by_hand = clone(model)
    weight = list(by_hand.graph)[-1].inputs[1]
    array = weight.const_value.numpy().copy()
    array[:, :2] = 0
    weight.const_value = ir.tensor(array, name=weight.name)
    assert compare(run_reference(by_hand, feeds), run_reference(masked_model(model, removal), feeds)).equal


def test_chain_with_functions_that_do_not_keep_zero(network):
    net = network()
    x = net.op("Sigmoid", net.block(net.input(2, 3, 8, 8), 8))
    x = net.op("Add", x, net.weight(1, 8, 1, 1))
    x = net.op("Exp", net.op("Mul", x, net.constant(np.float32(0.5))))
    assert assert_exact(net.model(net.conv(x, 4)))[1] == 4


def test_residual_network_prunes_tied_layers_together(network):
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


def test_depthwise_block_follows_its_input(network):
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


def test_depthwise_with_channel_multiplier(network):
    net = network()
    x = net.block(net.input(1, 3, 6, 6), 6)
    pruned, removed = assert_exact(net.model(net.conv(net.block(x, 18, group=6), 2)))
    assert removed == 3
    assert weight_shapes(pruned) == [[3, 3, 3, 3], [9, 1, 3, 3], [2, 9, 3, 3]]


@pytest.mark.parametrize(("channels", "group", "expected"), [(12, 2, [6, 3, 3, 3]), (16, 8, [8, 2, 3, 3])])
def test_grouped_convolution_keeps_equal_groups(network, channels, group, expected):
    net = network()
    x = net.block(net.input(1, 3, 6, 6), channels)
    pruned, removed = assert_exact(net.model(net.conv(net.block(x, channels, group=group), 2)))
    assert removed > 0
    assert expected in weight_shapes(pruned)


def test_squeeze_excite_gate(network):
    net = network()
    x = net.block(net.input(1, 3, 8, 8), 16)
    gate = net.op("GlobalAveragePool", x)
    gate = net.op("Relu", net.conv(gate, 4, kernel=1))
    gate = net.op("Sigmoid", net.conv(gate, 16, kernel=1))
    pruned, removed = assert_exact(net.model(net.conv(net.op("Mul", x, gate), 5)))
    assert removed == 8 + 2
    assert weight_shapes(pruned) == [[8, 3, 3, 3], [2, 8, 1, 1], [8, 2, 1, 1], [5, 8, 3, 3]]


def test_concat_of_branches_and_dense_growth(network):
    net = network()
    x = net.block(net.input(1, 3, 8, 8), 6)
    fire = net.op("Concat", net.block(x, 8, kernel=1), net.block(x, 4), axis=1)
    dense = net.op("Concat", fire, net.block(fire, 4), axis=1)
    dense = net.op("Concat", dense, net.block(dense, 4), axis=1)
    pruned, removed = assert_exact(net.model(net.conv(net.norm(dense), 2)))
    assert removed == 3 + 4 + 2 + 2 + 2
    assert weight_shapes(pruned)[-1] == [2, 10, 3, 3]


@pytest.mark.parametrize("how", ["Flatten", "Reshape", "ReshapeBatch"])
def test_flatten_to_linear_with_spatial_extent(network, how):
    net = network()
    x = net.op("MaxPool", net.block(net.input(1, 3, 8, 8), 6), kernel_shape=[2, 2], strides=[2, 2])
    if how == "Flatten":
        x = net.op("Flatten", x)
    else:
        x = net.op("Reshape", x, net.ints(*((1, 96) if how == "Reshape" else (-1, 96))))
    pruned, _ = assert_exact(net.model(net.linear(net.op("Relu", net.linear(x, 10)), 3)))
    assert weight_shapes(pruned) == [[3, 3, 3, 3], [5, 48], [3, 5]]


def test_dynamic_batch_with_hard_coded_channels(network):
    net = network()
    x = net.block(net.input("N", 3, 4, 4), 8)
    x = net.op("Reshape", x, net.ints(-1, 8, 16))
    x = net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1]), net.ints(0, 128))
    model = net.model(net.linear(x, 3))
    for batch in (1, 3):
        pruned, removed = assert_exact(model, dims={"N": batch})
    assert removed == 4
    assert weight_shapes(pruned)[-1] == [3, 64]


def test_computed_shape_operand_is_restated(network):
    net = network()
    x = net.input("N", 3, 4, 4)
    y = net.block(x, 8)
    size = net.op("Concat", net.op("Shape", x, start=0, end=1), net.ints(8, 16), axis=0)
    y = net.op("Reshape", y, size)
    y = net.op("Reshape", net.op("Relu", y), net.ints(0, 8, 4, 4))
    pruned, removed = assert_exact(net.model(net.conv(y, 2)), dims={"N": 2})
    assert removed == 4


@pytest.mark.parametrize("perm", [[0, 2, 3, 1], [0, 3, 1, 2], [1, 0, 2, 3], [3, 2, 1, 0]])
def test_transposes_carry_channels_along(network, perm):
    net = network()
    x = net.op("Transpose", net.block(net.input(2, 3, 4, 5), 8), perm=perm)
    x = net.op("Add", net.op("Relu", x), net.weight(*x.shape))
    x = net.op("Transpose", x, perm=[perm.index(i) for i in range(4)])
    assert assert_exact(net.model(net.conv(x, 2)))[1] == 4


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_channel_shuffle(network, groups):
    net = network()
    x = net.block(net.input(1, 3, 4, 4), 12)
    x = net.op("Reshape", x, net.ints(1, groups, 12 // groups, 4, 4))
    x = net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1, 3, 4]), net.ints(1, 12, 4, 4))
    pruned, removed = assert_exact(net.model(net.conv(net.block(x, 12, group=12), 2)))
    assert removed > 0


def test_grouped_convolution_after_a_shuffle_that_crosses_its_groups(network):
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
def test_pixel_shuffle_as_operator(network, mode):
    net = network()
    x = net.op("DepthToSpace", net.block(net.input(1, 3, 4, 4), 16), blocksize=2, mode=mode)
    pruned, removed = assert_exact(net.model(net.conv(x, 2)))
    assert removed == 2
    assert weight_shapes(pruned) == [[8, 3, 3, 3], [2, 2, 3, 3]]


def test_pixel_shuffle_spelled_out_and_space_to_depth(network):
    net = network()
    x = net.op("SpaceToDepth", net.block(net.input(1, 3, 4, 4), 6), blocksize=2)
    x = net.op("Reshape", net.conv(x, 20), net.ints(1, 5, 2, 2, 2, 2))
    x = net.op("Reshape", net.op("Transpose", x, perm=[0, 1, 4, 2, 5, 3]), net.ints(1, 5, 4, 4))
    pruned, removed = assert_exact(net.model(net.conv(x, 2)))
    assert removed == 3 + 2
    assert weight_shapes(pruned) == [[3, 3, 3, 3], [12, 12, 3, 3], [2, 3, 3, 3]]


def test_split_slice_gather_and_concat_shift_positions(network):
    net = network()
    x = net.block(net.input(1, 3, 4, 4), 12)
    a, b = net.op("Split", x, net.ints(4, 8), outputs=2, axis=1)
    c = net.op("Slice", x, net.ints(2), net.ints(10), net.ints(1))
    d = net.op("Gather", x, net.ints(11, 0, 5, 5), axis=1)
    joined = net.op("Concat", net.op("Sigmoid", a), b, c, net.op("Exp", d), axis=1)
    pruned, removed = assert_exact(net.model(net.conv(joined, 2)), ratio=0.4)
    assert removed == 4


def test_gated_linear_unit_ties_both_halves(network):
    net = network()
    x = net.conv(net.input(1, 3, 4, 4), 12)
    a, b = net.op("Split", x, outputs=2, axis=1, num_outputs=2)
    pruned, removed = assert_exact(net.model(net.conv(net.op("Mul", a, net.op("Sigmoid", b)), 2)))
    assert removed == 3
    assert weight_shapes(pruned) == [[6, 3, 3, 3], [2, 3, 3, 3]]


def test_resize_pad_squeeze_and_means(network):
    net = network()
    x = net.block(net.input(1, 3, 4, 4), 8)
    x = net.op("Resize", x, None, None, net.ints(1, 8, 8, 8), mode="nearest")
    x = net.op("Resize", x, None, net.constant(np.array([1, 1, 0.5, 0.5], np.float32)), mode="linear")
    x = net.op("Pad", x, net.ints(0, 0, 1, 1, 0, 0, 1, 1))
    x = net.op("ReduceMean", x, net.ints(2, 3), keepdims=1)
    x = net.op("Unsqueeze", net.op("Squeeze", x, net.ints(2, 3)), net.ints(1))
    x = net.op("Squeeze", x, net.ints(1))
    assert assert_exact(net.model(net.linear(x, 3)))[1] == 4


def test_squeeze_without_axes_survives_a_single_channel(network):
    net = network()
    x = net.op("GlobalAveragePool", net.conv(net.input(2, 3, 4, 4), 2))
    x = net.op("Squeeze", x)
    pruned, removed = assert_exact(net.model(net.linear(x, 3)))
    assert removed == 1


def test_padded_channels_stay_where_they_are(network):
    net = network()
    x = net.block(net.input(1, 3, 4, 4), 4)
    wide = net.op("Pad", x, net.ints(0, 2, 0, 0, 0, 2, 0, 0), net.constant(np.float32(0.5)))
    pruned, removed = assert_exact(net.model(net.conv(wide, 2)))
    assert removed == 2
    assert weight_shapes(pruned)[-1] == [2, 6, 3, 3]


def test_transformer_block_prunes_hidden_neurons_and_head_dimensions(network):
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
    assert "LayerNormalization" in {entry.op_type for entry in prune(model)[1].left_alone} or removed


def test_fused_attention_keeps_its_scale(network):
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


def test_einsum_and_transposed_convolution(network):
    net = network()
    x = net.op("ConvTranspose", net.block(net.input(1, 3, 4, 4), 6), net.weight(6, 8, 2, 2), net.weight(8))
    x = net.op("ConvTranspose", x, net.weight(8, 1, 2, 2), group=8)
    x = net.op("Einsum", x, net.weight(8, 7), equation="nchw,cd->ndhw")
    pruned, removed = assert_exact(net.model(net.conv(x, 2)))
    assert removed == 3 + 4 + 3


def test_recurrent_operator_is_a_barrier_and_reported(network):
    net = network()
    x = net.op(
        "Transpose", net.op("Squeeze", net.block(net.input(1, 3, 1, 6), 4), net.ints(2)), perm=[2, 0, 1]
    )
    out, _, _ = net.op("LSTM", x, net.weight(1, 16, 4), net.weight(1, 16, 4), outputs=3, hidden_size=4)
    model = net.model(out)
    pruned, record = prune(model)
    assert record.details["groups"] == []
    entry = next(e for e in record.left_alone if e.op_type == "LSTM" and "output channels" in e.reason)
    assert "not known" in entry.reason and "conv0" in entry.reason


def test_normalization_over_channels_stops(network):
    net = network()
    x = net.conv(net.input(1, 4, 6, 6), 8)
    x = net.op("GroupNormalization", x, net.weight(8), net.weight(8), num_groups=2)
    x = net.op("Softmax", net.conv(x, 6), axis=1)
    _, record = prune(net.model(net.conv(x, 2)))
    assert record.details["groups"] == []
    assert {op for op, _ in reasons(record)} == {"GroupNormalization", "Softmax", "Conv"}


def test_shared_weights_are_pruned_for_all_their_users(network):
    net = network()
    x = net.block(net.input(1, 3, 6, 6), 6)
    shared = net.weight(6, 6, 3, 3)
    for _ in range(2):
        x = net.op("Relu", net.op("Conv", x, shared, pads=[1, 1, 1, 1]))
    pruned, removed = assert_exact(net.model(net.conv(x, 2)))
    assert removed == 3
    assert weight_shapes(pruned) == [[3, 3, 3, 3], [3, 3, 3, 3], [3, 3, 3, 3], [2, 3, 3, 3]]


def test_shared_weights_with_conflicting_positions_are_tied_through(network):
    net = network()
    x = net.block(net.input(1, 3, 6, 6), 6)
    first, second = net.op("Split", x, outputs=2, axis=1, num_outputs=2)
    shared = net.weight(4, 3, 3, 3)
    both = [net.op("Conv", part, shared, pads=[1, 1, 1, 1]) for part in (first, second)]
    assert assert_exact(net.model(net.conv(net.op("Concat", *both, axis=1), 2)))[1] > 0


def test_weight_that_is_a_graph_output_or_input_stays(network):
    for role in ("output", "input"):
        net = network()
        x = net.conv(net.input(1, 3, 6, 6), 6)
        weight = next(iter(net.graph)).inputs[1]
        if role == "input":
            net.graph.inputs.append(weight)
        out = net.conv(net.op("Relu", x), 2)
        model = net.model(out)
        if role == "output":
            model.graph.outputs.append(weight)
        pruned, record = prune(model)
        assert record.details["groups"] == []
        assert any(f"graph {role}" in entry.reason for entry in record.left_alone)


def test_computed_weights(network):
    net = network()
    x = net.input(1, 3, 6, 6)
    scale = net.input(6, 1, 1, 1, name="scale")
    computed = net.op("Mul", net.weight(6, 3, 3, 3), scale)
    x = net.op("Relu", net.op("Conv", x, computed, pads=[1, 1, 1, 1]))
    _, record = prune(net.model(net.conv(x, 2)))
    assert record.details["groups"] == []
    assert any("'scale'" in entry.reason for entry in record.left_alone)


def test_quantized_weights_are_sliced_before_dequantization(network):
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


def test_several_outputs_and_unused_ones(network):
    net = network()
    x = net.block(net.input(1, 3, 6, 6), 8)
    seen = net.block(x, 6)
    pruned, removed = assert_exact(net.model(net.conv(seen, 2), net.linear(net.op("Flatten", x), 3), seen))
    # `seen` is an output: only the first layer may shrink.
    assert removed == 4


def test_body_of_if_keeps_what_it_reads(network):
    net = network()
    x = net.block(net.input(1, 3, 6, 6), 8)
    free = net.block(x, 8)
    flag = net.input(name="flag", dtype=ir.DataType.BOOL)
    bodies = []
    for index, op in enumerate(("Relu", "Neg")):
        node = ir.node(op, [free], name=f"body{index}")
        node.outputs[0].name = f"body{index}_out"
        node.outputs[0].shape, node.outputs[0].type = ir.Shape([1, 8, 6, 6]), ir.TensorType(ir.DataType.FLOAT)
        bodies.append(ir.Graph([], node.outputs, nodes=[node], name=f"body{index}"))
    branch = ir.node("If", [flag], {"then_branch": bodies[0], "else_branch": bodies[1]}, name="branch")
    branch.outputs[0].name = "branched"
    branch.outputs[0].shape, branch.outputs[0].type = ir.Shape([1, 8, 6, 6]), ir.TensorType(ir.DataType.FLOAT)
    net.graph.append(branch)
    model = net.model(net.conv(branch.outputs[0], 2))
    pruned, removed = assert_exact(model)
    assert removed == 4
    _, record = prune(model)
    assert any(entry.op_type == "If" and "body reads" in entry.reason for entry in record.left_alone)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("ratio=0.5", 10),
        ("ratio=0.3", 14),
        ("ratio=0.3 multiple=8", 16),
        ("ratio=0.99", 1),
        ("ratio=0.99 min_channels=4", 4),
        ("ratio=0.9 multiple=8", 8),
        ("ratio=0.0", 20),
    ],
)
def test_counts(network, options, expected):
    net = network()
    model = net.model(net.conv(net.block(net.input(1, 3, 6, 6), 20), 2))
    pruned, _ = prune(model, options)
    assert weight_shapes(pruned) == [[expected, 3, 3, 3], [2, expected, 3, 3]]


def test_selectors_choose_layers_and_protect_what_is_tied(network):
    net = network()
    x = net.block(net.input(1, 3, 6, 6), 8)
    tied = net.op("Add", x, net.conv(x, 8))
    model = net.model(net.conv(net.block(tied, 8), 2))
    names = [node.name for node in model.graph if node.op_type == "Conv"]
    pruned, record = prune(model, f"skip={names[1]}$")
    assert [shape[0] for shape in weight_shapes(pruned)] == [8, 8, 4, 2]
    assert any("selectors" in entry.reason for entry in record.left_alone)


@pytest.mark.parametrize("importance", ["l1", "l2", "random"])
def test_criteria_are_deterministic(network, importance):
    net = network()
    model = net.model(net.conv(net.block(net.input(1, 3, 6, 6), 8), 2))
    runs = [prune(model, f"importance={importance}")[0] for _ in range(2)]
    arrays = [[v.const_value.numpy() for v in run.graph.initializers.values()] for run in runs]
    for one, other in zip(*arrays, strict=True):
        np.testing.assert_array_equal(one, other)


def test_pass_proves_itself_and_leaves_the_original_alone(network):
    net = network()
    model = net.model(net.conv(net.block(net.input(1, 3, 6, 6), 8), 2))
    before = weight_shapes(model)
    result = optimize(model, "prune-channels")
    record = result.report.records[0]
    assert record.details["proof"]["error"] <= 1e-5
    assert weight_shapes(model) == before
    assert weight_shapes(result.model) == [[4, 3, 3, 3], [2, 4, 3, 3]]
    assert record.details["parameters"][1] < record.details["parameters"][0]


def test_a_group_that_fails_the_proof_is_not_applied(network, monkeypatch):
    net = network()
    x = net.block(net.input(1, 3, 6, 6), 8)
    model = net.model(net.conv(net.block(x, 8), 2))
    found = analyse(model)
    spoiled = find_groups(found)[1].producers[0].value.name

    from graphwright.passes.channels import proof

    def spoil(model, removal, rewriter):
        apply_removal(model, removal, rewriter)
        weight = model.graph.initializers[spoiled]
        if weight.shape[0] == 4:
            rewriter.set_initializer(weight, weight.const_value.numpy() * np.float32(1.5))

    monkeypatch.setattr(proof, "apply_removal", spoil)
    result = optimize(model, "prune-channels")
    assert [shape[0] for shape in weight_shapes(result.model)] == [4, 8, 2]
    assert any("the proof failed" in entry.reason for entry in result.report.records[0].left_alone)


def test_before_and_after_folding_batch_norm(network):
    net = network()
    x = net.block(net.block(net.input(1, 3, 6, 6), 8), 8)
    model = net.model(net.conv(x, 2))
    feeds = random_inputs(model)
    for pipeline in ("prune-channels,fold-batch-norm", "fold-batch-norm,prune-channels{importance=l2}"):
        result = optimize(model, pipeline)
        assert weight_shapes(result.model) == [[4, 3, 3, 3], [4, 4, 3, 3], [2, 4, 3, 3]]
        assert run_reference(result.model, feeds)["y0"].shape == (1, 2, 6, 6)


@pytest.mark.parametrize(
    "options", ["ratio=1.0", "ratio=-0.1", "multiple=0", "min_channels=0", "importance=best"]
)
def test_bad_options_are_one_clear_line(options):
    with pytest.raises((PassError, PipelineError)) as caught:
        optimize(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), f"prune-channels{{{options}}}")
    assert "\n" not in str(caught.value) and options.split("=")[0] in str(caught.value)


def resnet(net, widths, depth):
    x = net.block(net.input(1, 3, 224, 224), 64, kernel=7, stride=2, bias=False)
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage, channels in enumerate(widths):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            grows = x.shape[1] != channels
            short = net.norm(net.conv(x, channels, kernel=1, stride=stride, bias=False)) if grows else x
            y = net.norm(net.conv(net.block(x, channels, stride=stride, bias=False), channels, bias=False))
            x = net.op("Relu", net.op("Add", y, short))
    return net.model(net.linear(net.op("Flatten", net.op("GlobalAveragePool", x)), 1000))


def test_resnet18_at_half_has_the_published_size(network):
    model = resnet(network(), (64, 128, 256, 512), 2)
    record = optimize(model, "prune-channels").report.records[0]
    assert record.details["parameters"] == [11689512, 3055880]
    assert record.details["macs"] == [1814073344, 483149824]
    assert 0 < record.details["proof"]["error"] <= 1e-5
    assert len(record.details["groups"]) == 12
    assert [entry.op_type for entry in record.left_alone] == ["Gemm"]


_slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("mobilenet_v2_small", 0.5),
        ("vit_s16_small", 0.65),
        pytest.param("resnet18_small", 0.4, marks=_slow),
        pytest.param("bert_base_small", 0.75, marks=_slow),
        pytest.param("resnet50", 0.26, marks=_slow),
        pytest.param("bert_base", 0.51, marks=_slow),
    ],
)
def test_networks_traced_from_torch(name, share):
    from graphwright.tools.zoo import zoo_model

    record = optimize(zoo_model(name), "prune-channels").report.records[0]
    before, after = record.details["macs"]
    assert after <= share * before
    assert record.details["proof"]["error"] <= 1e-5
