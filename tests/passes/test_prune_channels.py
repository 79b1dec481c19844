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
from graphwright.ir.verify import verify
from graphwright.passes.channels import analyse, apply_removal, find_groups, masked_model, plan_removal
from graphwright.passes.optimize import optimize


def prune(model, options="ratio=0.5"):
    """Prune without the pass's own proof, check the result against the masked original here."""
    result = optimize(model, f"prune-channels{{{options} proof=false}}")
    record = result.report.records[0]
    verify(result.model)
    return result.model, record


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


def test_normalization_over_channels_stops(network):
    net = network()
    x = net.conv(net.input(1, 4, 6, 6), 8)
    x = net.op("GroupNormalization", x, net.weight(8), net.weight(8), num_groups=1)
    x = net.op("Softmax", net.conv(x, 6), axis=1)
    _, record = prune(net.model(net.conv(x, 2)))
    assert record.details["groups"] == []
    assert {op for op, _ in reasons(record)} == {"GroupNormalization", "Softmax", "Conv"}


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


def test_flattening_by_a_computed_batch_size_lets_channels_go():
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 23]>
        flatten (float[batch,3,4,4] image) => (float[batch,5] y)
        <int64[1] zero = {0}, int64[1] rest = {-1}, float[8,3,1,1] filters, float[128,5] head>
        {
          [conv] a = Conv(image, filters)
          [bend] r = Relu(a)
          [dims] s = Shape(r)
          [first] b = Gather(s, zero)
          [target] wanted = Concat<axis=0>(b, rest)
          [flatten] flat = Reshape(r, wanted)
          [linear] y = MatMul(flat, head)
        }
    """)
    generator = np.random.default_rng(0)
    for name, shape in (("filters", (8, 3, 1, 1)), ("head", (128, 5))):
        value = next(each for node in model.graph for each in node.inputs if each.name == name)
        if value.is_graph_input():
            model.graph.inputs.remove(value)
        value.const_value = ir.tensor(generator.standard_normal(shape).astype(np.float32), name=name)
        if not value.is_initializer():
            model.graph.register_initializer(value)
    result = optimize(model, "prune-channels{ratio=0.5}")
    record = result.report.records[0]
    assert record.statistics["channels removed"] == 4
    assert record.details["proof"]["error"] <= 1e-5
    head = next(node for node in result.model.graph if node.op_type == "MatMul").inputs[1]
    assert list(head.shape) == [64, 5]


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE])
def test_rounding_of_other_floats_does_not_hide_the_proof(network, dtype):
    net = network()
    x = net.block(net.input(1, 3, 8, 8), 32)
    for _ in range(6):
        x = net.op("Relu", net.op("Add", x, net.conv(net.block(x, 32), 32)))
    model = net.model(net.conv(x, 4))
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.type = ir.TensorType(dtype)
        if value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(dtype.numpy()), name=value.name)
    for node in model.graph:
        for value in node.outputs:
            value.type = ir.TensorType(dtype)
    (record,) = optimize(model, "prune-channels{ratio=0.5}").report.records
    assert record.details["proof"]["error"] <= 1e-6
    assert record.statistics["groups pruned"] == 7
