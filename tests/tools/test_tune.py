"""`graphwright tune` and what `compile` does with its records."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import graphwright as gw
import numpy as np
import onnx_ir as ir
import pytest
from graphwright.backends.tuning import step, tuner
from graphwright.backends.tuning.database import Database
from graphwright.backends.tuning.record import TRIAL
from graphwright.tools.cli import main

TEXT = """<ir_version: 10, opset_import: ["" : 23]>
net (float[1,8,10,10] x, float[16,8,3,3] w) => (float[1,16,10,10] y) { y = Conv<pads = [1, 1, 1, 1]>(x, w) }"""


@pytest.fixture
def model(tmp_path):
    graph = ir.from_onnx_text(TEXT)
    weights = graph.graph.inputs.pop()
    weights.const_value = ir.tensor(np.random.default_rng(0).normal(0, 0.1, (16, 8, 3, 3)).astype(np.float32))
    graph.graph.register_initializer(weights)
    path = tmp_path / "net.onnx"
    gw.save(graph, path)
    return path


@pytest.fixture
def hurry(monkeypatch):
    monkeypatch.setattr(tuner, "BATCH", 2)
    monkeypatch.setattr(step, "_SECONDS", 0.02)


def test_tune_then_compile(model, tmp_path, hurry, capsys, monkeypatch):
    monkeypatch.setenv("GRAPHWRIGHT_TUNING", str(tmp_path / "mine.jsonl"))
    assert main(["tune", str(model), "--target", "host", "--trials", "2"]) == 0
    said, progress = capsys.readouterr()
    assert "[Conv(f32[1x8x10x10]" in said.replace("\n", "")
    assert "tuning: 2 trials now, 2 in all" in said
    assert f"records are in {tmp_path / 'mine.jsonl'}" in said
    assert " of 2: about " in progress
    out = tmp_path / "out"
    assert main(["compile", str(model), "-t", "host", "-o", str(out), "--no-measure"]) == 0
    assert f"kernels are built by records of {tmp_path / 'mine.jsonl'}" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert any(kernel["workload"].startswith("[Conv(f32[1x8x10x10]") for kernel in report["kernels"])
    assert main(["compile", str(model), "-t", "host", "-o", str(out), "--no-measure", "--no-records"]) == 0
    assert "records" not in capsys.readouterr().out
    assert main(["tune", str(model), "--trials", "2", "-t", "host", "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["spent"] == 0 and outcome["trials"] == 2
    assert [kernel["trials"] for kernel in outcome["kernels"]] == [2]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_loses_one_trial_at_most_and_goes_on(model, tmp_path, how):
    path = tmp_path / "records.jsonl"
    command = [
        sys.executable,
        "-m",
        "graphwright.tools.cli",
        "tune",
        str(model),
        "-t",
        "host",
        "--database",
        str(path),
    ]
    with subprocess.Popen(
        [*command, "--trials", "200"], stderr=subprocess.DEVNULL, process_group=0
    ) as process:
        end = time.monotonic() + 300
        while time.monotonic() < end and (not path.exists() or path.read_bytes().count(b"\n") < 5):
            assert process.poll() is None
            time.sleep(0.05)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(how)
        process.wait(60)
    assert process.returncode in (-signal.SIGKILL, 130)
    assert workers and wait_until_gone(workers)
    database = Database.open(path)
    kept = sum(record.kind == TRIAL for record in database.records())
    assert kept >= 3 and len(database.bad_lines) <= 1
    outcome = gw.tune(gw.load(model), "host", trials=kept + 2, database=path)
    assert (outcome.report.spent, outcome.report.trials) == (2, kept + 2)


def wait_until_gone(processes):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if not any(Path("/proc", process).exists() for process in processes):
            return True
        time.sleep(0.1)
    return False


def test_an_interruption_says_where_the_records_are(model, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(tuner.Tuner, "run", interrupted)
    monkeypatch.setattr(step, "_SECONDS", 0.02)
    file = tmp_path / "r.jsonl"
    assert main(["tune", str(model), "-t", "host", "--database", str(file)]) == 130
    said = capsys.readouterr()
    assert said.out == f"interrupted; what was measured is in {file}, the same command goes on from there\n"
    assert said.err.endswith("graphwright: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tune", "--target", "cuda"], "tuning is for CPUs; kernels for cuda are scheduled by TVM's DLight"),
        (["tune", "--target", "raspberry-pi-4"], "cannot be measured here: it needs aarch64"),
        (["tune", "--trials", "0"], "greater than or equal to 1"),
        (["tune", "--threads", "none"], "--threads takes numbers"),
        (
            ["compile", "-o", "OUT", "--database", "missing.jsonl"],
            "there is no tuning database missing.jsonl",
        ),
        (["compile", "-o", "OUT", "--trials", "4", "--backend", "onnxruntime"], "leave trials at 0"),
    ],
)
def test_trouble_is_one_line(model, tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main([arguments[0], str(model), *arguments[1:]]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("graphwright: error: ") and said in error
    assert not (tmp_path / "OUT").exists()


def test_a_file_that_is_no_database_is_refused(model, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("hello\n")
    assert main(["tune", str(model), "-t", "host", "--database", str(tmp_path / "notes.txt")]) == 2
    assert "notes.txt is not a tuning database" in capsys.readouterr().err
