"""The table of quantization: cells in processes of their own, records that survive, forms beside each other."""

import json
import math
import sys

import numpy as np
import pytest
import typer
from graphwright.ir.errors import ToolError
from graphwright.tools.quantizers import sentences, worker
from graphwright.tools.quantizers.bench import FORMS, Bench, main
from graphwright.tools.quantizers.report import behind, first, markdown, picked
from graphwright.tools.quantizers.rivals import OURS, OURS_ON_ORT, PIPELINES, WAYS, Made
from graphwright.tools.quantizers.subjects import build_subject
from typer.testing import CliRunner

app = typer.Typer()
app.command()(main)


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.slow
def test_ours_beside_onnx_runtime(tmp_path):
    ways = f"{OURS},{OURS_ON_ORT},ONNX Runtime"
    records = invoke("resnet18_small", "--folder", str(tmp_path), "--only", ways)
    assert set(records) == {
        f"resnet18_small/{way}/{variant}" for way in ways.split(",") for variant in WAYS[way]
    }
    assert not any("error" in record for record in records.values())
    assert behind(records, ["resnet18_small"]) == []
    before = (tmp_path / "quantization" / "records.json").stat().st_mtime_ns
    assert invoke("resnet18_small", "--folder", str(tmp_path), "--only", ways) == records
    assert (tmp_path / "quantization" / "records.json").stat().st_mtime_ns == before


def test_a_cell_is_measured_and_a_failure_is_a_record(tmp_path, monkeypatch):
    worker.prepare("mobilenet_v2_small", tmp_path)
    monkeypatch.setitem(WAYS, "exact", {"": lambda job: Made([run(job, feeds) for feeds in job.tests], 7)})
    monkeypatch.setitem(WAYS, "broken", {"": refuse})
    found = worker.measure("mobilenet_v2_small", tmp_path, "exact", "")
    assert found["sqnr_db"] == math.inf and found["size"] == 7
    assert worker.measure("mobilenet_v2_small", tmp_path, "broken", "") == {"error": "ValueError: no, thanks"}
    subject = build_subject("mobilenet_v2_small", tmp_path)
    assert found["held_out_db"] == math.inf
    ways = [batch[0].tobytes() for batch in (*subject.calibration, *subject.held_out, *subject.tests)]
    assert len(set(ways)) == len(ways)


def run(job, feeds):
    from graphwright.ir.load import load
    from graphwright.ir.reference import run_reference

    return next(iter(run_reference(load(job.path), feeds, threads=1).values()))


def refuse(job):
    raise ValueError("\nno, thanks\nand more")


def test_a_cell_that_takes_too_long_or_crashes_is_a_line(tmp_path, monkeypatch):
    real = Bench._step
    # Building the model is not what takes too long.
    step = lambda self, *words: None if words[0] == "prepare" else real(self, *words)  # noqa: E731
    monkeypatch.setattr(Bench, "_step", step)
    record = Bench(tmp_path, limit=0.2).run(["m"], ["NNCF"], [], print)["m/NNCF/bias correction"]
    assert record["error"] == "not done after 0 s"
    monkeypatch.setattr(sys, "executable", "/bin/false")
    record = Bench(tmp_path, limit=20.0).run(["m"], ["NNCF"], ["NNCF"], print)["m/NNCF/bias correction"]
    assert record["error"] == "exit code 1 without a word"
    monkeypatch.setattr(Bench, "_step", real)
    with pytest.raises(ToolError, match="m2 cannot be built: exit code 1"):
        Bench(tmp_path, limit=20.0).run(["m2"], ["NNCF"], [], print)


def test_records_survive_and_are_not_measured_again(tmp_path, monkeypatch):
    bench = Bench(tmp_path)
    made = []
    monkeypatch.setattr(
        Bench,
        "_step",
        lambda self, *key: key[0] == "cell" and (made.append(key) or measured(0.0, float(len(made)))),
    )
    first = bench.run(["m"], ["ONNX Runtime"], [], lambda text: None)
    assert [key[4] for key in made] == list(WAYS["ONNX Runtime"]) and len(first) == 2
    assert bench.run(["m"], ["ONNX Runtime"], [], lambda text: None) == first and len(made) == 2
    bench.run(["m"], ["ONNX Runtime", "torchao"], ["ONNX Runtime"], lambda text: None)
    assert len(made) == 5
    bench.file.write_text("[]")
    with pytest.raises(ToolError, match="holds no records"):
        bench.records()


def measured(held_out, sqnr, **more):
    return {"held_out_db": held_out, "sqnr_db": sqnr, **more}


def every(way, record, **others):
    """Records of all variants of a way on a model m."""
    return {f"m/{way}/{variant}": others.get(variant, record) for variant in WAYS[way]}


@pytest.fixture
def variants(monkeypatch):
    """Of ours there are two, whatever the benchmark has."""
    monkeypatch.setitem(WAYS, OURS, dict.fromkeys(("full", "quick"), refuse))


