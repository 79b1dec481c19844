"""`graphwright bisect` and `graphwright reduce`, on a plugin whose pass is wrong."""

from __future__ import annotations

import pytest

from .conftest import assert_one_line_of_trouble

PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar

import graphwright as gw


class ReluToAbs(gw.Rule):
    op_types = ("Relu",)

    def match_and_rewrite(self, node, rewriter):
        rewriter.replace(node, rewriter.insert_before(node, "Abs", [node.inputs[0]]))
        return True


@gw.register
@dataclass(frozen=True)
class Wrong(gw.Pass):
    \"\"\"Replace Relu by Abs.\"\"\"

    name: ClassVar[str] = "test-cli-wrong"

    def apply(self, model, context):
        context.rewrite(model, ReluToAbs())
"""


@pytest.fixture
def plugin(tmp_path):
    file = tmp_path / "wrong_pass.py"
    file.write_text(PLUGIN)
    return file


def test_bisect_names_pass_rule_and_node(cli, tiny_file, plugin):
    outcome = cli("bisect", tiny_file, "--pipeline", "simplify,test-cli-wrong", "--plugin", plugin, "--json")
    assert outcome.code == 1
    culprit = outcome.json["culprit"]
    assert culprit["pass"] == "test-cli-wrong"
    assert culprit["rewrite"]["rule"] == "ReluToAbs"
    assert culprit["rewrite"]["op_type"] == "Relu"
    assert culprit["comparison"]["max_rel"] > 1e-4


def test_bisect_of_a_good_pipeline_succeeds(cli, tiny_file):
    outcome = cli("bisect", tiny_file, "--pipeline", "simplify,fold-batch-norm")
    assert (outcome.code, outcome.out.strip()) == (0, "the pipeline keeps max_rel<=0.0001")


def test_reduce_writes_a_file_that_replays(cli, tiny_file, plugin, tmp_path):
    repro = tmp_path / "repro.onnx"
    pipeline = "simplify,test-cli-wrong,fold-batch-norm"
    outcome = cli("reduce", tiny_file, "--pipeline", pipeline, "--plugin", plugin, "-o", repro, "--json")
    assert outcome.code == 0
    assert (outcome.json["pipeline"], outcome.json["nodes"]) == ("test-cli-wrong", ["Relu"])
    assert repro.stat().st_size < 2000
    replayed = cli("reduce", repro, "--replay", "--plugin", plugin)
    assert replayed.code == 1
    assert replayed.out.startswith("it still fails: output ")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["bisect", "MODEL", "--pipeline", "simplify", "--bound", "small"], "'small' is not a bound"),
        (["bisect", "MODEL"], "--pipeline"),
        (["reduce", "MODEL", "--pipeline", "simplify"], "-o REPRO.onnx"),
        (["reduce", "MODEL", "--pipeline", "simplify", "-o", "OUT"], "does not fail on this model"),
        (["reduce", "MODEL", "--replay"], "is not a reproducer"),
    ],
)
def test_mistakes_end_in_one_line(cli, tiny_file, tmp_path, arguments, word):
    places = {"MODEL": tiny_file, "OUT": tmp_path / "out.onnx"}
    outcome = cli(*(places.get(argument, argument) for argument in arguments))
    assert_one_line_of_trouble(outcome, word)
    assert not (tmp_path / "out.onnx").exists()
