"""Sensitivity of layers, and the search for the cheapest mix of precisions within a budget."""

import itertools
import json
import math
from xml.etree import ElementTree

import graphwright as gw
import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.errors import PassError
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import Reference
from graphwright.ir.save import save
from graphwright.passes.base import PassContext
from graphwright.passes.insert_qdq import InsertQdq
from graphwright.passes.optimize import optimize
from graphwright.passes.quantization.budget import Budget, cost_of, search
from graphwright.passes.quantization.calibration import Calibration, as_calibration
from graphwright.passes.quantization.sensitivity import LayerPoint, QuantizationScan, scan
from graphwright.passes.quantization.trials import Layer, Outcome, Trials, layers_text
from graphwright.tools.cli import main
from graphwright.tools.quantization_sensitivity import tables


def fragile(network):
    """Five layers of which the second one loses everything in 8 bits: two channels drown the others.

    So it is with ranges that keep the extremes, `calibration=minmax`.
    """
    net = network(2)
    y = net.op("Relu", net.conv(net.input("n", 3, 8, 8), 8, bias=False))
    y = net.op("Relu", net.conv(y, 8, bias=False))
    y = net.op("Relu", net.conv(y, 8, bias=False))
    y = net.op("ReduceMean", net.op("Relu", net.conv(y, 12, bias=False)), net.ints(2, 3), keepdims=0)
    model = net.model(net.linear(y, 10))
    convs = [node for node in model.graph if node.op_type == "Conv"]
    for node, index, factor in ((convs[0], 1, 1000.0), (convs[1], 1, 1 / 1000.0)):
        value = node.inputs[index]
        array = value.const_value.numpy().copy()
        array[(slice(0, 2),) if node is convs[0] else (slice(None), slice(0, 2))] *= factor
        value.const_value = ir.tensor(array, name=value.name)
    return model


def batches(model, count=4, first=0):
    return [random_inputs(model, seed=first + seed, dims={"n": 4}) for seed in range(count)]


def trials(model, **options):
    data = as_calibration(batches(model))
    return Trials(model, InsertQdq(**{"calibration": "minmax", **options}), data, data, PassContext())


def sqnr(model, other, feeds):
    parts = [np.concatenate([Reference(m).run(each)["y0"] for each in feeds]) for m in (model, other)]
    return compare(*parts).sqnr_db


def test_the_fragile_layer_is_found_from_both_sides(network):
    model = fragile(network)
    found = scan(trials(model), "int8")
    names = [point.layer.name for point in found.points]
    assert names == [node.name for node in model.graph if node.op_type in ("Conv", "Gemm")]
    assert found.most_sensitive[0].layer.name == names[1]
    assert max(found.points, key=lambda point: point.without.sqnr_db).layer.name == names[1]
    # Against the same versions made by hand.
    data = batches(model)
    others = layers_text({name: "float" for name in names if name != names[1]})
    alone = optimize(model, [InsertQdq(layers=others, calibration="minmax")], calibration=data).model
    without = optimize(
        model, f'insert-qdq{{calibration=minmax layers="{names[1]}$=float"}}', calibration=data
    ).model
    assert found.points[1].alone.sqnr_db == pytest.approx(sqnr(model, alone, data), abs=0.01)
    assert found.points[1].without.sqnr_db == pytest.approx(sqnr(model, without, data), abs=0.01)


@pytest.mark.parametrize("bound", [10, 30, 40])
def test_a_budget_is_kept_and_cheaply(network, bound):
    model = fragile(network)
    data = batches(model)
    result = optimize(
        model, f'quantize{{budget="sqnr>={bound}dB" options="calibration=minmax"}}', calibration=data
    )
    record = result.report.records[-1]
    found = record.details["budget"]
    assert sqnr(model, result.model, data) == pytest.approx(found["quality"], abs=0.01)
    assert found["quality"] >= bound
    chosen = {row["node"]: row["precision"] for row in found["layers"]}
    if bound == 10:
        assert set(chosen.values()) == {"int8"} and found["cost"] == 1.0
        return
    assert chosen["conv2"] != "int8"
    # No single layer could go back to int8.
    every = trials(model)
    for name, precision in chosen.items():
        if precision != "int8":
            assert every.outcome({**chosen, name: "int8"}).sqnr_db < bound
    # The text in the report makes the same model.
    again = optimize(model, [InsertQdq(layers=found["option"], calibration="minmax")], calibration=data)
    assert sqnr(model, again.model, data) == pytest.approx(found["quality"], abs=0.01)
    assert any("conv2" in note for note in record.notes)
    assert sum(row["layers"] for row in found["totals"].values()) == 5