def test_lines_where_a_rival_is_ahead_are_named(variants):
    metrics = {"metric": "accuracy 90%", "float_metric": "accuracy 91%"}
    records = {
        **every(OURS, measured(1.0, 1.0), full=measured(31.0, 30.0, **metrics)),
        **every(OURS_ON_ORT, measured(28.0, 29.0)),
        **every("ONNX Runtime", measured(12.0, 12.0), MinMax=measured(29.0, 29.5)),
        **every("NNCF", {"error": "TypeError: no"}),
        **every("torchao", measured(31.0, 31.5)),
    }
    assert [(model, lead) for model, _, lead in behind(records, ["m"])] == [("m", 1.5), ("m", 0.5)]
    text = markdown(records, ["m"], list(WAYS))
    assert "| 29.5 (MinMax) |" in text and "refused" in text and "accuracy 91%" in text
    assert "- m, NNCF (bias correction): TypeError: no" in text
    assert f"torchao (X86InductorQuantizer) over {OURS} (full): 1.5 dB" in text
    del records["m/torchao/X86InductorQuantizer"], records[f"m/{OURS_ON_ORT}/quick"]
    assert markdown(records, ["m"], list(WAYS)).count("No rival is ahead") == 2


def test_what_is_not_measured_is_not_compared(variants):
    records = {**every(OURS, measured(20.0, 20.0)), **every("torchao", measured(30.0, 30.0))}
    assert [lead for *_, lead in behind(records, ["m"])] == [10.0]
    del records[f"m/{OURS}/quick"]
    assert behind(records, ["m"]) == [] and len(behind(records, ["m"], first)) == 1
    text = markdown(records, ["m"], list(WAYS))
    assert "| not all run | not all run |" in text
    missing = text.split("Not measured yet on held-out data:")[1]
    assert f"- m: {OURS} (quick); {OURS_ON_ORT}; " in missing


def test_variants_are_picked_on_held_out_data_alone(variants):
    records = {
        **every(OURS, measured(1.0, 1.0), full=measured(20.0, 30.0), quick=measured(25.0, 22.0)),
        **every("torchao", measured(40.0, 23.0)),
    }
    assert picked(records, "m", OURS) == ("quick", records[f"m/{OURS}/quick"])
    assert first(records, "m", OURS) == ("full", records[f"m/{OURS}/full"])
    assert [lead for *_, lead in behind(records, ["m"])] == [1.0] and behind(records, ["m"], first) == []


def test_sqnr_over_batches():
    ones = [np.ones(4, np.float32), np.ones(4, np.float32)]
    assert worker.sqnr_db(ones, [ones[0], ones[1] * 0.9]) == pytest.approx(
        10 * math.log10(8 / 0.04), abs=1e-3
    )


def test_sentences_are_compared_by_cosine_and_rank():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(12, 8)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert sentences.mean_cosine(embeddings, embeddings) == pytest.approx(1.0)
    assert sentences.rank_agreement(embeddings, embeddings) == pytest.approx(1.0)
    assert sentences.same_nearest(embeddings, embeddings) == 1.0
    other = rng.normal(size=(12, 8)).astype(np.float32)
    assert (
        sentences.mean_cosine(embeddings, other) < 0.9 and sentences.rank_agreement(embeddings, other) < 0.9
    )
    texts = (*sentences.CALIBRATION, *sentences.HELD_OUT, *sentences.TESTS)
    assert len(set(texts)) == len(texts)


def test_tables_of_what_there_is_measure_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "_step", refuse)
    Bench(tmp_path).keep("m/torchao/X86InductorQuantizer", measured(1.0, 23.5))
    output = tmp_path / "tables.md"
    arguments = ["m", "--folder", str(tmp_path), "--report-only", "-o", str(output)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert "| m | not run | not run | not run | not run | 23.5 |" in output.read_text()


def test_forms_beside_each_other():
    found = {each["way"]: each for each in invoke("resnet18_small", "--forms", "--only", "weights int")}
    assert list(found) == [name for name in FORMS if name.startswith("weights int")]
    assert (
        found["weights int8"]["sqnr_db"] > found["weights int4"]["sqnr_db"] > found["weights int2"]["sqnr_db"]
    )
    # So small a model that the table of bytes outweighs what int2 saves.
    assert found["weights int8"]["size"] > found["weights int4"]["size"]


def test_mistakes_are_one_line(tmp_path):
    result = CliRunner().invoke(app, ["resnet19", "--folder", str(tmp_path)])
    assert result.exit_code == 2 and "resnet19" in result.output
    result = CliRunner().invoke(app, ["resnet18", "--only", "tensorrt"])
    assert result.exit_code == 2 and "no way 'tensorrt'" in result.output
    result = CliRunner().invoke(app, ["resnet18_small", "--forms", "--only", "int3"])
    assert result.exit_code == 2 and "no form's name starts with 'int3'" in result.output


@pytest.mark.parametrize(
    "text", [*FORMS.values(), *(text for each in PIPELINES.values() for text in each.values())]
)
def test_ways_are_pipelines(text):
    from graphwright.passes.pipeline import parse_pipeline

    assert not text or parse_pipeline(text)
