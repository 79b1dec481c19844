"""The benchmark of int8: its table and goals, and records that are not measured again."""

import dataclasses

import pytest
import typer
from graphwright.ir.errors import ToolError
from graphwright.tools import int8_bench
from graphwright.tools.int8_bench import place_of, run
from graphwright.tools.int8_measure import (
    FLOAT_TVM,
    INT4,
    INT8,
    MODELS,
    ORT,
    ORT_FLOAT,
    Row,
    Settings,
    known_models,
    measure_model,
)
from graphwright.tools.int8_report import goals, markdown, summary


def row(name, milliseconds, sizes):
    times = zip((INT8, FLOAT_TVM, ORT, ORT_FLOAT), milliseconds, strict=True)
    timings = {contender: {"1": (each, each, each)} for contender, each in times}
    return Row(
        name,
        40.0,
        dict(zip((INT8, INT4, FLOAT_TVM), sizes, strict=True)),
        (3, 0),
        timings,
        "abc",
        "2026-01-02",
    )


ROWS = [row("a", (2, 8, 3, 9), (26, 15, 100)), row("b", (1, 2, 6, 3), (56, 30, 200))]
FAILED = Row("c", failure="not done after 600 s")


def test_the_table_shows_ratios_shares_and_the_mean():
    text = markdown(ROWS, [1])
    first = next(line for line in text.splitlines() if line.startswith("| a "))
    assert "| 4.00 | 1.50 | 26.0% | 15.0% | 40.0 dB | 3 integer, 0 float |" in first
    # The mean of 1.5 and 6 is 3, geometrically.
    assert "1 thread: 3.00" in text and "commit abc" in text and "2026-01-02" in text
    assert "zero tuning trials" in text and "32 tuning trials" in markdown(ROWS, [1], 32)
    assert f"Not measured: {', '.join(MODELS)}." in text
    assert "- c: not done after 600 s" in markdown([*ROWS, FAILED], [1])


def test_goals_that_are_missed_are_said_to_be_missed():
    found = {goal.what: goal for goal in goals(ROWS, [1])}
    assert [goal.met for goal in found.values()] == [True, True, False, True]
    assert found["int8 artifact at most 27% of float's"].found == "1 of 2 models; worst 28.0% (b)"
    assert found["int8 faster than float, 1 thread"].found == "2 of 2 models; worst 2.00 (b)"
    with_failure = [goal.met for goal in goals([*ROWS, FAILED], [1])]
    assert with_failure == [False, None, False, False], "what failed is no success"
    slow = [row("a", (4, 3, 5, 9), (1, 1, 100))]
    assert [goal.met for goal in goals(slow, [1])][:2] == [False, True]
    assert [goal.met for goal in goals(slow, [1], 8)][:2] == [False, False], "tuned, the goal is 1.4"
    assert {goal.met for goal in goals([], [1])} == {None}


def test_the_summary_is_a_line_per_model_and_says_what_is_missing():
    text = summary([*ROWS, FAILED, row("d", (4, 3, 5, 9), (1, 1, 100))], [1])
    assert "| a | 2.00 | 4.00 | 1.50 | 26.0% | 15.0% |" in text
    assert "| d | 4.00 | **0.75** | 1.25 |" in text
    # Cube roots of 4 * 2 * 0.75 and of 1.5 * 6 * 1.25.
    assert "| **geometric mean** |  | 1.82 | 2.24 |" in text
    assert "Not measured: c, resnet18," in text


def test_every_model_of_the_benchmark_can_be_built():
    assert set(MODELS) <= set(known_models())


def test_records_are_kept_by_commit_and_settings_and_failures_are_tried_again(tmp_path, monkeypatch):
    asked = []

    def step(module, arguments, **more):
        asked.append(arguments[0])
        if arguments[0] == "b" and len(asked) == 2:
            raise int8_bench.StepFailed("killed by signal 9")
        return dataclasses.asdict(row(arguments[0], (1, 2, 3, 4), (1, 1, 4)))

    monkeypatch.setattr(int8_bench, "run_step", step)
    settings = Settings((1,))
    folder = place_of(tmp_path, "abc", settings)
    seen = []
    rows = run(["a", "b"], settings, folder, limit=5, report=lambda rows: seen.append(len(rows)))
    assert asked == ["a", "b"] and seen == [1, 2] and rows[1].failure == "killed by signal 9"
    assert rows[0].commit == "abc" and rows[0].day
    run(["a", "b"], settings, folder, limit=5)
    assert asked == ["a", "b"], "a failure counts as an answer"
    assert not run(["a", "b"], settings, folder, limit=5, again=True)[1].failure and asked[2:] == ["b"]
    other = {place_of(tmp_path, "abc", Settings((1,), trials=8)), place_of(tmp_path, "new", settings)}
    assert folder not in other and len(other) == 2
    (folder / "a.json").write_text("{}")
    with pytest.raises(ToolError, match=r"a.json' is no record"):
        run(["a"], settings, folder, limit=5)


@pytest.mark.parametrize(
    ("wrong", "said"), [({"only": "resnet19"}, "resnet19"), ({"target": "arm"}, "cannot be timed")]
)
def test_what_cannot_be_measured_ends_in_one_line(tmp_path, capsys, wrong, said):
    given = {
        "only": "resnet18", "threads": "1", "seconds": 1.0, "target": "x86", "table": "x86-vnni", "trials": 0,
        "limit": 5.0, "records": tmp_path, "commit": "abc", "again": False, "output": None, "short": None,
    }  # fmt: skip
    with pytest.raises(typer.Exit) as caught:
        int8_bench.main(**{**given, **wrong})
    assert caught.value.exit_code == 2
    errors = capsys.readouterr().err
    assert said in errors and errors.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_small_model_is_measured_and_its_row_survives_json():
    found = measure_model("resnet18_small", Settings((1,), seconds=0.1))
    assert found.integer[0] > 0 and found.share(INT8) < 0.6 and found.sqnr > 15
    assert set(found.timings) == {INT8, FLOAT_TVM, ORT, ORT_FLOAT}
    again = Row.from_json(dataclasses.asdict(found))
    assert again.ratio(ORT, 1) == found.ratio(ORT, 1)
