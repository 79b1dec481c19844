"""The benchmark of runtimes: real processes on a small model, what is kept, and what the page says."""

import json
import sys
import time

import numpy as np
import pytest
from graphwright.backends.artifact import MANIFEST
from graphwright.backends.timing import Timing
from graphwright.ir.errors import ToolError
from graphwright.tools.processes import run_step
from graphwright.tools.runtimes import bench
from graphwright.tools.runtimes.bench import Settings, installed_rivals, run
from graphwright.tools.runtimes.cells import ratio_text
from graphwright.tools.runtimes.contenders import ORT, OURS, artifact_of
from graphwright.tools.runtimes.goals import geometric_mean, goals, tuned_goals
from graphwright.tools.runtimes.models import (
    AS_IS,
    MODELS,
    PRUNED,
    TUNED,
    VECTORS,
    chosen_models,
    chosen_variants,
    rows_of,
)
from graphwright.tools.runtimes.process import Server, cores_for, quiet_machine
from graphwright.tools.runtimes.records import Record, latest, read_records, write_record
from graphwright.tools.runtimes.report import (
    MARKER,
    costliest_kernels,
    means,
    page,
    worst_kernels,
    write_report,
)
from graphwright.tools.runtimes.summary import summary_table
from graphwright.tools.runtimes.tuning import check_database, tune_and_compile

MACHINE = {"cpu": "A CPU", "cores": 2, "apache-tvm": "0.27", "onnxruntime": "1.31"}


def record(model="resnet18", variant=AS_IS, ours=10.0, theirs=12.0, commit="abc", **more):
    made = Record(commit, model, variant, "2026-01-02", MACHINE, **more)
    for threads in (1, 2):
        for name in (OURS, ORT):
            made.add_contender(name, threads, {"max_relative_error": 1e-6, "choice": "original.onnx"}, "")
        times = {OURS: Timing.of([ours / threads], threads), ORT: Timing.of([theirs / threads], threads)}
        for state in ("warm", "cold"):
            made.add_timings(state, threads, times)
    return made


def call(share, of_peak, shapes=("float32[1,8]", "float32[1,8]"), kind="conv"):
    return {
        "kind": kind, "note": "", "shapes": list(shapes), "median_ms": share, "share": share, "gflops": 1.0,
        "bound": "compute", "share_of_peak": of_peak,
    }  # fmt: skip


def test_ratios_are_rival_over_ours_and_slow_rows_are_said_in_words():
    assert record().ratio(ORT, 2, "cold") == pytest.approx(1.2)
    assert ratio_text(1.2) == "1.20" and ratio_text(0.95) == "0.95"
    assert ratio_text(0.85) == "**0.85 SLOWER**" and ratio_text(None) == "-"
    assert geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)


def test_the_page_prints_losses_like_wins(tmp_path):
    rows = [
        record(),
        record("vgg16", theirs=5.0),
        Record("abc", "gru", PRUNED, "", MACHINE, failure="it broke"),
    ]
    write = tmp_path / "page.md"
    write.write_text(f"kept\n<!-- {MARKER} -->\nremoved\n<!-- /{MARKER} -->\nkept too\n")
    write_report(rows, "abc", write)
    text = write.read_text()
    assert text.startswith("kept\n") and text.endswith("kept too\n") and "removed" not in text
    assert "**0.50 SLOWER**" in text
    assert "ONNX Runtime, one thread, warm: VGG-16 0.50" in text
    assert "GRU, 2x512, 100 steps, pruned: it broke" in text
    assert f"3 of {2 * len(MODELS)} rows" in text and "Not measured: ResNet-18, pruned; " in text
    data = json.loads(write.with_suffix(".json").read_text())
    assert [row["model"] for row in data] == ["resnet18", "vgg16", "gru"]
    # The mean over the two that ran: sqrt(1.2 * 0.5), one won, one lost.
    row = next(line for line in means(rows).splitlines() if "ONNX Runtime | 1 | warm" in line)
    assert [cell.strip() for cell in row.strip("|").split("|")][3:] == [
        "0.77", "-", "0.77", "0.77", "1", "1", "1", "0.50 (VGG-16)",
    ]  # fmt: skip


