from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.load import load
from graphwright.ir.reference import run_reference
from graphwright.tools import readme

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def plugin(tmp_path):
    """The README's pass in a file, and a model that it has something to do for."""
    (code,) = [block for block in blocks("python") if "@gw.register" in block]
    path = tmp_path / "my_pass.py"
    path.write_text(code)
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]>'
        "m (float[1, 4] x) => (float[1, 4] y) { a = Sigmoid (x) b = Relu (a) y = Sigmoid (b) }"
    )
    ir.save(model, tmp_path / "model.onnx")
    return path


def test_a_pass_of_ones_own_is_about_ten_lines(plugin):
    body = plugin.read_text().partition("@gw.register")[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 14


def test_it_can_be_used_at_once_with_its_options(cli, plugin, tmp_path):
    text = "cheap-sigmoid{slope=0.25},eliminate-dead"
    outcome = cli(
        "opt", tmp_path / "model.onnx", "--plugin", plugin, "--pipeline", text, "-o", tmp_path / "o.onnx"
    )
    assert outcome.code == 0, outcome.err
    assert "cheap-sigmoid{slope=0.25}" in outcome.out
    optimized = load(tmp_path / "o.onnx")
    assert [node.op_type for node in optimized.graph] == ["HardSigmoid", "Relu", "HardSigmoid"]
    x = np.array([[-9.0, -1.0, 0.5, 9.0]], np.float32)
    hard = np.clip(0.25 * x + 0.5, 0, 1)
    expected = np.clip(0.25 * hard + 0.5, 0, 1)
    np.testing.assert_allclose(run_reference(optimized, {"x": x})["y"], expected, rtol=1e-6)


def test_it_is_listed_and_described(cli, plugin):
    assert "cheap-sigmoid" in cli("passes", "--plugin", plugin).out
    described = cli("passes", "cheap-sigmoid", "--plugin", plugin).out
    assert "lossy" in described and "slope" in described and "float" in described


def test_selectors_and_bad_options_come_for_free(cli, plugin, tmp_path):
    arguments = ("opt", tmp_path / "model.onnx", "--plugin", plugin, "--json", "--pipeline")
    nothing = cli(*arguments, "cheap-sigmoid{skip=Sigmoid}").json
    assert nothing["passes"][0]["changed"] is False
    wrong = cli(*arguments, "cheap-sigmoid{slope=steep}")
    assert wrong.code == 2 and "slope" in wrong.err


def test_commands_shown_exist():
    shown = {
        match for block in blocks("sh") for match in re.findall(r"^graphwright ([a-z]+)", block, re.MULTILINE)
    }
    assert {"compile", "run", "bench", "opt", "diff", "passes", "targets"} <= shown
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z0-9-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_python_shown_runs(tmp_path, monkeypatch):
    (code,) = [block for block in blocks("python") if "gw.compile" in block]
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), scope)


def test_the_page_on_writing_a_pass_holds(cli, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "writing-a-pass.md").read_text(encoding="utf-8")
    rule, test = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "fold_neg.py").write_text(rule)
    assert cli("passes", "fold-neg", "--plugin", tmp_path / "fold_neg.py").code == 0
    scope: dict[str, Callable[[], None]] = {}
    exec(compile(test, "writing-a-pass.md", "exec"), scope)
    scope["test_fold_neg"]()


def test_tables_are_put_between_their_markers(tmp_path, capfd):
    (tmp_path / "R.md").write_text("a\n<!-- demo -->\nold\n<!-- /demo -->\nb\n")
    (tmp_path / "t.md").write_text("| new \\1 |\n")
    arguments = [str(tmp_path / "R.md"), "--table"]
    assert readme.main([*arguments, f"demo={tmp_path / 't.md'}"]) == 0
    assert (tmp_path / "R.md").read_text() == "a\n<!-- demo -->\n| new \\1 |\n<!-- /demo -->\nb\n"
    assert readme.main([*arguments, f"bench={tmp_path / 't.md'}"]) == 2
    assert readme.main([*arguments, "demo=none.md"]) == 2
    assert capfd.readouterr().err.count("readme: error: ") == 2
    assert readme.main(arguments[:1]) == 0, "without tables nothing changes"


def test_the_readme_has_its_tables():
    for marker in ("demo", "bench", "runtimes", "int8", "quantization"):
        assert readme.splice(README, marker, "x") != README
