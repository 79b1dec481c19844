from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx_ir as ir
import pytest
import typer
from graphwright.ir.errors import VerifyError
from graphwright.tools import cli as module

from .conftest import assert_one_line_of_trouble


def failing(error: BaseException):
    def command() -> None:
        raise error

    return command


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch):
    """Replace the commands by one, `boom`, that raises what it is given."""

    def install(error: BaseException) -> None:
        app = typer.Typer(pretty_exceptions_enable=False)
        app.command("boom")(failing(error))
        app.callback()(lambda: None)
        monkeypatch.setattr(module, "app", app)

    return install


def test_help_names_every_command(cli):
    outcome = cli("--help")
    assert outcome.code == 0
    for command in ("compile", "opt", "run", "bench", "inspect", "diff", "passes", "targets"):
        assert f"\n  {command} " in outcome.out


def test_starting_imports_nothing_heavy():
    code = (
        "import sys, graphwright, graphwright.tools.cli;"
        "print([m for m in ('torch', 'tvm', 'onnx', 'onnxruntime', 'onnxscript', 'sklearn') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nonsense"], "nonsense"),
        (["compile"], "MODEL"),
        (["compile", "m.onnx"], "--output"),
        (["opt", "m.onnx", "--nonsense"], "--nonsense"),
        (["run", "dir", "--input", "x.npz", "--threads", "0"], "--threads"),
        (["bench", "dir", "--threads", "two"], "two"),
        (["bench"], "what to measure"),
        (["bench", "m.onnx", "--against", "tensorrt"], "tensorrt"),
        (["compile", "m.onnx", "-o", "d", "--target", "z80"], "z80"),
        (["compile", "m.onnx", "-o", "d", "--pipeline", "simplify", "--preset", "simplify"], "not both"),
        (["compile", "m.onnx", "-o", "d", "--preset", "nonsense"], "nonsense"),
        (["opt", "m.onnx", "--pipeline", "fold-constant"], "fold-constants"),
        (["opt", "m.onnx", "--pipeline", "prune-channels{ratio=lots}"], "ratio"),
        (["opt", "m.onnx", "--pipeline", "prune-channels{ratoi=0.5}"], "ratoi"),
        (["opt", "m.onnx", "--pipeline", "simplify,"], "column"),
        (["opt", "m.onnx", "--pipeline", "simplify", "-o", "out.txt"], ".onnx"),
        (["opt", "m.onnx", "--pipeline", "simplify", "-o", "nowhere/out.onnx"], "nowhere"),
        (["opt", "m.onnx", "--pipeline", "simplify", "--plugin", "none.py"], "none.py"),
        (["opt", "m.onnx", "--pipeline", "simplify", "--dim", "N"], "NAME=SIZE"),
        (["opt", "m.onnx"], "--pipeline"),
        (["inspect", "m.onnx"], "m.onnx"),
        (["diff", "m.onnx", "n.onnx"], "m.onnx"),
        (["run", "nowhere", "--input", "x.npz"], "x.npz"),
        (["passes", "nonsense"], "nonsense"),
        (["compile", "nowhere.module:make", "-o", "d"], "nowhere"),
    ],
)
def test_what_a_user_can_cause_is_one_line_and_code_2(cli, arguments, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_line_of_trouble(cli(*arguments), word)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x08\x0a\x12\x03abc"])
def test_a_broken_file_is_one_line(cli, content, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    assert_one_line_of_trouble(cli("inspect", path), "broken.onnx")


def test_a_truncated_file_leaves_no_folder(cli, tiny_file, tmp_path):
    path = tmp_path / "half.onnx"
    path.write_bytes(tiny_file.read_bytes()[:-200])
    assert_one_line_of_trouble(cli("compile", path, "-o", tmp_path / "out"), "half.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["half.onnx"]


def test_a_full_disk_is_one_line(cli, raising):
    raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/model.so"))
    assert_one_line_of_trouble(cli("boom"), "No space left on device", "out/model.so")


def test_all_problems_of_a_graph_stay_on_one_line(cli, raising):
    raising(VerifyError(["first\nproblem", "second"]))
    assert_one_line_of_trouble(cli("boom"), "first problem (and 1 more)")


def test_a_bug_says_so_and_shows_no_traceback(cli, raising):
    raising(ZeroDivisionError("oh"))
    outcome = cli("boom")
    assert outcome.code == 70
    assert "bug: ZeroDivisionError: oh" in outcome.err
    assert "Traceback" not in outcome.err


def test_debug_shows_the_traceback(cli, raising, monkeypatch):
    monkeypatch.setenv("GRAPHWRIGHT_DEBUG", "1")
    raising(ZeroDivisionError("oh"))
    assert "Traceback" in cli("boom").err


def test_an_interruption_is_130(cli, raising):
    raising(KeyboardInterrupt())
    outcome = cli("boom")
    assert (outcome.code, outcome.err) == (130, "graphwright: interrupted\n")


def test_an_interruption_inside_exec_is_130():
    code = (
        "import os, signal, sys, typer; from graphwright.tools import cli;"
        "app = typer.Typer(); app.callback()(lambda: None);"
        "app.command('boom')(lambda: exec('os.kill(os.getpid(), signal.SIGTERM)'));"
        "cli.app = app; sys.exit(cli.main(['boom']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_a_compilation_leaves_nothing(how, tiny_file, tmp_path):
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-m", "graphwright.tools.cli", "compile", str(tiny_file), "-o", "out"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if ": build" in line or ": check" in line or ": lower" in line:
            break
    time.sleep(0.2)
    process.send_signal(how)
    rest = process.stderr.read()
    assert process.wait(60) == 130, rest
    assert "Traceback" not in rest
    # ONNX Runtime keeps a file of its own among the temporary ones.
    left = [str(entry.relative_to(tmp_path)) for entry in tmp_path.rglob("*") if entry.name != ".ses"]
    assert left == ["tmp"]


def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[2] x) => (float[2] y) { y = Relu(x) }"""
    model = ir.from_onnx_text(text)
    model.graph.inputs[0].name = "\u5165\u529b"
    ir.save(model, tmp_path / "m.onnx")
    command = [sys.executable, "-m", "graphwright.tools.cli", "inspect", str(tmp_path / "m.onnx")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    for extra in ([], ["--json"]):
        done = subprocess.run([*command, *extra], env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert b"u5165" in done.stdout
    assert json.loads(done.stdout)


def test_output_into_a_closed_pipe_is_quiet():
    command = f"{sys.executable} -m graphwright.tools.cli targets | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr and "bug" not in done.stderr


def test_version(cli):
    assert cli("--version").out.startswith("graphwright 0.")


def test_every_command_has_a_file_of_its_own():
    commands = Path(module.__file__).parent / "commands"
    files = {path.stem for path in commands.glob("*.py")} - {"__init__"}
    assert {command.name for command in module.app.registered_commands} == files