def test_goals_that_are_missed_are_said_to_be_missed():
    start = {"1": {OURS: {"seconds": 0.2, "peak_bytes": 9}, ORT: {"seconds": 0.1, "peak_bytes": 9}}}
    compiled = {"seconds": 31.0, "cpu_seconds": 10.0}
    rows = [record(theirs=20.0, startup=start), record("resnet50", theirs=8.0, compiled=compiled)]
    found = {goal.what: goal for goal in goals(rows, [1])}
    assert {what: goal.met for what, goal in found.items()} == {
        "geometric mean at least 1.15 times ONNX Runtime's speed, one thread": True,
        "no row below 0.9 of it, one thread": False,
        "resnet18 at least 1.5 times its speed, one thread": True,
        "vgg16 at least 1.5 times its speed, one thread": None,
        "resnet50 compiled within 30 s": False,
        "relative error at most 0.001": True,
        "peak memory at most ONNX Runtime's, one thread": True,
        "start to first result at most ONNX Runtime's, one thread": False,
    }
    assert found["no row below 0.9 of it, one thread"].cells()[1:] == ["1 of 2 rows", "**NO**"]
    assert {goal.met for goal in goals([], [1])} == {None}


def test_the_page_of_nothing_and_rows_of_another_commit():
    assert "Nothing is measured yet" in page([], "abc")
    assert "Measured at other commits: ResNet-18 (old)" in page([record(commit="old")], "abc")


def test_worst_kernels_leave_out_what_does_not_matter_and_count_equal_calls_once():
    slow, dear, tiny = call(0.05, 0.1), call(0.6, 0.5, ("float32[9]",)), call(0.001, 0.01, ("float32[2]",))
    row = record(profiles={"1": {"longest": [dear, slow, dict(slow), tiny]}})
    assert [(found["share_of_peak"], found["times"]) for _, found in worst_kernels([row], 1)] == [
        (0.1, 2),
        (0.5, 1),
    ]
    assert [found["share_of_peak"] for _, found in costliest_kernels([row], 1)] == [0.5, 0.1]


def test_records_are_read_again_and_the_current_commit_counts(tmp_path):
    old, new = record(commit="old", ours=1.0), record(commit="new", ours=2.0)
    for each in (new, old):
        write_record(tmp_path, each)
        time.sleep(0.01)
    assert {each.commit for each in read_records(tmp_path)} == {"old", "new"}
    assert read_records(tmp_path, "new") == [new]
    assert latest(read_records(tmp_path), "new")[new.key] == new
    assert latest(read_records(tmp_path), "other")[new.key] == old
    assert new.missing([1, 2], [ORT]) is None and new.missing([1], [ORT, "openvino"]) == ["openvino"]
    assert new.missing([4], [ORT]) == [ORT] and record(failure="no").missing([4], [ORT]) is None
    (tmp_path / "new" / "strange.json").write_text("{}")
    with pytest.raises(ToolError, match=r"strange.json' is no record"):
        read_records(tmp_path)


def test_a_rival_that_is_measured_later_is_compared_with_what_ran_beside_it():
    first, later = record(ours=10.0, theirs=12.0), Record("abc", "resnet18", AS_IS, "", MACHINE)
    for name in (OURS, "torch"):
        later.add_contender(name, 1, {}, "")
    later.add_timings("warm", 1, {OURS: Timing.of([20.0], 1), "torch": Timing.of([30.0], 1)})
    first.merge(later)
    assert first.ratio("torch", 1, "warm") == pytest.approx(1.5)
    assert first.ratio(ORT, 1, "warm") == pytest.approx(1.2)
    assert first.timing(OURS, 1, "warm")["median_ms"] == 10.0
    assert first.missing([1], [ORT, "torch"]) is None


