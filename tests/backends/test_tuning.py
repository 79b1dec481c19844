"""Tuning end to end: interruptions, sharing, candidates that crash or hang, and that nothing gets slower."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import graphwright as gw
import numpy as np
import pytest
from graphwright.backends.target import host_target
from graphwright.backends.tuning import measure, step, tuner
from graphwright.backends.tuning.client import CandidateError, Worker
from graphwright.backends.tuning.database import Database
from graphwright.backends.tuning.measure import Comparison
from graphwright.backends.tuning.record import TRIAL, VERDICT
from graphwright.backends.tuning.session import tasks_of, tune_graph
from graphwright.backends.tuning.worker import Bench
from graphwright.ir.errors import CompileError
from graphwright.ir.reference import run_reference
from graphwright.ir.shapes import infer_shapes

CONV = """net (float[1,16,12,12] x, float[32,16,3,3] w, float[32] b) => (float[1,32,12,12] y)
{ c = Conv<pads = [1, 1, 1, 1]>(x, w, b) y = Relu(c) }"""
SHAPES = {"w": (32, 16, 3, 3), "b": (32,)}


class KeptWorker(Worker):
    """A worker that is not ended between tests; starting one takes seconds."""

    def __exit__(self, kind, error, trace):
        pass


@pytest.fixture(scope="module", autouse=True)
def in_a_hurry():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuner, "BATCH", 3)
        patch.setattr(step, "_SECONDS", 0.02)
        patch.setattr(measure, "_PAIRS", 6)
        worker = KeptWorker(host_target(), 1)
        patch.setattr(tuner, "Worker", lambda target, threads: worker)
        yield
        worker.close()


@pytest.fixture
def conv(build_model):
    model = build_model(CONV, **SHAPES)
    infer_shapes(model)
    return model


@pytest.fixture(scope="module")
def tuned(build_model, tmp_path_factory, in_a_hurry):
    """A convolution after four trials: the model, the file, what was told, the outcome."""
    model = build_model(CONV, **SHAPES)
    path, told = tmp_path_factory.mktemp("tuning") / "records.jsonl", []
    outcome = gw.tune(model, "host", trials=4, database=path, progress=told.append)
    return model, path, told, outcome


def test_trials_are_kept_told_and_judged(tuned):
    _, path, told, outcome = tuned
    database = Database.open(path)
    (key,) = {record.key for records in database._records.values() for record in records}
    assert len(database.trials(key)) == outcome.report.spent == outcome.report.trials == 4
    assert len({str(sorted(record.schedule.items())) for record in database.trials(key)}) == 4
    assert database.verdict(key) is not None
    assert all(record.error or record.microseconds > 0 for record in database.trials(key))
    lines = [line for line in told if line.startswith("trial ")]
    assert "trial 4 of 4: about " in lines[-1] and " s left; [Conv(" in lines[-1]
    assert "net" not in key.workload
    assert outcome.report.before_ms >= outcome.report.estimate_ms > 0


def test_records_count_as_trials(tuned):
    model, path, _, _ = tuned
    outcome = gw.tune(model, "host", trials=4, database=path)
    assert outcome.report.spent == 0
    assert outcome.report.trials == 4


def test_another_model_with_the_same_layer_shares_the_records(tuned, build_model):
    _, path, _, _ = tuned
    other = build_model(
        """other (float[1,16,12,12] in, float[32,16,3,3] weights, float[32] bias, float[1,32,12,12] z)
            => (float[1,32,12,12] out)
        { c = Conv<pads = [1, 1, 1, 1], strides = [1, 1], group = 1>(in, weights, bias)
          r = Relu(c) out = Sub(r, z) }""".replace("Sub(r, z)", "Softmax(r)").replace(
            ", float[1,32,12,12] z", ""
        ),
        seed=3,
        weights=(32, 16, 3, 3),
        bias=(32,),
    )
    infer_shapes(other)
    database = Database.open(path)
    shared = [
        task for task in tasks_of({"main": other}, host_target(), 1) if task.key.workload.startswith("[Conv")
    ]
    assert [len(database.trials(task.key)) for task in shared] == [4]


def test_compiling_by_records_needs_no_search_and_stays_right(tuned):
    model, path, _, _ = tuned
    database = Database.open(path)
    (key,) = database._records
    plain = gw.compile(model, "host")
    (untuned,) = [kernel for kernel in plain.report.kernels if kernel["workload"]]
    other = "F(2,3)" if "F(2,3)" not in untuned["note"] else "F(4,3)"
    database.add(
        replace(
            database.trials(key)[0],
            kind=VERDICT,
            schedule={"tiles": 0, "algorithm": other},
            cpu=host_target().cpu,
        )
    )
    executable = gw.compile(model, "host", database=path)
    (kernel,) = [kernel for kernel in executable.report.kernels if kernel["workload"]]
    assert kernel["tuned"] and f"winograd {other}" in kernel["note"] and not untuned["tuned"]
    assert (
        f"1 of {len(executable.report.kernels)} kernels are built by records of {path}"
        in executable.report.notes
    )
    x = np.random.default_rng(0).standard_normal((1, 16, 12, 12), np.float32)
    np.testing.assert_allclose(executable(x), run_reference(model, {"x": x})["y"], atol=1e-4)


def test_damaged_lines_are_reported_by_compile(tuned, tmp_path):
    model, path, _, _ = tuned
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_bytes(path.read_bytes() + b"{}}\n")
    number = len(damaged.read_bytes().splitlines())
    notes = gw.compile(model, "host", database=damaged).report.notes
    assert f"{damaged}, line {number}: skipped (not JSON)" in notes


def test_an_interruption_keeps_every_finished_record(conv, tmp_path):
    path = tmp_path / "records.jsonl"

    def interrupt(line):
        if line.startswith("trial ") and int(line.split()[1]) >= 3:
            told.append(int(line.split()[1]))
            raise KeyboardInterrupt

    told = []
    with pytest.raises(KeyboardInterrupt):
        gw.tune(conv, "host", trials=9, database=path, progress=interrupt)
    records = [record for each in Database.open(path)._records.values() for record in each]
    assert [record.kind for record in records].count(TRIAL) == told[0]
    outcome = gw.tune(conv, "host", trials=told[0] + 1, database=path)
    assert outcome.report.spent == 1
    assert outcome.report.trials == told[0] + 1


def test_the_analytic_choice_stays_where_nothing_beats_it_in_pairs(conv, tmp_path, monkeypatch):
    monkeypatch.setattr(tuner, "compare", lambda worker, challenger, other: Comparison(0.99, 1.0))
    database = Database.open(tmp_path / "records.jsonl")
    report = tune_graph({"main": conv}, host_target(), database, 3)
    (kernel,) = report.kernels
    assert kernel.schedule == {} and kernel.best == kernel.analytic
    (key,) = database._records
    assert database.verdict(key).schedule == {}
    assert database.schedules(host_target(), 1)(key.workload) is None
    assert report.estimate_ms == report.before_ms


def test_a_faster_kernel_that_does_not_pay_in_the_model_is_left(conv, tmp_path, monkeypatch):
    from graphwright.backends.timing import Timing

    monkeypatch.setattr(
        tuner, "race", lambda _, names: ({n: 1e-6 / (1 + (n != "analytic")) for n in names}, {})
    )
    monkeypatch.setattr(tuner, "compare", lambda worker, challenger, other: Comparison(0.5, 1.0))
    timings = {"analytic": Timing.of([1.0] * 16, 1), "tuned": Timing.of([1.5] * 16, 1)}
    monkeypatch.setattr(step, "in_turns", lambda *args: (timings, 1.5))
    executable = gw.compile(conv, "host", trials=3, database=tmp_path / "records.jsonl")
    assert not any(kernel["tuned"] for kernel in executable.report.kernels)
    assert "the analytic choices are kept" in str(executable.report.tuning)


class _Call:
    """Calls a function in whichever process unpickles it."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


