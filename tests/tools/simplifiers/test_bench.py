"""The comparison of simplifiers: real runs of ours, a tool that fails, and what is said about numbers."""

import json
import math
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.errors import ToolError
from graphwright.tools.simplifiers import worker as simplify_worker
from graphwright.tools.simplifiers.bench import (
    FUSED,
    OURS,
    RIVALS,
    Outcome,
    Settings,
    run_benchmark,
    run_tool,
)
from graphwright.tools.simplifiers.judge import account, judge
from graphwright.tools.simplifiers.models import LARGE, MODELS, build_model
from graphwright.tools.simplifiers.report import findings, growth_exponent, markdown, print_report, summary

from ..conftest import assert_one_line_of_trouble


def outcome(model="m", tool=OURS, nodes=10, wall=0.1, before=20, size=100, after=100, error="", **more):
    given = {"wall": wall, "fastest": wall / 2, "slowest": wall * 2, "cpu": wall, "runs": 3, "cold": 1.0}
    return Outcome(
        model, tool, before, size, nodes=nodes, constant_bytes=after, error=error, **(given | more)
    )


def failed(model="m", tool="fast", error="crashes: boom"):
    return Outcome(model, tool, 20, 100, error=error)


def test_our_tool_in_processes_of_its_own_and_results_that_are_kept(tmp_path):
    results = tmp_path / "results.json"
    settings = Settings(repeats=2)
    options = {"only": "^control_flow$", "tools": [OURS], "models": tmp_path, "results": results}
    (found,) = run_benchmark(**options, settings=settings)
    assert not found.error
    assert found.difference <= 1e-4
    assert 0 < found.nodes < found.nodes_before == 21
    assert found.foreign == found.calls == 0
    assert found.runs == 2
    assert 0 < found.fastest <= found.wall <= found.slowest < found.cold
    assert found.cpu > 0
    assert 2**20 < found.memory < 2**30
    assert json.loads(results.read_text()) == [found.to_json()]
    again = []
    (kept,) = run_benchmark(**options, say=again.append)
    assert kept == found and not again
    assert (tmp_path / "control_flow.onnx").exists()


def test_a_model_without_room_is_said_to_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("graphwright.tools.simplifiers.bench.LARGE_SPACE", 2**80)
    results = tmp_path / "results.json"
    (found,) = run_benchmark(only=LARGE, tools=[OURS], models=tmp_path, results=results)
    assert found.error.startswith("not measured: it wants") and "free disk" in found.error
    assert not results.exists() and not list(tmp_path.iterdir())
    assert findings([found]) == [f"{LARGE}: {OURS} {found.error}"]


def test_files_of_results_of_another_kind_are_refused(tmp_path):
    results = tmp_path / "results.json"
    for text in ("{", '[{"model": "m"}]'):
        results.write_text(text)
        with pytest.raises(ToolError, match="results"):
            run_benchmark(only="^control_flow$", tools=[OURS], models=tmp_path, results=results)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": ["onnxsum"]}, "onnxsum"),
        ({"only": "resnet102"}, "resnet102"),
        ({"tools": [*RIVALS]}, "installed"),
    ],
)
def test_unknown_tools_and_models_are_named(options, message, monkeypatch):
    monkeypatch.setattr("graphwright.tools.simplifiers.bench.installed", lambda: [OURS])
    with pytest.raises(ToolError, match=message):
        run_benchmark(**options)


def test_a_crash_is_an_outcome(tmp_path):
    found = run_tool("no-such-tool", "m", build_model("control_flow", tmp_path), Settings(repeats=1))
    assert found.error == "crashes: KeyError: 'no-such-tool'"
    assert math.isnan(found.wall) and found.to_json()["wall"] is None
    same = Outcome.from_json(found.to_json())
    assert same.to_json() == found.to_json()


def test_a_tool_that_does_not_end_is_an_outcome(tmp_path, monkeypatch):
    source = build_model("control_flow", tmp_path)
    real = Settings.timeout
    settings = Settings(repeats=1, timeout=real)
    from graphwright.tools.simplifiers import bench as simplify_bench

    limits = []
    process = simplify_bench._process

    def hurried(arguments, given, timeout):
        limits.append(timeout)
        return process(arguments, given, 0.05 if arguments[0] == "simplifiers.worker" else timeout)

    monkeypatch.setattr(simplify_bench, "_process", hurried)
    found = run_tool(OURS, "m", source, settings)
    assert found.error == "not done after 0 s"
    assert limits == [real, real]


