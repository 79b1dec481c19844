"""High-bias absorption: outputs stay on the data, ranges shrink, and what cannot take a constant is told."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.constants import constant_array
from graphwright.ir.errors import PassError
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import Reference
from graphwright.passes.optimize import optimize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ABSORB = "absorb-biases{deviations=1000}"
"""So many that nothing is cut on the data."""


def raised(net, value, by):
    """Adds to the bias of the layer that makes a value."""
    node = value.producer()
    bias = node.inputs[2] if len(node.inputs) > 2 else node.inputs[1]
    bias.const_value = ir.tensor((bias.const_value.numpy() + by).astype(np.float32), name=bias.name)
    return value


def batches(model, count=4, first=0):
    return [random_inputs(model, seed=first + seed, dims={"n": 8}) for seed in range(count)]


def relu(net, value):
    return net.op("Relu", value)


def high(channels=8):
    return np.where(np.arange(channels) % 2, 40.0, 0.0)


def through_nothing(net, y):
    return net.conv(y, 6, kernel=1)


def through_groups(net, y):
    return net.conv(y, 6, kernel=1, group=2)


def without_a_bias(net, y):
    return net.conv(y, 6, kernel=1, bias=False)


def through_pools(net, y):
    y = net.op("MaxPool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    return net.conv(net.op("AveragePool", y, kernel_shape=[2, 2], pads=[0, 1, 0, 1]), 6, kernel=1)


def through_a_mean(net, y):
    return net.linear(net.op("ReduceMean", y, net.ints(2, 3), keepdims=0), 6)


def through_a_flatten(net, y):
    return net.linear(net.op("Flatten", net.op("GlobalAveragePool", y)), 6)


def through_a_transpose(net, y):
    return net.matmul(net.op("Transpose", y, perm=[0, 2, 3, 1]), 6)


def to_two_readers(net, y):
    return net.op("Add", net.conv(y, 6, kernel=1), net.conv(y, 6, kernel=1))


WAYS = [
    *(through_nothing, through_groups, without_a_bias, through_pools, through_a_mean),
    *(through_a_flatten, through_a_transpose, to_two_readers),
]


def network_of(network, way, seed=0):
    net = network(seed)
    made = raised(net, net.conv(net.input("n", 3, 6, 6), 8), high())
    return net.model(way(net, relu(net, made)))


@pytest.mark.parametrize("way", WAYS)
def test_outputs_stay_and_the_constant_is_gone(network, way):
    model = network_of(network, way)
    data = batches(model)
    result = optimize(model, ABSORB, calibration=data)
    assert result.report.records[-1].statistics["channels with absorbed biases"] == 4
    names = {kind: next(n for n in each.graph if n.op_type == "Relu").outputs[0].name for kind, each in
             (("before", model), ("after", result.model))}  # fmt: skip
    for feeds in data:
        before, after = Reference(model), Reference(result.model)
        assert compare(before.run(feeds)["y0"], after.run(feeds)["y0"]).max_rel < 1e-5
        wide = before.run_values(feeds, [names["before"]])[names["before"]]
        small = after.run_values(feeds, [names["after"]])[names["after"]]
        assert wide.max() > 35.0 and small.max() < 20.0 and small.min() == 0.0


def test_products_with_a_bias_of_their_own(network):
    net = network(1)
    made = raised(net, net.matmul(net.input("n", 5, 12), 8), high())
    model = net.model(net.matmul(relu(net, made), 4))
    data = batches(model)
    result = optimize(model, ABSORB, calibration=data)
    assert result.report.records[-1].statistics["channels with absorbed biases"] == 4
    for feeds in data:
        found = compare(Reference(model).run(feeds), Reference(result.model).run(feeds))
        assert found.max_rel < 1e-5


def test_scaled_gemms(network):
    net = network(2)
    made = raised(net, net.linear(net.input("n", 12), 8), high())
    bias, weight = net.weight(6), net.weight(8, 6)
    model = net.model(net.op("Gemm", relu(net, made), weight, bias, alpha=0.5, beta=2.0))
    data = batches(model)
    result = optimize(model, ABSORB, calibration=data)
    assert result.report.records[-1].statistics["layers with absorbed biases"] == 1
    assert compare(Reference(model).run(data[0]), Reference(result.model).run(data[0])).max_rel < 1e-5


def test_three_deviations_cut_little_and_take_more(network):
    model = network_of(network, through_nothing)
    data = batches(model, 8)
    constants = []
    for text in (ABSORB, "absorb-biases"):
        result = optimize(model, text, calibration=data)
        bias = constant_array(next(node for node in result.model.graph).inputs[2])
        constants.append(bias[1::2])
        feeds = batches(model, 1, 50)[0]
        assert compare(Reference(model).run(feeds), Reference(result.model).run(feeds)).sqnr_db > 25.0
    assert (constants[1] <= constants[0] + 1e-5).all() and (constants[1] < constants[0]).any()


def test_quantization_gains(network):
    model = network_of(network, through_nothing)
    data = batches(model, 8)
    found = []
    for text in ("insert-qdq", f"{ABSORB},insert-qdq"):
        made = optimize(model, text, calibration=data).model
        feeds = batches(model, 1, 99)[0]
        found.append(compare(Reference(model).run(feeds)["y0"], Reference(made).run(feeds)["y0"]))
    assert found[1].sqnr_db > found[0].sqnr_db + 5.0


def padded(net, y):
    return net.conv(y, 6)


def averaged_with_zeros(net, y):
    y = net.op("AveragePool", y, kernel_shape=[2, 2], pads=[1, 1, 0, 0], count_include_pad=1)
    return net.conv(y, 6, kernel=1)


def transposed(net, y):
    return net.op("ConvTranspose", y, net.weight(8, 6, 2, 2), kernel_shape=[2, 2])


def gated(net, y):
    return net.conv(net.op("Mul", y, net.op("Sigmoid", y)), 6, kernel=1)


def without_a_place(net, y):
    return net.op("MatMul", net.op("Transpose", y, perm=[0, 2, 3, 1]), net.weight(8, 6))


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        (padded, "adds zeros to what it reads"),
        (averaged_with_zeros, "does not hand a constant on"),
        (transposed, "adds zeros to what it reads"),
        (gated, "does not hand a constant on"),
        (without_a_place, "it has no bias, and no addition behind it"),
        (lambda net, y: y, "reaches the output"),
    ],
)
def test_what_cannot_take_a_constant_is_told(network, way, reason):
    model = network_of(network, way)
    record = optimize(model, ABSORB, calibration=batches(model)).report.records[-1]
    assert not record.changed
    assert any(reason in each.reason for each in record.left_alone), record.left_alone


def test_low_channels_selectors_and_overflow(network):
    net = network()
    low = raised(net, net.conv(net.input("n", 3, 6, 6), 8), -5.0)
    model = net.model(net.conv(relu(net, low), 6, kernel=1))
    data = batches(model)
    record = optimize(model, "absorb-biases", calibration=data).report.records[-1]
    assert [each.reason for each in record.left_alone] == ["no channel stays above zero"]
    model = network_of(network, through_nothing)
    name = [node.name for node in model.graph if node.op_type == "Conv"][1]
    record = optimize(model, f"absorb-biases{{skip={name}}}", calibration=data).report.records[-1]
    assert "is not selected" in record.left_alone[0].reason
    huge = [{"x": np.full_like(data[0]["x"], 3e38)}]
    record = optimize(model, "absorb-biases", calibration=huge).report.records[-1]
    assert [each.reason for each in record.left_alone] == ["its results are not finite"]


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 99), st.sampled_from(WAYS), st.lists(st.floats(-50, 50), min_size=8, max_size=8))
def test_any_biases_leave_the_outputs_as_they_are(network, seed, way, biases):
    net = network(seed)
    made = raised(net, net.conv(net.input("n", 3, 6, 6), 8), np.array(biases))
    model = net.model(way(net, relu(net, made)))
    data = batches(model, 2)
    result = optimize(model, ABSORB, calibration=data)
    for feeds in data:
        assert compare(Reference(model).run(feeds), Reference(result.model).run(feeds)).max_rel < 1e-4


@pytest.mark.parametrize(
    ("text", "match"),
    [("absorb-biases", "measures activations"), ("absorb-biases{deviations=0}", "deviations")],
)
def test_bad_input(network, text, match):
    with pytest.raises(PassError, match=match):
        optimize(network_of(network, through_nothing), text)
