from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.load import load
from graphwright.ir.reference import run_reference
from graphwright.ir.save import save
from graphwright.tools.cli import main

from .conftest import assert_one_line_of_trouble


@pytest.fixture(scope="module")
def compiled(tiny_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled") / "tiny"
    assert main(["compile", str(tiny_file), "--target", "x86", "-o", str(folder)]) == 0
    return folder


def test_a_fresh_process_runs_it(compiled, tiny_file, tiny_input, tmp_path):
    command = ["run", str(compiled), "--input", str(tiny_input), "-o", str(tmp_path / "out.npz"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "graphwright.tools.cli", *command], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["outputs"] == [{"name": "y", "shape": [1, 4], "dtype": "float32"}]
    expected = run_reference(load(tiny_file), dict(np.load(tiny_input)))["y"]
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["y"], expected, rtol=1e-4, atol=1e-6)


def test_the_report_sets_the_original_beside_each_step(compiled):
    report = json.loads((compiled / "report.json").read_text())
    steps = report["table"]["steps"]
    assert steps[0]["name"] == "original" and steps[0]["nodes"] == 7
    assert steps[-1]["name"].startswith("compiled (tvm")
    assert steps[-1]["comparison"]["max_rel"] <= 1e-4
    assert steps[-1]["library_bytes"] == report["library_bytes"] + report["weight_bytes"]
    assert steps[0]["latency"]["onnxruntime"]["median_ms"] > 0
    assert steps[-1]["latency"]["tvm"]["samples"] >= 16
    text = (compiled / "report.md").read_text()
    assert "| original |" in text and "fold-batch-norm" in text and "What the passes did" in text


def test_run_prints_values(cli, compiled, tiny_input):
    outcome = cli("run", compiled, "--input", tiny_input)
    assert outcome.code == 0 and "float32[1, 4]" in outcome.out


def test_bench_of_an_artifact_beside_onnxruntime(cli, compiled):
    results = cli(
        "bench", compiled, "--against", "onnxruntime", "--threads", "1,2", "--repeats", "9", "--json"
    ).json
    seen = [(row["contender"], row["threads"], row["samples"]) for row in results["results"]]
    assert seen == [(name, count, 9) for count in (1, 2) for name in ("graphwright", "onnxruntime")]
    assert all(row["p10_ms"] <= row["median_ms"] <= row["p90_ms"] for row in results["results"])
    assert "onnxruntime" in cli("bench", compiled, "--threads", "1", "--repeats", "2").out


def test_bench_of_a_model_compiles_it_first(cli, tiny_file):
    outcome = cli("bench", tiny_file, "--threads", "1", "--repeats", "3", "--json")
    assert outcome.code == 0 and len(outcome.json["results"]) == 2


def test_the_second_backend_has_the_same_face(cli, tiny_file, tiny_input, tmp_path):
    arguments = ("compile", tiny_file, "-o", tmp_path / "o", "--backend", "onnxruntime", "--no-measure")
    assert cli(*arguments).code == 0
    assert cli("run", tmp_path / "o", "--input", tiny_input).code == 0


def test_quantizing_needs_data_and_takes_it(cli, tiny_file, tmp_path):
    arguments = (
        "compile",
        tiny_file,
        "-o",
        tmp_path / "q",
        "--pipeline",
        "simplify,fold-batch-norm,insert-qdq",
    )
    assert_one_line_of_trouble(cli(*arguments), "calibrat")
    assert not (tmp_path / "q").exists()
    images = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=images)
    outcome = cli(*arguments, "--calibration", tmp_path / "c.npz", "--json")
    assert outcome.code == 0, outcome.err
    table = outcome.json["table"]["steps"]
    assert table[-1]["lossless"] is False
    assert 15 < table[-1]["comparison"]["sqnr_db"] < 80


def test_a_folder_of_somebody_else_is_left_alone(cli, tiny_file, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert_one_line_of_trouble(cli("compile", tiny_file, "-o", tmp_path / "mine"), "not empty")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_file_in_the_way_is_left_alone(cli, tiny_file, tmp_path):
    (tmp_path / "file").write_text("x")
    assert_one_line_of_trouble(cli("compile", tiny_file, "-o", tmp_path / "file"), "is a file")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "weights.bin").write_bytes(b"short"), "weights.bin"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json"),
        (lambda folder: (folder / "model.so").unlink(), "model.so"),
    ],
)
def test_a_damaged_artifact_is_one_line(cli, compiled, tiny_input, tmp_path, damage, words):
    folder = tmp_path / "copy"
    shutil.copytree(compiled, folder)
    damage(folder)
    assert_one_line_of_trouble(cli("run", folder, "--input", tiny_input), words)


def test_wrong_inputs_are_one_line(cli, compiled, tmp_path):
    np.savez(tmp_path / "in.npz", z=np.zeros((1, 3, 8, 8), np.float32))
    assert_one_line_of_trouble(cli("run", compiled, "--input", tmp_path / "in.npz"), "lacks input 'x'", "'z'")
    np.savez(tmp_path / "in.npz", x=np.zeros((2, 3, 8, 8), np.float32))
    assert_one_line_of_trouble(cli("run", compiled, "--input", tmp_path / "in.npz"), "[2, 3, 8, 8]")


def test_an_open_dimension_is_named(cli, tmp_path):
    import onnx_ir as ir

    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]> m (float[batch, 4] x) => (float[batch, 4] y) { y = Relu (x) }'
    )
    ir.save(model, tmp_path / "m.onnx")
    assert_one_line_of_trouble(cli("compile", tmp_path / "m.onnx", "-o", tmp_path / "o"), "batch")
    assert cli("compile", tmp_path / "m.onnx", "-o", tmp_path / "o", "--dim", "batch=2").code == 0


def test_a_module_on_the_command_line(cli, tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(
        "import torch\n\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()), (torch.randn(2, 4),)\n"
    )
    monkeypatch.chdir(tmp_path)
    outcome = cli("compile", "nets:make", "-o", "out", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["table"]["steps"][-1]["comparison"]["max_rel"] <= 1e-4


def test_batch_sizes_from_the_command_line(cli, tmp_path):
    text = "net (float[N,3,8,8] x) => (float[N,3,1,1] y) { r = Relu(x) y = GlobalAveragePool(r) }"
    file, folder = tmp_path / "net.onnx", tmp_path / "net"
    save(ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23]>\n{text}'), file)
    outcome = cli("compile", file, "--batch-sizes", "1,4", "-o", folder)
    assert outcome.code == 0 and "other batch sizes run in pieces (2 as 1 + 1)" in outcome.out
    rows = json.loads((folder / "report.json").read_text())["batches"]["rows"]
    assert [row["size"] for row in rows] == [1, 4] and all(row["timing"]["median_ms"] > 0 for row in rows)
    x = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    arguments = ["run", folder, "--input", tmp_path / "in.npz", "-o", tmp_path / "out.npz"]
    assert cli(*arguments, "--json").json["batch"] == "4 + 1"
    assert "the batch ran as 4 + 1" in cli(*arguments).out
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npz")["y"], np.maximum(x, 0).mean((2, 3), keepdims=True), rtol=1e-5, atol=1e-6
    )
    timed = cli("bench", folder, "--threads", "1", "--repeats", "2", "--json").json["results"]
    assert [row["contender"] for row in timed] == [
        f"{name}, batch {size}" for size in (1, 4) for name in ("graphwright", "onnxruntime")
    ]
    assert_one_line_of_trouble(cli("compile", file, "--batch-sizes", "1,x", "-o", folder), "such as 1,4,8")
