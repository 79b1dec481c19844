"""Where split float32 is not exact enough: compiled once more without it, and said so."""

import json

import graphwright as gw
import numpy as np
import onnx_ir as ir
import pytest
from graphwright.backends import choice, float_products, making
from graphwright.backends.checking import MAX_RELATIVE_ERROR, Disagreement, check_against_reference
from graphwright.backends.features import with_features
from graphwright.backends.target import host_target, resolve_target
from graphwright.backends.tuning import step

from .quantized_models import Graph, tensor

AMX = resolve_target("sapphirerapids")
HOST = host_target()
with_tiles = pytest.mark.skipif(not AMX.runs_here, reason=f"needs AMX: {AMX.why_not_here()}")
on_x86 = pytest.mark.skipif(HOST.arch != "x86_64", reason="for x86")


def product(rows=64, *, cancels=False, dynamic=False):
    """x * w; or (x * w - y * w) * 1000 with y near x, whose terms are far larger than what is left."""
    g, x = Graph(1), tensor("x", (rows, 256))
    weight = g.constant(g.random.standard_normal((256, 128)).astype(np.float32))
    output = g("MatMul", x, weight)
    if cancels:
        near = g.constant(np.float32(1 + 2**-9))
        output = g("Sub", g("MatMul", g("Mul", x, near), weight), output)
    output.type, output.shape = x.type, ir.Shape((rows, 128))
    if dynamic:
        for value in (x, output):
            value.shape = ir.Shape(["n", *value.shape[1:]])
    return g.model({"x": x}, output)


@pytest.fixture
def strict(monkeypatch):
    """A checker that is not content until a feature of this machine is taken away; names what it saw."""
    seen = []

    def check(model, run, feeds, **more):
        target = run.__self__.target
        seen.append((target.name, len(next(iter(feeds.values())))))
        if run.__self__.backend == "tvm" and target.has("popcnt"):
            raise Disagreement("output 'y' is off")
        return check_against_reference(model, run, feeds, **more)

    monkeypatch.setattr(making, "SPLIT_FEATURE", "popcnt")
    monkeypatch.setattr(making, "splits_floats", lambda kernels: bool(kernels))
    monkeypatch.setattr(
        making,
        "next_target",
        lambda target, _error=0: with_features(target, ["-popcnt"]) if target.has("popcnt") else None,
    )
    monkeypatch.setattr(making, "check_against_reference", check)
    return seen


def said(executable):
    fallback = executable.report.fallback
    assert "output 'y' is off" in fallback and "built without popcnt" in fallback and "\n" not in fallback
    assert executable.target == executable.report.target
    assert executable.target.without == ("popcnt",) and executable.target.name.endswith(",-popcnt")
    assert fallback in executable.report.to_markdown()
    assert json.loads(json.dumps(executable.report.to_json()))["fallback"] == fallback


@on_x86
def test_it_is_compiled_again_and_said(strict, tmp_path):
    told = []
    executable = gw.compile(product(), HOST, progress=told.append)
    said(executable)
    assert told.count(executable.report.fallback) == 1
    assert [name for name, _ in strict] == ["x86", "x86,-popcnt"]
    folder = executable.save(tmp_path / "out")
    assert gw.load_executable(folder).target == executable.target


@on_x86
def test_all_batch_sizes_are_compiled_again(strict):
    executable = gw.compile(product(dynamic=True), HOST, batch_sizes=(1, 4))
    said(executable)
    assert strict == [("x86", 1), ("x86,-popcnt", 1), ("x86,-popcnt", 4)]
    assert [row.check.checked for row in executable.report.batches.rows] == [True, True]


@on_x86
def test_the_choice_between_backends_is_with_what_is_exact(strict, monkeypatch):
    timed = []
    decide = choice.decide

    def watched(made, failures, cases, *, threads):
        timed.extend(executable.target.name for executable in made.values())
        assert not failures
        return decide(
            {"tvm": made["tvm"]}, {"onnxruntime": gw.GraphwrightError("put aside")}, cases, threads=1
        )

    monkeypatch.setattr("graphwright.backends.compile.decide", watched)
    said(gw.compile(product(), HOST, backend="auto"))
    assert timed == ["x86,-popcnt", "x86"]


