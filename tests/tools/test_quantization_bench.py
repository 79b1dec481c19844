"""The table of quantization: both sides on a small model, forms beside each other."""

import json

import pytest
import typer
from graphwright.tools.quantization_bench import FORMS, Score, lost, main
from typer.testing import CliRunner

app = typer.Typer()
app.command()(main)


def scores(*arguments: str) -> list[dict]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.slow
def test_static_int8_beside_onnx_runtime():
    ours, theirs = scores("resnet18_small")
    assert (ours["way"], theirs["way"]) == ("graphwright", "ONNX Runtime")
    assert not ours["error"] and not theirs["error"]
    assert ours["sqnr_db"] > 30 and ours["sqnr_db"] >= theirs["sqnr_db"] - 0.5
    assert ours["size"] > 0 and ours["calibrator"] and theirs["calibrator"]


def test_forms_beside_each_other():
    found = {each["way"]: each for each in scores("resnet18_small", "--forms", "--only", "weights int")}
    assert list(found) == [name for name in FORMS if name.startswith("weights int")]
    assert (
        found["weights int8"]["sqnr_db"] > found["weights int4"]["sqnr_db"] > found["weights int2"]["sqnr_db"]
    )
    # So small a model that the table of bytes outweighs what int2 saves.
    assert found["weights int8"]["size"] > found["weights int4"]["size"]


def test_mistakes_are_one_line():
    result = CliRunner().invoke(app, ["resnet19"])
    assert result.exit_code == 2 and "no model 'resnet19' in the zoo" in result.output


def test_lines_where_the_rival_is_better_are_named():
    lines = lost(
        [Score("m", "graphwright", 30.0), Score("m", "ONNX Runtime", 31.5), Score("n", "graphwright", 3.0)]
    )
    assert lines == ["m: ONNX Runtime's SQNR is 1.5 dB higher"]
    assert lost([Score("m", "graphwright", 31.0), Score("m", "ONNX Runtime", 30.0)]) == []


@pytest.mark.parametrize("name", FORMS)
def test_forms_are_pipelines(name):
    from graphwright.passes.pipeline import parse_pipeline

    assert not FORMS[name] or parse_pipeline(FORMS[name])
