"""What each criterion takes for important, on networks where the answer is known; reductions and rankings."""

from __future__ import annotations

import numpy as np
import pytest
from graphwright.ir.errors import GraphwrightError, PassError
from graphwright.passes.optimize import optimize
from graphwright.passes.pruning import View, importance_names, register_importance
from graphwright.passes.pruning.importance import normalized
from graphwright.passes.pruning.moments import measure_moments
from graphwright.passes.pruning.ranking import parse_ratios
from graphwright.passes.quantization.calibration import as_calibration


def batches(count=4, shape=(1, 3, 6, 6), seed=0):
    generator = np.random.default_rng(seed)
    return [{"x": generator.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def filters(model, index=0):
    convs = [node for node in model.graph if node.op_type in ("Conv", "Gemm")]
    return convs[index].inputs[1].const_value.numpy()


def survivors(model, options, calibration=None, index=0):
    """Indices of the filters of a layer that stay, found by value."""
    before = filters(model, index)
    after = filters(optimize(model, f"prune-channels{{{options}}}", calibration=calibration).model, index)
    flat, left = before.reshape(len(before), -1), after.reshape(len(after), -1)
    return [int(np.flatnonzero((flat[:, : left.shape[1]] == row).all(1))[0]) for row in left]


def two_layers(net, channels=6, activation="Relu"):
    x = net.conv(net.input(1, 3, 6, 6), channels)
    return net.model(net.conv(net.op(activation, x), 4))


def change(model, edit, index=0, operand=1):
    node = [node for node in model.graph if node.op_type == "Conv"][index]
    value = node.inputs[operand]
    array = value.const_value.numpy().copy()
    edit(array)
    import onnx_ir as ir

    value.const_value = ir.tensor(array, name=value.name)


def test_geometric_median_drops_a_redundant_filter_that_norms_would_keep(network):
    net = network()
    model = two_layers(net)

    def edit(weights):
        # Five large filters, four of them nearly alike; the smallest of all points elsewhere.
        weights[:5] = weights[0] * 3
        weights[1:5] += 0.01 * net.rng.standard_normal(weights[1:5].shape)
        weights[5] = -0.5 * weights[5]

    change(model, edit)
    assert 5 in survivors(model, "ratio=0.5 importance=fpgm")
    assert 5 not in survivors(model, "ratio=0.17 importance=l2")


def test_batch_norm_scale_decides_and_is_missed_once_folded(network):
    net = network()
    model = net.model(net.conv(net.block(net.input(1, 3, 6, 6), 6), 4))
    norm = next(node for node in model.graph if node.op_type == "BatchNormalization")
    scales = np.abs(norm.inputs[1].const_value.numpy())
    kept = survivors(model, "ratio=0.5 importance=bn-scale")
    assert sorted(kept) == sorted(np.argsort(scales)[3:].tolist())
    with pytest.raises(PassError, match="before fold-batch-norm"):
        optimize(model, "fold-batch-norm,prune-channels{importance=bn-scale}")


def test_a_layer_without_normalization_is_left_by_bn_scale(network):
    net = network()
    x = net.block(net.input(1, 3, 6, 6), 6)
    model = net.model(net.conv(net.op("Relu", net.conv(x, 8)), 4))
    result = optimize(model, "prune-channels{importance=bn-scale}")
    record = result.report.records[0]
    assert [filters(result.model, i).shape[0] for i in range(3)] == [3, 8, 4]
    assert any("no normalization scales its channels" in entry.reason for entry in record.left_alone)


def test_apoz_drops_channels_that_are_mostly_zero(network):
    net = network()
    model = two_layers(net)
    # A large negative bias keeps Relu shut however large the filters are.
    change(model, lambda bias: bias.__setitem__(slice(0, 3), -50.0), operand=2)
    change(model, lambda weights: weights.__setitem__(slice(0, 3), weights[:3] * 5))
    assert survivors(model, "importance=apoz", batches()) == [3, 4, 5]
    assert survivors(model, "importance=activation", batches()) == [3, 4, 5]
    assert survivors(model, "importance=l1") == [0, 1, 2]


def test_wanda_weighs_activations_with_the_weights_that_read_them(network):
    net = network()
    model = two_layers(net)
    # Channels 0 and 1 are large but hardly read; 2 and 3 are read strongly.
    change(model, lambda weights: weights.__setitem__(slice(0, 2), weights[:2] * 3))
    change(
        model, lambda weights: weights.__setitem__((slice(None), slice(0, 2)), weights[:, :2] * 1e-3), index=1
    )
    kept = survivors(model, "ratio=0.34 importance=wanda", batches())
    assert 0 not in kept and 1 not in kept and len(kept) == 4


def test_calibrated_criteria_say_that_they_need_data(network):
    with pytest.raises(PassError, match="needs calibration data"):
        optimize(two_layers(network()), "prune-channels{importance=wanda}")


def test_moments_are_those_of_numpy(network):
    from graphwright.ir.reference import Reference

    net = network()
    model = two_layers(net)
    relu = next(node for node in model.graph if node.op_type == "Relu").outputs[0].name
    data = batches(3)
    found = measure_moments(model, [(relu, 1), ("x", 1)], as_calibration(data))
    reference = Reference(model)
    values = np.stack([reference.run_values(feeds, [relu])[relu] for feeds in data]).astype(np.float64)
    flat = np.moveaxis(values, 2, 0).reshape(6, -1)
    moments = found[relu, 1]
    np.testing.assert_allclose(moments.mean, flat.mean(1), rtol=1e-5)
    np.testing.assert_allclose(moments.mean_magnitude, np.abs(flat).mean(1), rtol=1e-5)
    np.testing.assert_allclose(moments.root_mean_square, np.sqrt((flat**2).mean(1)), rtol=1e-5)
    np.testing.assert_allclose(moments.share_of_zeros, (flat == 0).mean(1), atol=1e-7)
    assert found["x", 1].count == 3 * 36


def test_a_criterion_of_ones_own_and_its_complaints(network):
    name = "test-last-first"

    @register_importance(name)
    def last_first(view: View) -> np.ndarray:
        """Later channels matter more."""
        return np.arange(len(view.weights), dtype=float)

    assert name in importance_names()
    assert survivors(two_layers(network()), f"importance={name}") == [3, 4, 5]

    @register_importance("test-wrong")
    def wrong(view: View) -> np.ndarray:
        return np.zeros(3)

    with pytest.raises(PassError, match="one number per channel"):
        optimize(two_layers(network()), "prune-channels{importance=test-wrong}")
    with pytest.raises(GraphwrightError, match="did you mean 'wanda'"):
        optimize(two_layers(network()), "prune-channels{importance=wandas}")
    with pytest.raises(PassError, match="only role='consumer'"):
        register_importance("test-blind", calibrated=True)


def residual(net):
    x = net.conv(net.input(1, 3, 6, 6), 4)
    y = net.conv(net.op("Relu", x), 4)
    return net.model(net.conv(net.op("Relu", net.op("Add", x, y)), 2))


@pytest.mark.parametrize(
    ("reduction", "kept"),
    [("sum", [0, 1]), ("mean", [0, 1]), ("max", [0, 2]), ("prod", [1, 3]), ("first", [0, 1])],
)
def test_reductions_over_tied_layers(network, reduction, kept):
    name = f"test-table-{reduction}"
    table = {"conv0": [9.0, 5.0, 1.0, 2.0], "conv2": [1.0, 3.0, 8.0, 6.0]}
    if reduction in ("sum", "mean"):
        table = {"conv0": [9.0, 5.0, 1.0, 2.0], "conv2": [1.0, 5.0, 8.0, 6.0]}
    register_importance(name)(lambda view: np.array(table[view.node.name]))
    model = residual(network())
    scores = {
        "sum": np.array(table["conv0"]) + table["conv2"],
        "mean": np.array(table["conv0"]) + table["conv2"],
        "max": np.maximum(table["conv0"], table["conv2"]),
        "prod": np.array(table["conv0"]) * table["conv2"],
        "first": np.array(table["conv0"]),
    }[reduction]
    expected = sorted(np.argsort(scores, kind="stable")[2:].tolist())
    found = survivors(model, f"importance={name} reduction={reduction} normalize=none")
    assert sorted(found) == expected


def test_normalizations():
    scores = np.array([1.0, 3.0, 2.0, np.nan])
    known = scores[:3]
    np.testing.assert_allclose(normalized(scores, "mean")[:3], known / 2.0)
    np.testing.assert_allclose(normalized(scores, "sum")[:3], known / 6.0)
    np.testing.assert_allclose(normalized(scores, "max")[:3], known / 3.0)
    np.testing.assert_allclose(normalized(scores, "standard")[:3], [0.0, 1.0, 0.5])
    assert abs(normalized(scores, "gaussian")[:3].mean()) < 1e-12
    np.testing.assert_allclose(normalized(scores, "lamp")[:3], [1 / 6, 1.0, 2 / 5])
    assert all(np.isnan(normalized(scores, how)[3]) for how in ("mean", "lamp", "gaussian"))
    assert not normalized(np.zeros(3), "mean").any()


def chain(net, widths=(8, 8, 8)):
    x = net.input(1, 3, 6, 6)
    for width in widths:
        x = net.op("Relu", net.conv(x, width))
    return net.model(net.conv(x, 2))


def widths(model):
    return [filters(model, i).shape[0] for i in range(sum(n.op_type == "Conv" for n in model.graph))]


def test_global_ranking_takes_from_the_layer_that_matters_least(network):
    model = chain(network())
    register_importance("test-by-layer")(
        lambda view: (
            np.arange(len(view.weights)) + {"conv0": 100.0, "conv2": 10.0}.get(view.node.name, 1000.0)
        )
    )
    options = "importance=test-by-layer normalize=none ratio=0.34"
    local = optimize(model, f"prune-channels{{{options}}}").model
    assert widths(local) == [6, 6, 6, 2]
    anywhere = optimize(model, f"prune-channels{{{options} ranking=global}}").model
    assert widths(anywhere) == [8, 1, 8, 2]
    capped = optimize(model, f"prune-channels{{{options} ranking=global max_ratio=0.5}}").model
    assert min(widths(capped)[:3]) == 4


def test_isomorphic_ranking_compares_like_with_like(network):
    net = network()
    x = net.op("Relu", net.conv(net.input(1, 3, 6, 6), 8))
    x = net.op("Relu", net.conv(x, 8))
    x = net.op("Relu", net.conv(x, 8, kernel=1))
    model = net.model(net.conv(net.op("Relu", net.conv(x, 8, kernel=1)), 2, kernel=1))
    register_importance("test-kernel")(
        lambda view: np.arange(len(view.weights)) + (1.0 if model_kernel(view) == 1 else 1000.0)
    )

    def model_kernel(view):
        return view.node.inputs[1].shape[2]

    options = "importance=test-kernel normalize=none ratio=0.5"
    together = widths(optimize(model, f"prune-channels{{{options} ranking=global}}").model)
    assert together[:2] == [8, 8] and together[2:4] == [1, 1]
    alike = widths(optimize(model, f"prune-channels{{{options} ranking=isomorphic}}").model)
    # Layers that nothing else is like lose their share; 1x1 and 3x3 layers are not weighed against each other.
    assert sum(alike[:2]) == 8 and sum(alike[2:4]) == 8


def test_ratios_of_single_layers(network):
    model = chain(network())
    pruned = optimize(model, 'prune-channels{ratio=0.5 ratios="conv0=0.25,conv2=0"}').model
    assert widths(pruned) == [6, 8, 4, 2]
    for text in ("conv0", "conv0=1.0", "=0.5", "conv(=0.5"):
        with pytest.raises(PassError, match="'ratios'"):
            parse_ratios(text, "prune-channels")


def test_steps_end_at_the_same_counts(network):
    model = chain(network(), (20, 12, 9))
    once = widths(optimize(model, "prune-channels{ratio=0.6}").model)
    result = optimize(model, "prune-channels{ratio=0.6 steps=3 importance=fpgm}")
    assert widths(result.model) == once
    assert {row["step"] for row in result.report.records[0].details["groups"]} == {1, 2, 3}
