"""The table of what repair gains."""

import re

from graphwright.tools import repair_bench
from graphwright.tools.cli import main  # noqa: F401 - the console is set up as for the command line
from typer.testing import CliRunner


def run(*arguments):
    import typer

    app = typer.Typer()
    app.command()(repair_bench.main)
    return CliRunner().invoke(app, list(arguments))


def test_a_table_of_one_model(tmp_path):
    output = tmp_path / "table.md"
    found = run(
        "--models",
        "resnet18_small",
        "--only",
        "equalize,insert-qdq{",
        "--folder",
        str(tmp_path),
        "-o",
        str(output),
    )
    assert found.exit_code == 0, found.output
    text = output.read_text()
    rows = dict(re.findall(r"^\| `(.*?)` \| ([\d.]+) \|$", text, re.MULTILINE))
    assert set(rows) == {
        "equalize,insert-qdq",
        "relax-clips{share=1},equalize,insert-qdq",
        "equalize,insert-qdq,gptq,bias-correction",
    }
    assert all(15.0 < float(cell) < 60.0 for cell in rows.values())
    assert "One weight scale" not in text and "one weight scale per tensor" in text


def test_unknown_models_are_refused(tmp_path):
    assert run("--models", "resnet19", "--folder", str(tmp_path)).exit_code == 2
