"""Cross-layer equalization: the outputs stay, the ranges even out."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.constants import constant_array
from graphwright.ir.errors import PassError
from graphwright.passes.equivalence import check_equivalent
from graphwright.passes.optimize import optimize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def uneven(net, *values, axis=0, decades=3, seed=0):
    """Scales the channels of constants by random factors over some decades."""
    rng = np.random.default_rng(seed)
    for value in values:
        array = value.const_value.numpy().copy()
        factors = 10.0 ** rng.uniform(-decades / 2, decades / 2, array.shape[axis])
        array *= factors.reshape([-1 if i == axis else 1 for i in range(array.ndim)]).astype(array.dtype)
        value.const_value = ir.tensor(array, name=value.name)


def spread(model, name, axis):
    """Ratio of the largest to the smallest channel range of a weight."""
    node = next(node for node in model.graph if node.name == name)
    array = np.abs(constant_array(node.inputs[1]))
    ranges = array.max(axis=tuple(i for i in range(array.ndim) if i != axis))
    return ranges.max() / ranges.min()


def equalized(model, text="equalize"):
    result = optimize(model, text)
    found = check_equivalent(model, result.model)
    assert found.passed, found
    return result


def conv_chain(net):
    x = net.input("n", 3, 9, 9)
    first = net.conv(x, 8)
    depthwise = net.conv(net.op("Relu", first), 8, group=8)
    last = net.conv(net.op("LeakyRelu", depthwise, alpha=0.1), 4, kernel=1)
    for node in net.graph:
        if node.op_type == "Conv":
            uneven(net, node.inputs[1], node.inputs[2], decades=3, seed=len(node.name))
    return net.model(last)


def test_ranges_even_out_in_a_depthwise_chain(network):
    model = conv_chain(network())
    assert spread(model, "conv0", 0) > 10
    after = equalized(model).model
    # Each channel of the three layers is as wide as in the layer before and behind.
    ranges = []
    for name, axis in (("conv0", 0), ("conv2", 0), ("conv4", 1)):
        node = next(node for node in after.graph if node.name == name)
        array = np.abs(constant_array(node.inputs[1]))
        ranges.append(array.max(axis=tuple(i for i in range(array.ndim) if i != axis)))
    np.testing.assert_allclose(ranges[0], ranges[1], rtol=2e-2)
    np.testing.assert_allclose(ranges[1], ranges[2], rtol=2e-2)


def test_the_formula_of_the_paper(network):
    net = network()
    x = net.input(1, 6)
    hidden = net.op("Relu", net.linear(x, 5))
    model = net.model(net.linear(hidden, 3))
    first, last = (node for node in model.graph if node.op_type == "Gemm")
    r1 = np.abs(constant_array(first.inputs[1])).max(axis=1)
    r2 = np.abs(constant_array(last.inputs[1])).max(axis=0)
    after = equalized(model).model
    first, last = (node for node in after.graph if node.op_type == "Gemm")
    expected = np.sqrt(r1 * r2)
    np.testing.assert_allclose(np.abs(constant_array(first.inputs[1])).max(axis=1), expected, rtol=1e-3)
    np.testing.assert_allclose(np.abs(constant_array(last.inputs[1])).max(axis=0), expected, rtol=1e-3)


def test_several_readers_take_the_factor_together(network):
    net = network()
    x = net.input("n", 3, 8, 8)
    shared = net.op("Relu", net.conv(x, 6))
    left, right = net.conv(shared, 4), net.conv(shared, 4, kernel=1)
    model = net.model(net.op("Concat", left, right, axis=1))
    result = equalized(model)
    assert result.report.records[-1].statistics["equalized layers"] == 1


def test_grouped_and_transposed_convolutions(network):
    net = network()
    x = net.input(2, 4, 6, 6)
    y = net.op("Relu", net.conv(x, 8))
    y = net.op("Relu", net.conv(y, 6, group=2))
    weight, bias = net.weight(6, 5, 2, 2), net.weight(5)
    y = net.op("Relu", net.op("ConvTranspose", y, weight, bias, strides=[2, 2], kernel_shape=[2, 2]))
    model = net.model(net.conv(y, 3))
    result = equalized(model)
    assert result.report.records[-1].statistics["equalized layers"] == 3


def test_gates_pools_means_and_reshapes_are_crossed(network):
    net = network()
    x = net.input("n", 3, 8, 8)
    y = net.op("Relu", net.conv(x, 6))
    squeezed = net.op("GlobalAveragePool", y)
    gate = net.op("Sigmoid", net.conv(net.op("Relu", net.conv(squeezed, 2, kernel=1)), 6, kernel=1))
    y = net.op("MaxPool", net.op("Mul", y, gate), kernel_shape=[2, 2], strides=[2, 2])
    y = net.op("Relu", net.conv(y, 5))
    y = net.op("ReduceMean", y, net.ints(2, 3), keepdims=0)
    model = net.model(net.linear(net.op("Reshape", y, net.ints(-1, 5)), 4))
    result = equalized(model)
    assert set(result.report.records[-1].details["equalized"]) >= {"conv0", "conv3", "conv9"}


def test_values_of_attention_reach_the_output_projection(network):
    net = network()
    x = net.input(2, 7, 12)
    q, k, v = (net.matmul(x, 12) for _ in range(3))

    def heads(value):
        split = net.op("Reshape", value, net.ints(2, 7, 3, 4))
        return net.op("Transpose", split, perm=[0, 2, 1, 3])

    scores = net.op("MatMul", heads(q), net.op("Transpose", heads(k), perm=[0, 1, 3, 2]))
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), heads(v))
    merged = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(2, 7, 12))
    model = net.model(net.matmul(merged, 5))
    (moved,) = equalized(model).report.records[-1].details["equalized"].values()
    assert len(moved["readers"]) == 1


@pytest.mark.parametrize(
    ("stop", "word"),
    [
        (lambda net, y: net.op("Sigmoid", y), "Sigmoid"),
        (lambda net, y: net.op("Clip", y, net.constant(np.float32(0)), net.constant(np.float32(6))), "Clip"),
        (lambda net, y: net.op("Mul", y, y), "Mul"),
        (lambda net, y: net.op("Softmax", y, axis=1), "Softmax"),
        (lambda net, y: net.op("Add", y, net.op("Relu", net.graph.inputs[0])), "Add"),
    ],
)
def test_what_is_not_homogeneous_stops_it_and_is_told(network, stop, word):
    net = network()
    y = net.conv(net.input("n", 6, 8, 8), 6)
    model = net.model(net.conv(stop(net, y), 4))
    record = equalized(model).report.records[-1]
    assert "equalized layers" not in record.statistics
    assert any(word in each.reason for each in record.left_alone if each.node == "conv0")


def test_outputs_and_unselected_readers_are_left(network):
    net = network()
    hidden = net.conv(net.input(1, 3, 8, 8), 6)
    model = net.model(net.conv(net.op("Relu", hidden), 4), hidden)
    assert "output" in equalized(model).report.records[-1].left_alone[0].reason
    net = network()
    model = net.model(net.conv(net.op("Relu", net.conv(net.input(1, 3, 8, 8), 6)), 4))
    record = equalized(model, "equalize{skip=conv2}").report.records[-1]
    assert any("not selected" in each.reason for each in record.left_alone)


def test_dead_and_infinite_channels_change_nothing(network):
    net = network()
    x = net.input(1, 3, 8, 8)
    model = net.model(net.conv(net.op("Relu", net.conv(x, 6)), 4))
    node = next(iter(model.graph))
    array = node.inputs[1].const_value.numpy().copy()
    array[1] = 0.0
    node.inputs[1].const_value = ir.tensor(array, name=node.inputs[1].name)
    after = constant_array(next(iter(equalized(model).model.graph)).inputs[1])
    assert not after[1].any() and np.isfinite(after).all()


def test_a_bias_of_one_number_is_spread(network):
    net = network()
    x = net.input(2, 6)
    hidden = net.op("Gemm", x, net.weight(6, 5), net.constant(np.float32(0.7)))
    model = net.model(net.op("Gemm", net.op("Relu", hidden), net.weight(5, 3)))
    uneven(net, next(iter(model.graph)).inputs[1], axis=1)
    assert equalized(model).report.records[-1].statistics["equalized layers"] == 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(
        st.sampled_from(["conv", "depthwise", "pointwise", "pool", "prelu"]), min_size=2, max_size=6
    ),
    decades=st.floats(0, 6),
    seed=st.integers(0, 99),
)
def test_random_chains_keep_their_outputs(network, kinds, decades, seed):
    net = network(seed)
    y = net.conv(net.input(1, 4, 9, 9), 4)
    for kind in kinds:
        if kind == "pool":
            y = net.op("AveragePool", y, kernel_shape=[2, 2], strides=[1, 1])
        elif kind == "prelu":
            y = net.op("PRelu", y, net.weight(4, 1, 1))
        else:
            y = net.op(
                "Relu",
                net.conv(y, 4, kernel=1 if kind == "pointwise" else 3, group=4 if kind == "depthwise" else 1),
            )
    model = net.model(net.conv(y, 2))
    for node in model.graph:
        if node.op_type == "Conv":
            uneven(net, node.inputs[1], decades=decades, seed=seed)
    equalized(model)


def test_bad_option(network):
    net = network()
    with pytest.raises(PassError, match="iterations"):
        optimize(net.model(net.conv(net.input(1, 3, 8, 8), 4)), "equalize{iterations=0}")


def clipped(network):
    net = network()
    six = [net.constant(np.float32(0)), net.constant(np.float32(6))]
    x = net.input("n", 3, 8, 8)
    y = net.op("Clip", net.conv(x, 6, bias=False), *six)
    y = net.op("Clip", net.op("Mul", net.conv(y, 6), net.constant(np.float32(50))), *six)
    return net.model(net.conv(net.op("Clip", net.conv(y, 5), net.constant(np.float32(-1)), six[1]), 4))


def test_clips_that_never_clip_are_relaxed(network):
    model = clipped(network)
    data = [
        {"x": np.random.default_rng(i).standard_normal((2, 3, 8, 8)).astype(np.float32)} for i in range(3)
    ]
    result = optimize(model, "relax-clips,equalize", calibration=data)
    first, second = result.report.records
    assert first.statistics == {"clips relaxed": 1}
    assert [each.node for each in first.left_alone] == ["clip4"] and "cuts" in first.left_alone[0].reason
    assert second.statistics["equalized layers"] == 1
    # On the data nothing changed.
    found = check_equivalent(model, result.model, inputs=data)
    assert found.passed, found
    every = optimize(model, "relax-clips{share=1}", calibration=data).report.records[-1]
    assert every.statistics == {"clips relaxed": 2}


@pytest.mark.parametrize(
    ("text", "match"),
    [("relax-clips{share=2}", "share"), ("relax-clips{samples=0}", "samples"), ("relax-clips", "it counts")],
)
def test_bad_options_of_relax_clips(network, text, match):
    with pytest.raises(PassError, match=match):
        optimize(clipped(network), text)
