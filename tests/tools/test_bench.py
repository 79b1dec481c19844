from __future__ import annotations

import pytest
from graphwright.backends.timing import Timing
from graphwright.tools.bench import OURS, RIVAL, ZooRow, zoo_markdown

from .conftest import assert_one_line_of_trouble


def test_one_model_of_the_zoo(cli):
    outcome = cli(
        "bench", "--zoo", "--only", "^mobilenet_v2_small$", "--threads", "1,2", "--seconds", "0.1", "--json"
    )
    assert outcome.code == 0, outcome.err
    (row,) = outcome.json["models"]
    assert row["failure"] is None and row["max_relative_error"] <= 1e-4
    seen = {(timing["contender"], timing["threads"]) for timing in row["timings"]}
    assert seen == {(name, count) for name in (OURS, RIVAL) for count in (1, 2)}
    assert outcome.json["machine"]["cpu"]


def test_the_table_shows_ratios_and_failures():
    timings = {(OURS, 1): Timing.of([2.0], 1), (RIVAL, 1): Timing.of([4.0], 1)}
    rows = [ZooRow("good", 1.5, 2e-6, timings), ZooRow("bad", failure="no such thing")]
    text = zoo_markdown(rows, [1])
    assert "| good | 1.5 | 2.0e-06 | 2.00 (2.00-2.00) | 4.00 (4.00-4.00) | 0.50 |" in text
    assert "| bad | - | - | - | - | - |" in text
    assert "bad failed: no such thing" in text


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--zoo", "--only", "("), "regular expression"),
        (("--zoo", "--only", "resnet19"), "resnet19"),
        (("model.onnx", "--zoo"), "not both"),
        (("graphwright.tools.zoo:resnet18_small", "--target", "arm"), "cannot be timed here"),
    ],
)
def test_bad_requests_are_one_line(cli, arguments, word):
    assert_one_line_of_trouble(cli("bench", *arguments), word)


def test_the_profile_of_an_artifact(cli, tiny_file, tmp_path):
    folder, page = tmp_path / "out", tmp_path / "profile.md"
    assert cli("compile", tiny_file, "-o", folder, "--no-check", "--no-measure").code == 0
    outcome = cli("bench", folder, "--profile", "--threads", "1", "--repeats", "3", "-o", page, "--json")
    assert outcome.code == 0, outcome.err
    profile = outcome.json["profile"]
    assert profile["total"]["samples"] == 3 and profile["peaks"]["gflops"] > 1
    assert {"conv", "gemm"} <= {call["kind"] for call in profile["calls"]}
    assert all(call["share_of_peak"] > 0 and call["median_ms"] > 0 for call in profile["calls"])
    text = page.read_text()
    for title in ("## Kernel calls by time", "## Totals by kind", "worst by share of peak", "measured peak"):
        assert title in text
    (conv,) = (call for call in profile["calls"] if call["kind"] == "conv")
    assert conv["note"] in text and ", ".join(conv["nodes"]) in text
    shown = cli("bench", folder, "--profile", "--repeats", "1")
    assert shown.code == 0 and "kernel calls by time" in shown.out and conv["note"] in shown.out


def test_what_cannot_be_profiled_is_one_line(cli, tiny_file, tmp_path):
    folder = tmp_path / "out"
    assert cli("compile", tiny_file, "-o", folder, "--backend", "onnxruntime", "--no-measure").code == 0
    assert_one_line_of_trouble(cli("bench", folder, "--profile"), "onnxruntime", "tvm backend")
    assert_one_line_of_trouble(cli("bench", "--zoo", "--profile"), "--profile")
    assert_one_line_of_trouble(cli("bench", "--simplify", "--profile"), "--profile")
    assert_one_line_of_trouble(cli("bench", folder, "--profile", "--against", "onnxruntime"), "--against")
    outcome = cli("bench", folder, "--threads", "1", "--repeats", "2")
    assert outcome.code == 0 and "compiled for onnxruntime itself" in outcome.out


def test_auto_says_what_it_chose(cli, tiny_file, tiny_input, tmp_path):
    folder = tmp_path / "out"
    outcome = cli("compile", tiny_file, "-o", folder, "--backend", "auto", "--no-measure")
    assert outcome.code == 0, outcome.err
    assert "backend auto: " in outcome.out and "is the faster one here" in outcome.out
    assert cli("run", folder, "--input", tiny_input).code == 0