def test_a_crash_and_a_hang_cost_one_candidate(conv):
    (task,) = tasks_of({"main": conv}, host_target(), 1)
    with Worker(host_target(), 1) as worker:
        worker.open(task.spec)
        worker.build("good", {})
        with pytest.raises(CandidateError, match="the process died .signal 6"):
            worker.time(_Call(os.abort), 1, 60.0)
        assert min(worker.time("good", 3, 60.0)) > 0
        with pytest.raises(CandidateError, match="no answer within 1 s"):
            worker.time(_Call(time.sleep, 60), 1, 1.0)
        assert min(worker.time("good", 3, 60.0)) > 0
    assert worker._process is None


def test_failing_candidates_are_recorded_and_not_tried_again(conv, tmp_path, monkeypatch):
    build = Worker.build

    def fragile(self, name, schedule):
        if schedule.get("algorithm") == "direct":
            raise CandidateError("the process died (signal 11)")
        return build(self, name, schedule)

    monkeypatch.setattr(Worker, "build", fragile)
    database = Database.open(tmp_path / "records.jsonl")
    tune_graph({"main": conv}, host_target(), database, 3)
    (key,) = database._records
    failed = [record for record in database.trials(key) if record.error]
    assert failed and all(record.microseconds is None for record in failed)
    assert {record.schedule["algorithm"] for record in failed} == {"direct"}
    assert len({str(record.schedule) for record in database.trials(key)}) == 3


