"""A pass that crashes leaves a reproducer behind without being asked."""

from __future__ import annotations

import pytest

from .conftest import assert_one_line_of_trouble

PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar

import graphwright as gw


@gw.register
@dataclass(frozen=True)
class Crash(gw.Pass):
    \"\"\"Raise as soon as there is a Gemm.\"\"\"

    name: ClassVar[str] = "test-cli-crash"

    def apply(self, model, context):
        if any(node.op_type == "Gemm" for node in model.graph):
            raise ZeroDivisionError("division by zero")


@gw.register
@dataclass(frozen=True)
class Drift(gw.Pass):
    \"\"\"Claim to be lossless and scale the bias.\"\"\"

    name: ClassVar[str] = "test-cli-drift"

    def apply(self, model, context):
        rewriter = context.rewriter(model)
        for value in list(model.graph.initializers.values()):
            rewriter.set_initializer(value, value.const_value.numpy() * 2)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    file = tmp_path / "crashing_pass.py"
    file.write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    return file


@pytest.mark.parametrize("command", ["opt", "compile"])
def test_a_crash_writes_a_file_that_replays_it(cli, tiny_file, plugin, tmp_path, command):
    output = ["-o", "out"] if command == "compile" else []
    pipeline = "eliminate-identity,test-cli-crash,eliminate-dead"
    outcome = cli(command, tiny_file, "--pipeline", pipeline, "--plugin", plugin, *output)
    file = "graphwright-reproducer.onnx"
    assert_one_line_of_trouble(outcome, "test-cli-crash", f"graphwright reduce {file} --replay")
    replayed = cli("reduce", file, "--replay", "--plugin", plugin)
    assert replayed.code == 1
    assert "ZeroDivisionError: division by zero" in replayed.out
    shown = cli("inspect", file, "--json").json
    assert "Identity" not in str(shown), "it is the model right before the pass"


def test_a_lossless_pass_that_is_not_leaves_one_too(cli, tiny_file, plugin, tmp_path):
    outcome = cli("opt", tiny_file, "--pipeline", "test-cli-drift", "--plugin", plugin, "--check-each")
    assert_one_line_of_trouble(outcome, "lossless but changed the outputs", "--replay")
    assert cli("reduce", "graphwright-reproducer.onnx", "--replay", "--plugin", plugin).code == 1


def test_a_users_mistake_leaves_none(cli, tiny_file, plugin, tmp_path):
    outcome = cli("opt", tiny_file, "--pipeline", "insert-qdq", "--plugin", plugin)
    assert_one_line_of_trouble(outcome, "calibration")
    assert not list(tmp_path.glob("*.onnx"))
