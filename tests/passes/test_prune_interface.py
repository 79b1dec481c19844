"""Inputs and outputs keep their shapes unless they are named; those that shrink say what of them is left."""

from __future__ import annotations

import numpy as np
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.errors import PassError
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import run_reference
from graphwright.passes.optimize import optimize


def prune(model, options, **given):
    result = optimize(model, f"prune-channels{{{options}}}", **given)
    return result.model, result.report.records[-1]


def shapes(values):
    return {value.name: list(value.shape) for value in values}


@pytest.fixture
def residual(network):
    net = network()
    x = net.input(1, 8, 6, 6)
    inner = net.op("Relu", net.conv(x, 12))
    return net.model(net.op("Add", net.conv(inner, 8), x))


def test_nothing_of_the_interface_shrinks_unasked(residual):
    pruned, record = prune(residual, "ratio=0.5")
    assert shapes(pruned.graph.inputs) == {"x": [1, 8, 6, 6]}
    assert not {"inputs_kept", "outputs_kept"} & set(record.details)
    # The other end of the stream still stops it.
    assert shapes(prune(residual, "ratio=0.5 inputs=x")[0].graph.inputs) == {"x": [1, 8, 6, 6]}


@pytest.mark.parametrize("importance", ["l1", "fpgm", "random", "wanda"])
def test_a_stream_shrinks_from_input_to_output(residual, importance):
    data = [random_inputs(residual, seed=seed) for seed in range(4)]
    pruned, record = prune(
        residual, f"ratio=0.5 inputs=x outputs=y importance={importance}", calibration=data
    )
    kept = record.details["inputs_kept"]["x"]["1"]
    assert record.details["outputs_kept"]["y0"]["1"] == kept and len(kept) == 4
    assert record.details["proof"]["error"] < 1e-5
    feeds = random_inputs(residual, seed=9)
    zeroed = {"x": feeds["x"] * np.isin(np.arange(8), kept)[:, None, None].astype(np.float32)}
    # The hidden channels go all the same; of the input, the others count as zero.
    whole, _ = prune(residual, "ratio=0.5 only=conv0")
    cut = run_reference(pruned, {"x": feeds["x"][:, kept]})["y0"]
    assert cut.shape == (1, 4, 6, 6)
    if importance == "l1":
        assert compare({"y": run_reference(whole, zeroed)["y0"][:, kept]}, {"y": cut}).max_rel < 1e-5


def test_features_that_only_weights_read_are_scored_by_those(network):
    net = network()
    model = net.model(net.linear(net.op("Relu", net.linear(net.input(3, 10), 16)), 4))
    weight = next(
        v for v in model.graph.initializers.values() if list(v.shape) == [16, 10]
    ).const_value.numpy()
    pruned, record = prune(model, "ratio=0.3 inputs=.* skip=gemm2")
    norms = np.abs(weight).sum(axis=0)
    assert record.details["inputs_kept"]["x"]["1"] == sorted(np.argsort(norms)[3:].tolist())
    assert shapes(pruned.graph.inputs) == {"x": [3, 7]}
    names = [made["node"] for group in record.details["groups"] for made in group["producers"]]
    assert "input x" in names


def test_states_shrink_with_the_layer_that_makes_the_others(network):
    net = network()
    x, state = net.input(5, 2, 6), net.input(1, 2, 8, name="state")
    y, last = net.op(
        "GRU", x, net.weight(1, 24, 6), net.weight(1, 24, 8), None, None, state, hidden_size=8, outputs=2
    )
    model = net.model(net.matmul(net.op("Squeeze", y, net.ints(1)), 3), last)
    pruned, record = prune(model, "ratio=0.5 inputs=state outputs=y1")
    assert shapes(pruned.graph.inputs) == {"x": [5, 2, 6], "state": [1, 2, 4]}
    assert shapes(pruned.graph.outputs)["y1"] == [1, 2, 4]
    assert record.details["inputs_kept"]["state"] == record.details["outputs_kept"]["y1"]


def test_recovery_and_budgets_with_smaller_inputs(residual):
    data = [random_inputs(residual, seed=seed) for seed in range(6)]
    _, record = prune(residual, "macs=0.5 inputs=x outputs=.* recover=weights", calibration=data)
    assert record.details["recovered"]
    assert 0.4 < record.details["macs"][1] / record.details["macs"][0] <= 0.5


def test_checks_that_cannot_compare_say_so(residual):
    result = optimize(residual, "prune-channels{ratio=0.5 inputs=x outputs=y0}", check_each=True)
    assert any("not compared" in note for note in result.report.records[-1].notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("inputs=nothing", "option 'inputs' matches none of the model's inputs: x"),
        ("outputs=nothing", "option 'outputs' matches none of the model's outputs: y0"),
        ('inputs="["', "option 'inputs' is not a regular expression"),
        ("inputs=x steps=2", "option 'inputs' goes in one step only"),
    ],
)
def test_options_that_cannot_be_meant(residual, options, message):
    with pytest.raises(PassError, match=message):
        prune(residual, options)