@on_x86
def test_no_trials_are_spent_on_what_has_to_go(strict, monkeypatch, tmp_path):
    tuned = []
    tune_graph = step.tune_graph

    def watched(programs, target, *arguments, **named):
        tuned.append(target.name)
        return tune_graph(programs, target, *arguments, **named)

    monkeypatch.setattr(step, "tune_graph", watched)
    executable = gw.compile(product(8), HOST, trials=1, database=tmp_path / "records.jsonl")
    said(executable)
    assert tuned == ["x86,-popcnt"] and executable.report.trials == 1


@on_x86
def test_other_disagreements_stay_errors(strict, monkeypatch):
    monkeypatch.setattr(making, "splits_floats", lambda kernels: False)
    with pytest.raises(Disagreement, match="is off"):
        gw.compile(product(), HOST)
    assert len(strict) == 1
    # and so does what plain float32 does not settle
    monkeypatch.setattr(making, "splits_floats", lambda kernels: True)

    def check(model, run, feeds, **more):
        raise Disagreement("always off")

    monkeypatch.setattr(making, "check_against_reference", check)
    with pytest.raises(Disagreement, match="always off"):
        gw.compile(product(), HOST)


@with_tiles
def test_cancellation_is_found_and_computed_more_exactly():
    executable = gw.compile(product(cancels=True), "sapphirerapids")
    report = executable.report
    assert report.fallback.startswith("three products") and "built with six of them" in report.fallback
    assert executable.target == resolve_target("sapphirerapids,+bf16x6")
    assert report.check.comparison.max_rel <= MAX_RELATIVE_ERROR


@with_tiles
def test_what_is_well_conditioned_keeps_three_products():
    report = gw.compile(product(), "sapphirerapids").report
    assert not report.fallback
    assert any("tdpbf16ps x3" in kernel["note"] for kernel in report.kernels)
    assert report.check.comparison.max_rel < 2e-5


@with_tiles
def test_three_products_may_take_up_half_of_the_bound(monkeypatch):
    monkeypatch.setattr(float_products, "MAX_RELATIVE_ERROR", 1e-7)
    report = gw.compile(product(512), "sapphirerapids").report
    assert "with inputs of which others may come out worse" in report.fallback
    assert any("tdpbf16ps x6" in kernel["note"] for kernel in report.kernels)


@with_tiles
def test_nothing_that_has_to_be_tried_is_used_unchecked():
    report = gw.compile(product(), "sapphirerapids", check=False).report
    assert report.target.float_parts == 3 and not report.fallback
    asked = gw.compile(product(), "sapphirerapids,+bf16x3", check=False).report
    assert any("tdpbf16ps x3" in kernel["note"] for kernel in asked.kernels)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("sapphirerapids", [",+bf16x6:25", ",+bf16x6:60", ",+bf16x6", ",-amx-bf16"]),
        ("sapphirerapids,+bf16x6:30", [",+bf16x6:60", ",+bf16x6", ",-amx-bf16"]),
        ("sapphirerapids,+bf16x3", [",+bf16x6", ",-amx-bf16"]),
        ("sapphirerapids,+bf16x6", [",-amx-bf16"]),
        ("x86-64-v4", []),
    ],
)
def test_products_become_more_exact_step_by_step(name, steps):
    found = [resolve_target(name)]
    while (better := float_products.next_target(found[-1], 1.5e-4)) is not None:
        found.append(better)
    assert found[1:] == [resolve_target(f"sapphirerapids{step}") for step in steps]


def test_what_is_far_off_is_not_tried_in_between():
    found = float_products.next_target(resolve_target("sapphirerapids"), 0.1)
    assert found == resolve_target("sapphirerapids,+bf16x6")


@with_tiles
def test_a_share_of_the_layers_takes_six_products():
    g, x = Graph(1), tensor("x", (512, 256))
    value = x
    for _ in range(4):
        value = g("MatMul", value, g.constant(g.random.standard_normal((256, 256)).astype(np.float32)))
    value.type, value.shape = x.type, ir.Shape((512, 256))
    model = g.model({"x": x}, value)
    report = gw.compile(model, "sapphirerapids,+bf16x6:50").report
    calls = {kernel["note"].split("tdpbf16ps ")[-1]: kernel["calls"] for kernel in report.kernels}
    assert calls == {"x6": 2, "x3": 2}
    assert report.to_json()["target"]["exact_share"] == 50
