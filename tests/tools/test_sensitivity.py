"""`graphwright sensitivity`, `inspect --counting`, the latency meter, and the pruning table."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.backends.meter import latency_meter, wants_clock
from graphwright.backends.target import resolve_target
from graphwright.ir.save import save
from graphwright.ir.text import to_text
from graphwright.passes.base import PassContext
from graphwright.passes.prune_channels import PruneChannels
from graphwright.passes.pruning.sensitivity import Point, Sensitivity, scan
from graphwright.passes.quantization.calibration import as_calibration
from graphwright.tools.cli import main
from graphwright.tools.sensitivity_plot import svg

TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
network (float[1,3,8,8] x) => (float[1,2,8,8] y) {
  a = Conv<pads=[1,1,1,1]>(x, w0)
  b = Relu(a)
  c = Conv<pads=[1,1,1,1]>(b, w1)
  d = Relu(c)
  y = Conv<pads=[1,1,1,1]>(d, w2)
}
"""


@pytest.fixture
def model():
    import onnx

    built = ir.from_onnx_text(TEXT)
    generator = np.random.default_rng(0)
    for name, shape in (("w0", (8, 3, 3, 3)), ("w1", (6, 8, 3, 3)), ("w2", (2, 6, 3, 3))):
        array = generator.standard_normal(shape).astype(np.float32)
        value = next(v for node in built.graph for v in node.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        built.graph.register_initializer(value)
    from graphwright.ir.shapes import infer_shapes

    infer_shapes(built)
    assert onnx.__version__ and "Conv" in to_text(built)
    return built


@pytest.fixture
def file(model, tmp_path):
    save(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def data(count=3):
    generator = np.random.default_rng(1)
    return [{"x": generator.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def test_scan_agrees_with_pruning_by_the_pass(model):
    from graphwright.ir.compare import compare
    from graphwright.ir.reference import Reference
    from graphwright.passes.optimize import optimize

    found = scan(model, as_calibration(data()), ratios=(0.5,), pareto_ratios=(0.25, 0.5, 0.05))
    # Of all channels, also at a ratio at which no group loses any.
    assert [point.kept for point in found.together] == [(11, 14), (7, 14), (14, 14)]
    assert [(point.kept, point.ratio) for point in found.by_group] == [((4, 8), 0.5), ((3, 6), 0.5)]
    pruned = optimize(model, "prune-channels{ratio=0.5}")
    before, after = pruned.report.records[0].details["macs"]
    assert found.together[1].macs == pytest.approx(after / before)
    both = [
        np.concatenate([Reference(each).run(feeds)["y"].reshape(-1) for feeds in data()])
        for each in (model, pruned.model)
    ]
    assert found.together[1].sqnr_db == pytest.approx(compare(*both).sqnr_db, abs=0.01)
    assert found.together[0].sqnr_db > found.together[1].sqnr_db


def test_pareto_holds_only_what_nothing_else_beats():
    def point(macs, sqnr):
        return Point("all", 0.5, (1, 2), macs, 0.5, sqnr)

    scan_result = Sensitivity(
        together=[point(0.9, 30.0), point(0.7, 10.0), point(0.6, 20.0), point(0.3, 5.0)]
    )
    assert [each.macs for each in scan_result.pareto] == [0.9, 0.6, 0.3]


def test_a_users_metric_replaces_the_sqnr(model):
    sizes = []

    def smaller_is_worse(candidate):
        weight = next(n for n in candidate.graph if n.op_type == "Conv").inputs[1]
        sizes.append(weight.shape[0])
        return float(weight.shape[0])

    found = scan(model, as_calibration(data()), ratios=(0.5,), pareto_ratios=(0.5,), metric=smaller_is_worse)
    assert found.metric == 8.0
    assert [point.quality for point in found.by_group] == [4.0, 8.0]


def test_nothing_to_prune_is_said(model):
    from graphwright.ir.errors import PassError

    with pytest.raises(PassError, match="nothing to prune"):
        scan(model, as_calibration(data()), PruneChannels(skip=".*"), context=PassContext())


@pytest.mark.parametrize("suffix", ["svg", "html", "json", "md"])
def test_command_writes_every_kind_of_file(file, tmp_path, suffix, capsys):
    out = tmp_path / f"scan.{suffix}"
    assert main(["sensitivity", str(file), "--calibrate-random", "2", "--ratios", "0.5", "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "each group alone" in printed and "all groups together" in printed
    text = out.read_text()
    if suffix == "svg":
        root = ElementTree.fromstring(text)
        # One curve per group, and two for all of them together.
        assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == 4
    elif suffix == "json":
        assert len(json.loads(text)["groups"]) == 2
    elif suffix == "md":
        assert text.count("\n| --- |") == 2
    else:
        assert "<svg" in text and "all groups together" in text


def test_command_as_json_and_its_complaints(file, capsys):
    arguments = ["sensitivity", str(file), "--calibrate-random", "2", "--ratios", "0.5"]
    assert main([*arguments, "--options", "importance=wanda multiple=4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [group["kept"] for group in found["groups"]] == [[4, 8], [4, 6]]
    for wrong, word in (
        (["--kind", "distill"], "--kind"),
        (["--ratios", "1.5"], "--ratios"),
        (["--metric", "nowhere:f"], "--metric"),
        (["-o", "scan.txt"], "-o writes"),
        (["--options", "importance=best"], "importance"),
    ):
        assert main([*arguments, *wrong]) == 2
        assert word in capsys.readouterr().err
    assert main(["sensitivity", str(file)]) == 2
    assert "--calibrate-random" in capsys.readouterr().err


def test_inspect_counts_as_others_do(file, capsys):
    assert main(["inspect", str(file), "--counting", "torch-pruning", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)["counting"]
    products = 64 * 9 * (3 * 8 + 8 * 6 + 6 * 2)
    assert counted["products"] == products and counted["total"] == products + 64 * (8 + 6)
    assert main(["inspect", str(file), "--counting", "other"]) == 2
    assert "--counting" in capsys.readouterr().err


def test_svg_of_nothing_and_of_infinite_quality():
    exact = Point("a", 0.5, (1, 2), 0.5, 0.5, float("inf"))
    ElementTree.fromstring(svg(Sensitivity(by_group=[exact], together=[exact])))
    ElementTree.fromstring(svg(Sensitivity()))


def test_the_meter_measures_here_and_only_here(model):
    assert latency_meter(None) is None
    assert latency_meter(resolve_target("arm")) is None or resolve_target("arm").runs_here
    assert wants_clock("prune-channels{latency=0.5}") and not wants_clock("simplify,prune-blocks{macs=0.5}")
    measure = latency_meter(resolve_target("host"), seconds=0.05)
    assert measure is not None and 0 < measure(model) < 1e4


def test_no_proof_reaches_every_pass_that_proves(file, tmp_path, capsys):
    arguments = [
        "opt",
        str(file),
        "--pipeline",
        "prune-channels,prune-channels{ratio=0.5 proof=true}",
        "--json",
    ]
    for extra, proven in (([], True), (["--no-proof"], False)):
        assert main([*arguments, *extra]) == 0
        passes = json.loads(capsys.readouterr().out)["passes"]
        assert [each["details"]["proof"] is not None for each in passes] == [proven, proven]