def test_a_machine_that_stands_still_costs_a_kernel_its_turn(conv, tmp_path, monkeypatch):
    """The analytic choice of a kernel that was measured before does not build in time, again and again."""
    build, built = KeptWorker.build, []

    def stalls(self, name, schedule):
        if name == "analytic":
            built.append(name)
            if len(built) > 1:
                raise CandidateError("no answer within 60 s")
        return build(self, name, schedule)

    monkeypatch.setattr(KeptWorker, "build", stalls)
    report = tune_graph({"main": conv}, host_target(), Database.open(tmp_path / "records.jsonl"), 6)
    assert report.spent == 0 and len(built) > 2


def test_wrong_numbers_are_a_failure(conv):
    (task,) = tasks_of({"main": conv}, host_target(), 1)
    bench = Bench(task.spec, host_target(), 1)
    assert bench.build("analytic", {})["error"] == ""
    assert bench.build("direct", {"algorithm": "direct"})["error"] == ""
    bench._expected = bench._expected * 1.01
    assert "its numbers differ by 9.9e-03 of the largest" in bench.build("other", {"rows": 2})["error"]
    with pytest.raises(KeyError):
        bench.time("other", 1)


def test_a_race_drops_who_falls_behind():
    class Track:
        def __init__(self):
            self.visits = {"quick": 0, "slow": 0, "broken": 0}

        def time(self, name, runs, seconds):
            self.visits[name] += 1
            if name == "broken":
                raise CandidateError("no answer")
            return [1e-3 if name == "quick" else 5e-3] * runs

    track = Track()
    best, failed = measure.race(track, ["quick", "slow", "broken"])
    assert best == {"quick": 1e-3, "slow": 5e-3} and failed == {"broken": "no answer"}
    assert track.visits["slow"] == 2 < track.visits["quick"]
    assert track.visits["broken"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "cuda"}, "tuning is for CPUs"),
        ({"target": "raspberry-pi-5"}, "cannot be measured here: it needs aarch64"),
        ({"backend": "onnxruntime"}, "tuning is for kernels of the tvm backend"),
    ],
)
def test_what_cannot_be_tuned_is_said_before_any_work(conv, options, said):
    with pytest.raises(CompileError, match=said) as caught:
        gw.compile(conv, **{"target": "host", "trials": 4, **options})
    assert "\n" not in str(caught.value)