def test_layers_whose_outputs_are_nan_lose_all():
    decibels = {"good": 30.0, "lost": math.nan, "exact": math.inf}
    points = [
        LayerPoint(Layer(name, "Conv", 1, 1), Outcome(sqnr), Outcome(sqnr)) for name, sqnr in decibels.items()
    ]
    found = QuantizationScan("int8", Outcome(math.inf), Outcome(math.inf), points)
    assert [point.layer.name for point in found.most_sensitive] == ["lost", "good", "exact"]
    ((_, _, rows),) = tables(found)
    assert [row[3:] for row in rows] == [["nan"] * 3, ["30.0", "30.0", "-inf"], ["inf", "inf", "0.0"]]


def test_ranges_that_weigh_channels_spare_the_fragile_layer(network):
    model = fragile(network)
    assert trials(model).outcome({}).sqnr_db < 20
    assert trials(model, calibration="auto").outcome({}).sqnr_db > 35


def test_the_mix_is_the_cheapest_of_all(network):
    model = fragile(network)
    every = trials(model)
    layers = every.layers()
    precisions = ["int8", "float"]
    mixes = [
        dict(zip((layer.name for layer in layers), mix, strict=True))
        for mix in itertools.product(precisions, repeat=len(layers))
    ]
    reached = [(cost_of(layers, mix), every.outcome(mix).sqnr_db) for mix in mixes[:-1]]
    bounds = [36.0, 45.0, *(sqnr - 0.01 for _, sqnr in sorted(reached, key=lambda each: each[1])[-12::3])]
    for bound in bounds:
        least = min(cost for cost, sqnr in reached if sqnr >= bound)
        choice = search(every, Budget.parse(f"sqnr>={bound}dB"), precisions)
        assert choice.outcome.sqnr_db >= bound
        assert cost_of(layers, choice.precisions) == least
    # Even the very last of them; what is refused then is out of reach of every mix.
    best = max(sqnr for _, sqnr in reached)
    with pytest.raises(PassError, match=f"the best reachable with one is {best:.1f} dB"):
        search(every, Budget.parse(f"sqnr>={best + 0.1:.2f}dB"), precisions)


def test_hopeless_budgets_say_how_far_one_comes(network):
    model = fragile(network)
    data = batches(model)
    with pytest.raises(
        PassError, match=r"cannot be kept with precisions int8.*the best reachable is [\d.]+ dB"
    ):
        optimize(model, 'quantize{budget="sqnr>=60dB" precisions=int8}', calibration=data)
    with pytest.raises(
        PassError, match=r"with any layer quantized; the best reachable with one is [\d.]+ dB"
    ):
        optimize(model, 'quantize{budget="sqnr>=150dB"}', calibration=data)


def test_layers_that_the_options_settle_stay_as_they_are(network):
    model = fragile(network)
    data = batches(model)
    result = optimize(
        model,
        'quantize{budget="sqnr>=30dB" options="calibration=minmax layers=\\"conv2=a16w8\\""}',
        calibration=data,
    )
    found = result.report.records[-1].details["budget"]
    assert "conv2" not in {row["node"] for row in found["layers"]}
    assert found["option"].startswith("conv2=a16w8;")
    again = optimize(model, [InsertQdq(layers=found["option"], calibration="minmax")], calibration=data)
    assert sqnr(model, again.model, data) == pytest.approx(found["quality"], abs=0.01)
    assert sqnr(model, result.model, data) == pytest.approx(found["quality"], abs=0.01)


