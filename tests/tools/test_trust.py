"""A pass that is wrong, through the command line: one line, a file that replays, the rest of the run."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx_ir as ir
import pytest
from graphwright.ir.load import load
from graphwright.passes.plugins import load_plugin

from .conftest import assert_one_line_of_trouble

PLUGIN = Path(__file__).parents[1] / "passes" / "broken_rules.py"
FILE = "graphwright-reproducer.onnx"


@pytest.fixture
def model_file(tmp_path, monkeypatch):
    load_plugin(PLUGIN)
    monkeypatch.chdir(tmp_path)
    ir.save(sys.modules["graphwright_plugin_broken_rules"].model(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cycle", ["rule 'Spoil-cycle' at node 'bad'", "is on a cycle"]),
        ("lost-shape", ["rule 'Spoil-lost-shape' at node 'bad'", "has no shape any more"]),
        ("raises", ["rule 'Spoil-raises' at node 'bad'", "IndexError"]),
        ("loops", ["rule 'Loop' keeps firing", "no fixpoint"]),
    ],
)
def test_a_broken_rule_ends_in_one_line_and_a_file_that_replays(cli, model_file, how, words):
    pipeline = f"eliminate-identity,test-spoil{{how={how}}},eliminate-dead"
    outcome = cli("opt", model_file, "--pipeline", pipeline, "--plugin", PLUGIN, "-o", "out.onnx")
    assert_one_line_of_trouble(
        outcome, *words, f"graphwright reduce {FILE} --replay --plugin {PLUGIN}; --keep-going"
    )
    assert not Path("out.onnx").exists()
    replayed = cli("reduce", FILE, "--replay", "--plugin", PLUGIN)
    assert replayed.code == 1 and replayed.out.startswith("it still fails: pass 'test-spoil'")

    outcome = cli(
        "opt", model_file, "--pipeline", pipeline, "--plugin", PLUGIN, "-o", "o.onnx", "--keep-going"
    )
    assert outcome.code == 1
    assert words[0] in outcome.err and "left out" in outcome.err
    assert len(load("o.onnx").graph) == len(load(model_file).graph)


def test_the_file_shrinks_to_what_is_needed(cli, model_file):
    cli("opt", model_file, "--pipeline", "test-spoil{how=raises}", "--plugin", PLUGIN)
    outcome = cli(
        "reduce", FILE, "--pipeline", "test-spoil", "--plugin", PLUGIN, "-o", "small.onnx", "--json"
    )
    assert outcome.json["nodes"] == ["Neg"], outcome
    assert cli("reduce", "small.onnx", "--replay", "--plugin", PLUGIN).code == 1


def test_wrong_numbers_on_ones_own_inputs_replay_from_the_file_alone(cli, model_file, tmp_path):
    """At x = 0 the wrong pass is right, so the inputs decide."""
    import numpy as np

    zeros, twos = np.zeros((2, 3), np.float32), np.full((2, 3), 2, np.float32)
    np.savez(tmp_path / "twos.npz", x=twos, c=np.array(True))
    np.savez(tmp_path / "zeros.npz", x=zeros, c=np.array(True))
    check = [
        "--pipeline",
        "test-vanishing",
        "--plugin",
        tmp_path / "vanishing.py",
        "--check-each",
        "--inputs",
    ]
    (tmp_path / "vanishing.py").write_text(VANISHING)
    assert cli("opt", model_file, *check, tmp_path / "zeros.npz").code == 0
    outcome = cli("opt", model_file, *check, tmp_path / "twos.npz")
    assert_one_line_of_trouble(outcome, "input set 0", "--replay")
    replayed = cli("reduce", FILE, "--replay", "--plugin", tmp_path / "vanishing.py")
    assert replayed.code == 1 and "input set 0" in replayed.out


VANISHING = '''
from dataclasses import dataclass
import graphwright as gw

@gw.register
@dataclass(frozen=True)
class Vanishing(gw.Pass):
    """Put Neg in place of Abs."""

    name = "test-vanishing"

    def apply(self, model, context):
        rewriter = context.rewriter(model)
        for node in list(model.graph):
            if node.op_type == "Abs" and self.selects(node):
                rewriter.replace(node, rewriter.insert_before(node, "Neg", [node.inputs[0]]))
'''


def test_bisect_names_the_node_of_a_pass_without_rules(cli, model_file, tmp_path):
    (tmp_path / "vanishing.py").write_text(VANISHING)
    outcome = cli(
        "bisect", model_file, "--pipeline", "eliminate-dead,test-vanishing", "--plugin", tmp_path / "vanishing.py",
        "--json",
    )  # fmt: skip
    assert outcome.code == 1
    assert outcome.json["culprit"]["pass"] == "test-vanishing"
    assert outcome.json["culprit"]["nodes"] == ["net/Abs_0"]


def test_the_tree_of_times_has_passes_rules_and_updates(cli, model_file):
    outcome = cli("opt", model_file, "--pipeline", "simplify", "--timing", "--stats")
    assert outcome.code == 0, outcome.err
    lines = [line.split("  ")[-1].strip() for line in outcome.out.splitlines()]
    for part in ("preparation", "1 fold-constants", "rules", "verify", "total"):
        assert any(line.startswith(part) for line in lines), (part, outcome.out)
    assert "multiply-accumulates" in outcome.out and "read and written" in outcome.out


def test_an_explanation_through_the_command_line(cli, model_file):
    outcome = cli("opt", model_file, "--pipeline", "merge-slices", "--explain", "net/Abs_0")
    assert "no rule of it looks at Abs" in outcome.out
    wrong = cli("opt", model_file, "--pipeline", "merge-slices", "--explain", "net/Abs_9")
    assert_one_line_of_trouble(wrong, "did you mean 'net/Abs_0'?")