def test_peak_memory_is_that_of_the_run_and_not_of_the_parent():
    held = np.ones(80_000_000, np.uint8)
    # A process of its own, as in the benchmark: what a large old one holds may be swapped out meanwhile.
    program = """
import json
import numpy as np
from graphwright.tools.simplifiers import worker
worker.TOOLS["hungry"] = lambda: lambda source, target: np.ones(40_000_000, np.uint8).sum()
print(json.dumps(worker.main("hungry", "", "", 1, 3)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    measured = json.loads(done.stdout)
    assert len(measured["wall"]) == len(measured["cpu"]) == 3
    assert 30e6 < measured["memory"] < 60e6 < held.size


def test_the_judge_counts_and_compares(tmp_path):
    text = """
        <ir_version: 10, opset_import: ["" : 20, "other" : 1, "com.microsoft" : 1]>
        m (float[N, 2] x) => (float[N, 2] y) <float[2] c = {1.0, 2.0}> {
            k = Constant <value = float[2] {3.0, 4.0}> ()
            a = other.twice (x)
            b = com.microsoft.Gelu (a)
            d = Mul (b, c)
            y = Add (d, k)
        }
        <domain: "other", opset_import: ["" : 20]>
        twice (v) => (w) { w = Add (v, v) }
    """
    ir.save(ir.from_onnx_text(text), tmp_path / "m.onnx")
    found = account(tmp_path / "m.onnx")
    assert (found.nodes, found.foreign, found.calls, found.constant_bytes) == (4, 1, 1, 16)
    assert judge(tmp_path / "m.onnx", tmp_path / "m.onnx") == (0.0, "")


def test_the_judge_says_what_is_wrong(tmp_path):
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        m (float[N, 2] x) => (float[N, 2] y) <float[2] c = {1.0, 2.0}> { y = Mul (x, c) }
    """
    for name, changed in {
        "m": text,
        "wrong": text.replace("2.0}", "2.1}"),
        "renamed": text.replace(" y)", " z)").replace("y =", "z ="),
        "invalid": text.replace("Mul (x, c)", "Mul (x, x, c)"),
        "unloadable": text.replace("Mul (x, c)", "Conv (x, c)"),
    }.items():
        ir.save(ir.from_onnx_text(changed), tmp_path / f"{name}.onnx")
    source = tmp_path / "m.onnx"
    difference, problem = judge(source, tmp_path / "wrong.onnx")
    assert 0.01 < difference < 0.06 and problem == f"outputs differ by {difference:.2g}"
    assert "cannot be compared" in judge(source, tmp_path / "renamed.onnx")[1]
    assert judge(source, tmp_path / "invalid.onnx")[1].startswith("the checker refuses it")
    assert judge(source, tmp_path / "unloadable.onnx")[1].startswith("ONNX Runtime refuses it")


def test_findings_say_who_wins_and_who_fails():
    lines = findings(
        [
            outcome(),
            outcome(tool="onnxsim", wall=0.05),
            outcome(tool="onnxruntime", nodes=9, foreign=2, wall=0.2),
            outcome(tool="onnxslim", nodes=1, wall=0.01, error="outputs differ by 2"),
            failed(tool="onnxscript"),
        ]
    )
    assert lines == [
        "m: onnxslim outputs differ by 2",
        "m: onnxscript crashes: boom",
        "m: onnxsim takes 50.0 ms, graphwright 100",
        "m: onnxruntime leaves 9 (2 non-standard) nodes, graphwright 10",
    ]


def test_what_we_promise_about_memory_is_checked():
    assert findings([outcome(after=106)]) == ["m: constants of graphwright grew from 100 to 106 bytes"]
    assert not findings([outcome(after=105)])
    assert findings([outcome(LARGE, memory=201)]) == [f"{LARGE}: graphwright peaks at 2.01 times the model"]
    assert not findings([outcome(LARGE, memory=200), outcome(memory=300)])


def test_sums_are_over_models_that_both_take():
    lines = summary(
        [
            *(outcome("a", wall=1.0), outcome("a", "onnxsim", wall=2.0), outcome("a", "onnxslim", wall=4.0)),
            *(outcome("b", wall=1.0), outcome("b", "onnxsim", wall=3.0), failed("b", "onnxslim")),
        ]
    )
    assert lines == [
        "graphwright: 1.00 s over the 1 models that every tool takes",
        "onnxsim: 2.00 s over the 1 models that every tool takes",
        "onnxslim: 4.00 s over the 1 models that every tool takes",
        "graphwright against onnxsim, 2 models that both take: 2.00 s against 5.00 s, ratio 0.40",
        "graphwright against onnxslim, 1 models that both take: 1.00 s against 4.00 s, ratio 0.25",
    ]


