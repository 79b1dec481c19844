from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.load import load
from graphwright.ir.reference import run_reference

from .conftest import assert_one_line_of_trouble

PIPELINE = "simplify,fold-batch-norm"


def op_types(path) -> list[str]:
    return [node.op_type for node in load(path).graph]


def test_opt_writes_an_equal_and_smaller_model(cli, tiny_file, tiny_input, tmp_path):
    outcome = cli("opt", tiny_file, "--pipeline", PIPELINE, "-o", tmp_path / "out.onnx")
    assert outcome.code == 0, outcome.err
    assert op_types(tmp_path / "out.onnx") == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    feeds = dict(np.load(tiny_input))
    before, after = (run_reference(load(path), feeds) for path in (tiny_file, tmp_path / "out.onnx"))
    assert compare(before, after).max_rel <= 1e-5
    assert "fold-batch-norm" in outcome.out and "wrote" in outcome.out


def test_opt_json_tells_what_each_pass_did(cli, tiny_file):
    report = cli("opt", tiny_file, "--pipeline", PIPELINE, "--json").json
    assert [entry["name"] for entry in report["passes"]][-1] == "fold-batch-norm"
    assert report["passes"][-1]["changed"] and report["passes"][-1]["lossless"]
    steps = report["table"]["steps"]
    assert [step["name"] for step in steps] == ["original", *(entry["text"] for entry in report["passes"])]
    assert steps[0]["nodes"] == 7 and steps[-1]["nodes"] == 5
    # 3x3x3x8 multiply-accumulates at 8x8 places, then 8x4 of the Gemm.
    assert steps[0]["macs"] == 3 * 3 * 3 * 8 * 64 + 32


def test_own_inputs_are_compared(cli, tiny_file, tiny_input):
    report = cli(
        "opt", tiny_file, "--pipeline", PIPELINE, "--inputs", tiny_input, "--check-each", "--json"
    ).json
    assert report["table"]["steps"][-1]["comparison"]["max_rel"] <= 1e-5
    assert report["passes"][-1]["check"]["input_sets"] == 1
    assert report["passes"][-1]["check"]["passed"]


def test_print_changed_shows_only_changes(cli, tiny_file):
    out = cli("opt", tiny_file, "--pipeline", "eliminate-identity,eliminate-dead", "--print-changed").out
    assert "// changed by eliminate-identity" in out and "Identity" in out
    assert "// eliminate-dead changed nothing" in out


def test_print_after_all_shows_the_graph_every_time(cli, tiny_file):
    out = cli("opt", tiny_file, "--pipeline", "eliminate-identity,fold-batch-norm", "--print-after-all").out
    first, _, second = out.partition("// after fold-batch-norm")
    assert "BatchNormalization" in first and "BatchNormalization" not in second.split("step")[0]


def test_timing_and_statistics(cli, tiny_file):
    out = cli("opt", tiny_file, "--pipeline", PIPELINE, "--timing", "--stats").out
    assert "share" in out
    assert "fold-batch-norm: " in out


def test_dump_dir_holds_a_model_per_pass(cli, tiny_file, tmp_path):
    cli("opt", tiny_file, "--pipeline", "eliminate-identity,fold-batch-norm", "--dump-dir", tmp_path / "d")
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [
        "01-eliminate-identity.onnx",
        "02-fold-batch-norm.onnx",
    ]
    assert "BatchNormalization" in op_types(tmp_path / "d" / "01-eliminate-identity.onnx")
    assert "BatchNormalization" not in op_types(tmp_path / "d" / "02-fold-batch-norm.onnx")


def test_what_was_left_alone_has_its_reason(cli, tmp_path):
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]>'
        "m (float[1,2,4,4] x, float[2] s, float[2] b, float[2] m, float[2] v) => (float[1,2,4,4] y)"
        "{ y = BatchNormalization (x, s, b, m, v) }"
    )
    ir.save(model, tmp_path / "m.onnx")
    out = cli("opt", tmp_path / "m.onnx", "--pipeline", "fold-batch-norm", "--stats").out
    assert "left alone: 1 BatchNormalization" in out


def test_inputs_of_the_wrong_shape_are_one_line(cli, tiny_file, tmp_path):
    np.savez(tmp_path / "in.npz", x=np.zeros((1, 3, 9, 8), np.float32))
    arguments = ("--pipeline", PIPELINE, "--inputs", tmp_path / "in.npz")
    assert_one_line_of_trouble(cli("opt", tiny_file, *arguments), "in.npz", "'x'", "[1, 3, 8, 8]")


def test_symbolic_dimensions_are_bound_by_name(cli, tmp_path):
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]> m (float[batch, 4] x) => (float[batch, 4] y) { y = Relu (x) }'
    )
    ir.save(model, tmp_path / "m.onnx")
    facts = cli("inspect", tmp_path / "m.onnx", "--dim", "batch=3", "--json").json
    assert facts["inputs"][0]["type"] == "float32[3,4]"
    assert_one_line_of_trouble(cli("inspect", tmp_path / "m.onnx", "--dim", "N=3"), "N", "batch")


def test_inspect_accounts_for_the_model(cli, tiny_file):
    outcome = cli("inspect", tiny_file, "--json")
    assert outcome.json["operators"]["Conv"] == 1
    assert outcome.json["opset"] == 23
    assert "Conv" in cli("inspect", tiny_file).out
    assert "GlobalAveragePool" in cli("inspect", tiny_file, "--text").out


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_diff_has_the_exit_codes_of_diff(cli, tiny_file, tmp_path, form):
    cli("opt", tiny_file, "--pipeline", "fold-batch-norm", "-o", tmp_path / "b.onnx")
    assert cli("diff", tiny_file, tiny_file, *form).code == 0
    outcome = cli("diff", tiny_file, tmp_path / "b.onnx", *form)
    assert outcome.code == 1
    assert "BatchNormalization" in outcome.out
    if form:
        assert json.loads(outcome.out)
    assert_one_line_of_trouble(cli("diff", tiny_file, tmp_path / "none.onnx"), "none.onnx")


def test_passes_lists_and_describes(cli):
    listed = cli("passes")
    assert listed.code == 0 and "fold-batch-norm" in listed.out and "simplify = " in listed.out
    # Other tests of this process may have registered passes of their own.
    listed_json = [entry for entry in cli("passes", "--json").json["passes"] if "test" not in entry["name"]]
    as_json = {entry["name"]: entry for entry in listed_json}
    assert as_json["prune-channels"]["lossless"] is False
    assert as_json["fold-constants"]["lossless"] is True
    assert all(entry["purpose"] for entry in as_json.values())
    options = {option["name"]: option for option in as_json["prune-channels"]["options"]}
    assert options["ratio"]["type"] == "float" and options["ratio"]["default"] == 0.5
    assert all(option["help"] for entry in as_json.values() for option in entry["options"])
    described = cli("passes", "prune-channels").out
    assert "ratio" in described and "lossy" in described


def test_targets_lists_three_kinds(cli):
    known = cli("targets", "--json").json
    assert {"x86", "arm", "cuda"} <= set(known)
    assert known["host"]["runs_here"] is True
    assert "x86" in cli("targets").out
