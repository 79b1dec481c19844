from __future__ import annotations

import pytest
from graphwright.backends.executable import Timing
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