def test_unsteady_rows_are_listed_and_do_not_spoil_the_mean_by_fast_runs():
    row = record()
    times = {OURS: Timing.of([10.0] * 9, 1), ORT: Timing.of([11.0] * 4 + [40.0] * 5, 1)}
    row.add_timings("warm", 1, times)
    assert row.ratio(ORT, 1, "warm") == pytest.approx(4.0)
    assert row.quiet_ratio(ORT, 1, "warm") == pytest.approx(1.1)
    assert row.unsteady(1, "warm") == [ORT] and row.unsteady(1, "cold") == []
    assert "- one thread, warm, ResNet-18: ONNX Runtime" in page([row], "abc")


def test_the_speed_of_wrong_results_does_not_count():
    row = record()
    row.contenders[ORT]["1"]["max_relative_error"] = 0.7
    assert row.ratio(ORT, 1, "warm") is None and row.ratio(ORT, 2, "warm") is not None
    assert "- ResNet-18, ONNX Runtime: its outputs are wrong by 0.7" in page([row], "abc")


def test_unknown_names_are_refused_in_a_line():
    assert chosen_models("gru,resnet18") == ["resnet18", "gru"]
    assert chosen_variants(None) == [AS_IS, PRUNED]
    for wrong in (
        lambda: chosen_models("nothing"),
        lambda: chosen_models(""),
        lambda: chosen_variants("half"),
    ):
        with pytest.raises(ToolError, match="there are: "):
            wrong()
    with pytest.raises(ToolError, match="no rival 'tflite'"):
        installed_rivals("tflite")
    with pytest.raises(ToolError, match="as many cores"):
        cores_for(10_000)
    assert installed_rivals("") == ()


def test_a_contender_that_cannot_load_says_why(tmp_path):
    np.savez(tmp_path / "feeds.npz", x=np.zeros(1, np.float32))
    server = Server([OURS, str(tmp_path), "resnet18", AS_IS], 1)
    try:
        server.wait_until_ready(120)
    finally:
        server.close()
    assert "artifact" in server.failure


def test_the_machine_is_held_while_the_clock_runs_and_given_back(tmp_path):
    note = tmp_path / "note"
    code = f"import subprocess, sys; subprocess.run(sys.argv[1:]); open({str(note)!r}, 'w').write('over')"
    with quiet_machine(f'{sys.executable} -c "{code}"', 60, ["echo", "and", "then"]) as lines:
        assert not note.exists() and not lines
    assert lines == ["and then"]
    assert note.read_text() == "over"
    with pytest.raises(ToolError, match="did not run"), quiet_machine("true", 60):
        raise AssertionError("the clock must not run")
    with quiet_machine(None, 60, ["sh", "-c", "exit 3"]) as lines:
        pass
    assert lines == []


def tuned(model, ours=10.0, theirs=16.0, **more):
    by_threads = {"1": {"tuned_kernels": 5, "kernels": 9, "times_untuned": 1.25, "is_tuned": True}}
    tuning = {"1": {"seconds": 600.0, "trials": 64, "ended": "by itself"}}
    compiled = {"seconds": 3.0, "cpu_seconds": 3.0, "by_threads": by_threads, "tuning": tuning}
    return record(model, TUNED, ours, theirs, compiled=compiled, **more)


def test_rows_without_tile_registers_stand_apart():
    rows = [record(compiled={"seconds": 3.0, "cpu_seconds": 3.0, "products": "6 in 25 %, 3"})]
    alone = page(rows, "abc")
    assert "| 6 in 25 %, 3 |" in alone and "## Without products on tile registers" not in alone
    text = page([*rows, record("resnet18", VECTORS, 20.0, 16.0)], "abc")
    goals_of = text[text.index("## Goals") : text.index("## Geometric means")]
    assert goals_of in alone, "they take no part in goals"
    assert "ResNet-18, vectors" in text[text.index("## Without products on tile registers") :]
    assert chosen_variants("vectors") == [VECTORS] and VECTORS not in chosen_variants(None)