def test_growth_is_an_exponent_over_synthetic_graphs():
    points = [outcome(f"synthetic_{n}", before=n, wall=1e-6 * n**1.5) for n in (1000, 3000, 10000)]
    assert growth_exponent(points, OURS) == pytest.approx(1.5)
    assert math.isnan(growth_exponent(points[:1], OURS))


def test_reports_hold_every_outcome(capsys):
    outcomes = [
        outcome(memory=3 * 2**20),
        outcome(tool="onnxsim", runs=1, cold=70.0, foreign=4),
        failed(tool="onnxslim"),
        outcome(tool="onnxruntime", error="outputs differ by 2"),
    ]
    text = markdown(outcomes)
    assert "| m | 20 | 100 (50.0-200) | 100 (50.0-200) (1 run) | crashes | 100 (50.0-200) (wrong) |" in text
    assert "| m | 20 | 10 | 10 (4 non-standard) | - | 10 |" in text
    assert "| m | 20 | 3 | 0 | - | 0 |" in text
    assert "- m: onnxslim crashes: boom" in text
    print_report(outcomes)
    printed = capsys.readouterr().out
    assert "10 (4 non-standard)" in printed and "1 run" in printed
    assert printed.count("│ m ") == 4


def test_the_set_covers_what_it_should():
    wanted = (
        "resnet101 vit swin_s cait mixer convnext mobilenet_v3 efficientnet yolo detr gpt2 llama whisper "
        "llama_dynamic control_flow synthetic_1k synthetic_3k synthetic_10k synthetic_30k"
    )
    assert {*wanted.split(), LARGE} < set(MODELS)
    assert len([name for name in MODELS if name.startswith("light_")]) == 9


def test_light_models_keep_their_opset_and_compute_what_the_zoo_computes(tmp_path):
    from graphwright.ir.inputs import random_inputs
    from graphwright.ir.load import load
    from graphwright.ir.reference import run_reference
    from graphwright.tools.zoo import light_model

    path = build_model("light_squeezenet", tmp_path)
    raw = ir.load(path)
    assert raw.opset_imports[""] == 9
    assert not [node for node in raw.graph if node.op_type == "ConstantOfShape"]
    loaded, known = load(path), light_model("light_squeezenet")
    feeds = random_inputs(known, seed=1)
    (name,) = (value.name for value in known.graph.outputs)
    np.testing.assert_allclose(
        run_reference(loaded, feeds)[name], run_reference(known, feeds)[name], atol=1e-7
    )


def test_exported_models_are_what_the_exporter_writes(tmp_path):
    path = build_model("mixer", tmp_path)
    before = path.stat().st_mtime_ns
    assert build_model("mixer", tmp_path).stat().st_mtime_ns == before
    raw = ir.load(path)
    assert raw.producer_name == "pytorch"
    assert raw.opset_imports[""] < 23
    assert sum(node.op_type == "Gelu" or node.op_type == "Erf" for node in raw.graph) == 24


def test_the_large_model_in_small(tmp_path):
    from graphwright.tools.zoo.large import write_large

    path = tmp_path / "large.onnx"
    write_large(path, vocabulary=2048, width=128, layers=2)
    assert path.with_name("large.onnx.data").stat().st_size == 4 * (2048 * 128 + 2 * (128 * 128 + 128))
    assert judge(path, path) == (0.0, "")
    target = tmp_path / "out.onnx"
    simplify_worker.TOOLS[OURS]()(str(path), str(target))
    assert judge(path, target)[1] == ""
    assert account(target).nodes < account(path).nodes


def test_the_fused_pipeline_adds_to_the_plain_one():
    assert simplify_worker.PIPELINES[FUSED] == simplify_worker.PIPELINES[OURS] + ",fuse"


def test_the_command_line(cli, tmp_path):
    options = ["--models", tmp_path, "--repeats", "1", "--against", "", "-o", tmp_path / "table.md"]
    outcome = cli("bench", "--simplify", "--only", "^control_flow$", *map(str, options), "--json")
    assert outcome.code == 0, outcome.err
    tools = [each["tool"] for each in outcome.json]
    assert tools in ([OURS], [OURS, FUSED])
    assert all(each["error"] == "" and each["runs"] == 1 for each in outcome.json)
    assert f"| model | nodes before | {' | '.join(tools)} |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m.onnx", "--simplify"], "one of"),
        (["--simplify", "--against", "onnxsum"], "onnxsum"),
        (["--simplify", "--only", "resnet102"], "resnet102"),
    ],
)
def test_the_command_line_refuses_in_one_line(cli, arguments, message):
    assert_one_line_of_trouble(cli("bench", *arguments), message)