def test_what_was_measured_is_what_is_made_also_of_random_data(network):
    model = fragile(network)
    data = Calibration.random_data(3)
    result = optimize(model, 'quantize{budget="sqnr>=20dB"}', calibration=data)
    found = result.report.records[-1].details["budget"]
    assert sqnr(model, result.model, list(data.batches(model))) == pytest.approx(found["quality"], abs=0.01)
    assert any("measured on" in note and "random numbers" in note for note in result.report.records[-1].notes)


def raising(model):
    raise RuntimeError("my own\nproblem")


@pytest.mark.parametrize(
    ("metric", "match"),
    [
        (raising, "failed: RuntimeError: my own problem"),
        (lambda model: math.nan, "must return a finite number, not 'nan'"),
        (lambda model: "good", "must return a finite number, not 'good'"),
        (lambda model: None, "must return a finite number"),
    ],
)
def test_metrics_that_fail(network, metric, match):
    model = fragile(network)
    data = as_calibration(batches(model))
    with pytest.raises(PassError, match=match) as caught:
        Trials(model, InsertQdq(), data, data, PassContext(), metric)
    assert "\n" not in str(caught.value)


def labelled(model, path, count=64):
    """Inputs with the float model's own answers, some of them wrong."""
    feeds = {"x": np.concatenate([each["x"] for each in batches(model, count // 4)])}
    labels = Reference(model).run(feeds)["y0"].argmax(axis=1)
    labels[:6] = (labels[:6] + 1) % 10
    np.savez(path, **feeds, labels=labels)
    return feeds, labels


def test_accuracy_against_float_and_absolute(network, tmp_path):
    model = fragile(network)
    # So that every class is somebody's.
    outputs = np.concatenate([Reference(model).run(each)["y0"] for each in batches(model, 16)])
    bias = model.graph[-1].inputs[2]
    bias.const_value = ir.tensor(bias.const_value.numpy() - outputs.mean(axis=0), name=bias.name)
    feeds, labels = labelled(model, tmp_path / "data.npz")
    data = batches(model)

    def accuracy(other):
        return (Reference(other).run(feeds)["y0"].argmax(axis=1) == labels).mean()

    assert accuracy(model) == pytest.approx(58 / 64)
    plain = accuracy(optimize(model, "insert-qdq", calibration=data).model)
    assert plain < 0.8
    for budget in ("accuracy>=-1.6%", "accuracy>=89%"):
        text = f'quantize{{budget="{budget}" data="{tmp_path / "data.npz"}"}}'
        result = optimize(model, text, calibration=data)
        assert accuracy(result.model) == pytest.approx(result.report.records[-1].details["budget"]["quality"])
        assert accuracy(result.model) >= 0.89
    with pytest.raises(PassError, match=r"the float model itself reaches 90\.62%"):
        optimize(
            model, f'quantize{{budget="accuracy>=95%" data="{tmp_path / "data.npz"}"}}', calibration=data
        )


def count_of_large_outputs(model):
    """A metric of the tests."""
    feeds = random_inputs(model, seed=3, dims={"n": 8})
    return float((Reference(model).run(feeds)["y0"] > 0.1).mean())


def test_a_metric_of_the_users(network, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def metric(model):\n    return float(len(list(model.graph)))\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = fragile(network)
    result = optimize(model, 'quantize{budget="metric>=5" metric="mine:metric"}', calibration=batches(model))
    assert result.report.records[-1].details["budget"]["quality"] > len(list(model.graph))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('quantize{budget="speed>=3"}', "none of sqnr>=30dB"),
        ('quantize{budget="sqnr>=30%"}', "not measured in %"),
        ('quantize{budget="accuracy>=-0.5%"}', "needs labelled data"),
        ('quantize{budget="metric>=1"}', "needs the function"),
        ('quantize{budget="accuracy>=98" data=x.npz}', "so write accuracy>=98%"),
        ('quantize{budget="accuracy>=120%" data=x.npz}', "above 100%"),
        ("quantize{precisions=float}", "names none to quantize to"),
        ('quantize{precisions="int8,int3"}', "no precision 'int3'"),
        ('quantize{target=cuda precisions="a16w16"}', "has none of"),
        ("quantize{samples=0}", "samples"),
        ('quantize{options="colour=red"}', "colour"),
        ("quantize", "give `--calibration"),
        ('quantize{budget="metric>=1" metric="nowhere:to"}', "nowhere"),
        ('quantize{budget="accuracy>=1%" data="/nowhere.npz"}', "cannot read"),
    ],
)
def test_bad_input(network, text, match):
    model = fragile(network)
    data = None if text == "quantize" else batches(model, 1)
    with pytest.raises(gw.GraphwrightError, match=match):
        optimize(model, text, calibration=data)


def test_labels_that_do_not_suit(network, tmp_path):
    model = fragile(network)
    feeds, labels = labelled(model, tmp_path / "good.npz")
    text = f'quantize{{budget="accuracy>=1%" data="{tmp_path / "bad.npz"}"}}'
    for arrays, match in (
        (feeds, "no array 'labels'"),
        ({**feeds, "labels": labels[:-1]}, "one for each sample"),
        ({**feeds, "labels": labels / 2}, "whole numbers"),
        ({**feeds, "labels": labels + 10}, r"go from 1\d to 1\d, but 'y0' has scores for 10 classes"),
    ):
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(PassError, match=match):
            optimize(model, text, calibration=batches(model, 1))


def test_names_with_odd_characters_are_matched_literally():
    from graphwright.passes.quantization.precisions import precision_selector

    node = ir.node("Conv", [], name="a/b.c(1);d=e")
    other = ir.node("Conv", [], name="a/b.c(1);d=e2")
    selector = precision_selector("int8", layers_text({str(node.name): "float"}), "test")
    assert (selector(node), selector(other)) == ("float", "int8")


def test_outcomes():
    assert Outcome(math.inf).noise == 0.0 and Outcome(20.0).noise == pytest.approx(0.01)
    assert Budget.parse("accuracy >= -0.5%").keeps(Outcome(0, 0.975), Outcome(math.inf, 0.98))
    assert not Budget.parse("accuracy>=-0.5%").keeps(Outcome(0, 0.974), Outcome(math.inf, 0.98))


def test_command_line(network, tmp_path, capsys):
    model = fragile(network)
    save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=np.concatenate([each["x"] for each in batches(model)]))
    base = ["sensitivity", str(tmp_path / "net.onnx"), "--kind", "quantize"]
    minmax = ["--options", "calibration=minmax"]
    for suffix in ("json", "svg", "md", "html"):
        output = tmp_path / f"out.{suffix}"
        assert main([*base, "--calibration", str(tmp_path / "data.npz"), "-o", str(output), *minmax]) == 0
        assert "conv2" in output.read_text()
    root = ElementTree.fromstring((tmp_path / "out.svg").read_text())
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    across = {each[0].text.split(":")[0]: float(each.get("cx")) for each in circles if len(each)}
    assert len(across) == 10
    # The fragile layer alone is the leftmost point, all but it the rightmost.
    alone = {name: x for name, x in across.items() if name.endswith(", only it")}
    assert min(alone, key=alone.get) == "conv2, only it"
    without = {name: x for name, x in across.items() if name.endswith("all but it")}
    assert max(without, key=without.get) == "conv2, all but it"
    table = (tmp_path / "out.html").read_text()
    assert table.count("<tr>") == 6 and "<td>conv2</td>" in table
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["layers"]) == 5 and found["layers"][1]["alone"]["sqnr_db"] < 20
    assert "all but it dB" in capsys.readouterr().out
    assert main(base) == 2
    assert main([*base, "--calibrate-random", "1", "--options", "colour=red"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    net = network()
    save(net.model(net.op("Softmax", net.input("n", 3))), tmp_path / "layerless.onnx")
    nothing = [
        "sensitivity",
        str(tmp_path / "layerless.onnx"),
        "--kind",
        "quantize",
        "--calibrate-random",
        "1",
    ]
    assert main([*nothing, "-o", str(tmp_path / "none.svg")]) == 2
    assert "leaves every layer of this model in float" in capsys.readouterr().err
    assert not (tmp_path / "none.svg").exists()