def test_tuned_rows_have_goals_of_their_own_and_stay_out_of_the_others():
    rows = [
        record(),
        tuned("resnet18", theirs=19.0),
        tuned("resnet50", theirs=14.0),
        tuned("bert_base", theirs=9.0),
    ]
    found = {goal.what: goal for goal in tuned_goals(rows[1:], [1])}
    mean = found["geometric mean at least 1.5 times ONNX Runtime's speed, one thread"]
    # Cube root of 1.9 * 1.4 * 0.9; below the goal whatever the other two models do is not known.
    assert mean.found == "1.34 of 3 models" and mean.met is False
    assert found["no model slower than ONNX Runtime, one thread"].cells()[1:] == ["1 slower", "**NO**"]
    assert found["resnet18 at least 2.0 times ONNX Runtime's speed, one thread"].met is False
    assert found["resnet50 at least 1.4 times ONNX Runtime's speed, one thread"].met is True
    assert found["times OpenVINO's speed, one thread"].met is None
    assert found["resnet50 tuned within 60 minutes"].met is True
    fast = {goal.what: goal.met for goal in tuned_goals([tuned("resnet18", theirs=40.0)], [1])}
    assert fast["geometric mean at least 1.5 times ONNX Runtime's speed, one thread"] is None, (
        "four are missing"
    )
    text = page(rows, "abc")
    assert "| ResNet-18, tuned | 1 | 10.0, ended by itself | 64 | 5 of 9 | 1.25 |" in text
    assert "1 of 36 rows" in text and "| no row below 0.9 of it, one thread | 0 of 1 rows | yes |" in text
    assert rows_of(["gru", "resnet18"], [AS_IS, TUNED]) == [
        ("gru", AS_IS),
        ("resnet18", AS_IS),
        ("resnet18", TUNED),
    ]
    with pytest.raises(ToolError, match="none of these models is measured tuned"):
        rows_of(["gru"], [TUNED])


def test_the_summary_shows_every_model_in_a_line_losses_in_bold():
    rows = [
        record(theirs=20.0),
        record(variant=PRUNED, theirs=8.0),
        record("gru", commit="old"),
        tuned("resnet18"),
    ]
    lines = summary_table(rows, "abc").splitlines()
    assert lines[2].startswith("| model | ours ms, 1 / 2 threads | ONNX Runtime / ours, as-is |")
    assert "| ResNet-18 | 10.00 / 5.00 | 2.00 / 2.00 | **0.80** / **0.80** |" in lines
    # The root of 2.0 * 1.2.
    assert "| **geometric mean** |  | 1.55 / 1.55 | 0.80 / 0.80 |" in lines
    assert "ONNX Runtime is ahead in 2 of 6; least 0.80 (ResNet-18, pruned, 1 thread)" in "\n".join(lines)
    assert "| ResNet-18 | 10.00 / 5.00 | 10.00 / 5.00 | 1.60 / 1.60 |" in lines
    assert any("Not measured: ResNet-50; " in line for line in lines)
    assert "older commits: GRU, 2x512, 100 steps" in "\n".join(lines)
    assert summary_table([], "abc") == "Nothing is measured yet.\n"


def test_what_failed_says_why_in_its_cell_and_can_be_tried_again():
    row = record()
    for threads in (1, 2):
        row.add_contender("torch", threads, {}, "not ready | after 240 s")
    assert "| failed: not ready / after 240 s | - |" in page([row], "abc")
    assert row.missing([1, 2], [ORT, "torch"]) is None
    assert row.missing([1, 2], [ORT, "torch"], failures=True) == ["torch"]
    assert "failed" not in summary_table([row], "abc"), "a rival without any time has no column"


def test_a_library_for_a_number_of_threads_goes_before_the_one_for_all(tmp_path):
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact-2").mkdir()
    assert [artifact_of(tmp_path, threads).name for threads in (1, 2)] == ["artifact", "artifact-2"]


def test_nothing_is_called_tuned_without_records(tmp_path):
    with pytest.raises(ToolError, match="--tune-minutes M makes one"):
        check_database(tmp_path / "none.jsonl", None, None)
    check_database(tmp_path / "none.jsonl", 8, None)
    check_database(tmp_path, None, None)


def test_no_row_begins_when_the_minutes_are_over(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(
        bench, "measure_model", lambda name, variant, *_: made.append(name) or record(name, variant)
    )
    given = settings(tmp_path, (1, 2))
    rows = [("resnet18", AS_IS), ("gru", AS_IS)]
    run(rows, given, tmp_path / "records", minutes=0.0)
    assert made == [] and "goes on with resnet18, as-is" in capsys.readouterr().out
    written = []
    run(rows, given, tmp_path / "records", minutes=5.0, report=lambda: written.append(1))
    run(rows, given, tmp_path / "records", minutes=5.0)
    assert made == ["resnet18", "gru"] and len(written) == 2
    write_record(tmp_path / "records", record("gru", failure="broken"))
    run(rows, given, tmp_path / "records")
    assert len(made) == 2, "a failure counts as an answer"
    run(rows, given, tmp_path / "records", again=True)
    assert made[2:] == ["gru"] and not read_records(tmp_path / "records", "abc")[-1].failure


def settings(folder, threads, **more):
    return Settings("abc", (ORT,), threads, folder / "tuning.jsonl", folder / "cache", **more)


@pytest.mark.slow
def test_the_whole_on_a_small_model(tmp_path):
    given = settings(tmp_path, (1,), seconds=0.1, timeout=500, keep=tmp_path / "kept")
    rows = [("gru", AS_IS), ("gru", PRUNED)]
    run(rows, given, tmp_path / "records")
    plain, pruned = read_records(tmp_path / "records")
    assert not plain.failure and not pruned.failure
    assert pruned.facts["parameters"] < 0.7 * plain.facts["parameters"]
    for each in (plain, pruned):
        assert each.contenders[OURS]["1"]["max_relative_error"] < 1e-4
        assert each.ratio(ORT, 1, "warm") and each.ratio(ORT, 1, "cold")
        assert each.startup["1"][OURS]["seconds"] > 0 and each.startup["1"][ORT]["peak_bytes"] > 2**20
        assert each.profiles["1"]["longest"] and each.compiled["seconds"] > 0
    assert "GRU" in page([plain, pruned], "abc")
    start = time.perf_counter()
    run(rows, given, tmp_path / "records")
    assert time.perf_counter() - start < 30, "what has a record is not measured again"


@pytest.mark.slow
def test_a_tuned_library_for_each_number_of_threads(tmp_path):
    run_step("runtimes.prepare", ["export", "gru", AS_IS, str(tmp_path)], timeout=300)
    database = tmp_path / "tuning.jsonl"
    found = tune_and_compile(tmp_path, database, (1, 2), trials=2, minutes=None, timeout=500)
    assert found["tuning"]["1"]["trials"] >= 2 and found["tuning"]["2"]["ended"] == "by itself"
    assert database.exists() and set(found["by_threads"]) == {"1", "2"}
    assert all((tmp_path / name / MANIFEST).exists() for name in ("artifact", "artifact-2"))
    # What the clock ends is no failure, and what was measured before counts.
    short = tune_and_compile(tmp_path, database, (1,), trials=None, minutes=0.02, timeout=500)
    assert short["tuning"]["1"]["ended"] == "by the clock" and short["kernels"] == found["kernels"]
