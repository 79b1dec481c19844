"""Records that come with the package: used where the user has none, never instead of his own."""

from __future__ import annotations

import json

import graphwright as gw
import numpy as np
import pytest
from graphwright.backends.target import host_target, resolve_target
from graphwright.backends.tuning import session
from graphwright.backends.tuning.database import VERSION, Database
from graphwright.backends.tuning.record import VERDICT, Key, Record, isa_of
from graphwright.backends.tuning.shipped_records import FOLDER, read_records, shipped_records
from graphwright.ir.errors import CompileError
from graphwright.ir.reference import run_reference
from graphwright.tools import tune_shipped

CONV = """net (float[1,16,12,12] x, float[32,16,3,3] w, float[32] b) => (float[1,32,12,12] y)
{ c = Conv<pads = [1, 1, 1, 1]>(x, w, b) y = Relu(c) }"""
KEY = Key("[Conv(f32[1x8x4x4])]", "x86_64:avx+avx2+fma/256", 1)


def verdict(key=KEY, cpu="", **schedule):
    return Record(key, VERDICT, schedule, 5.0, 6.0, cpu=cpu)


def test_what_is_shipped_is_sound():
    records = shipped_records().records()
    assert records and not shipped_records().bad_lines
    assert {record.kind for record in records} == {VERDICT}
    assert isa_of(resolve_target("znver3")) in {record.key.isa for record in records}
    for record in records:
        assert record.schedule and record.machine and record.cpu
        assert record.microseconds <= (1 - tune_shipped.LEAST_GAIN) * record.analytic
    for path in FOLDER.glob("*.jsonl"):
        header = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
        assert header["version"] == VERSION and header["made by"].startswith("python -m graphwright.tools.")


def test_own_verdicts_come_first_whatever_they_say():
    own, shipped = Database(), Database()
    own.fallback = shipped
    shipped.add(verdict(rows=4))
    assert own.verdict(KEY).schedule == {"rows": 4} and not own.is_own(KEY)
    own.add(verdict(rows=2))
    assert own.verdict(KEY).schedule == {"rows": 2} and own.is_own(KEY)
    own.add(verdict())
    assert own.schedules(host_target(), 1)(KEY.workload) is None
    shipped.add(verdict(cpu="znver3", rows=8))
    assert own.verdict(KEY, "znver3").schedule == {}


def test_damaged_files_are_passed_over_and_named(tmp_path):
    header = json.dumps({"format": "graphwright-tuning", "version": VERSION})
    good = json.dumps(verdict(rows=4).to_json())
    (tmp_path / "a.jsonl").write_text(f"{header}\n{good}\nhalf a li\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"format": "graphwright-tuning", "version": VERSION + 1}))
    (tmp_path / "c.jsonl").write_text("something else\n")
    found = read_records(tmp_path)
    assert [record.schedule for record in found.records()] == [{"rows": 4}]
    lines = [str(line) for line in found.bad_lines]
    assert [name for name in ("a.jsonl, line 3", "b.jsonl", "c.jsonl") if any(name in line for line in lines)] == [
        "a.jsonl, line 3", "b.jsonl", "c.jsonl",
    ]  # fmt: skip


@pytest.fixture
def conv(build_model):
    return build_model(CONV, w=(32, 16, 3, 3), b=(32,))


@pytest.fixture
def shipping(conv, monkeypatch):
    """A package that ships another algorithm for the convolution; gives its name."""
    (untuned,) = [
        each for each in gw.compile(conv, "host", database=False).report.kernels if each["workload"]
    ]
    algorithm = "F(2,3)" if "F(2,3)" not in untuned["note"] else "F(4,3)"
    shipped = Database()
    key = Key(untuned["workload"], isa_of(host_target()), 1)
    shipped.add(verdict(key, algorithm=algorithm, tiles=0))
    monkeypatch.setattr(session, "shipped_records", lambda: shipped)
    return key, algorithm


def kernel_of(executable):
    (kernel,) = [each for each in executable.report.kernels if each["workload"]]
    return kernel


def test_shipped_records_are_used_unless_told_otherwise(conv, shipping):
    _, algorithm = shipping
    executable = gw.compile(conv, "host")
    assert kernel_of(executable)["tuned"] and algorithm in kernel_of(executable)["note"]
    assert any("records of the package (--no-records" in note for note in executable.report.notes)
    x = np.random.default_rng(0).standard_normal((1, 16, 12, 12)).astype(np.float32)
    np.testing.assert_allclose(executable(x), run_reference(conv, {"x": x})["y"], atol=1e-4)
    plain = gw.compile(conv, "host", database=False)
    assert not kernel_of(plain)["tuned"] and not any("records" in note for note in plain.report.notes)
    other = gw.compile(conv, "host", threads=2)
    assert not kernel_of(other)["tuned"]


def test_a_database_of_the_user_comes_first(conv, shipping, tmp_path):
    key, _ = shipping
    Database.open(tmp_path / "mine.jsonl").add(verdict(key))
    executable = gw.compile(conv, "host", database=tmp_path / "mine.jsonl")
    assert not kernel_of(executable)["tuned"]


def test_trials_need_a_place(conv):
    with pytest.raises(CompileError, match="needs a database"):
        gw.compile(conv, "host", trials=2, database=False)


def test_the_newest_record_of_a_workload_is_written_in_order(tmp_path):
    database = Database()
    for record in (verdict(rows=1), verdict(Key("[A]", KEY.isa, 1), rows=2), verdict(rows=3)):
        database.add(record)
    path = tmp_path / "x86_64-avx2.jsonl"
    tune_shipped.write(path, tune_shipped.newest(database), resolve_target("znver3"))
    again = Database.open(path)
    assert [record.schedule["rows"] for record in again.records()] == [2, 3] and not again.bad_lines


def test_records_of_other_models_stay_and_those_that_no_longer_gain_go(tmp_path, monkeypatch):
    keys = [Key(f"[{name}]", KEY.isa, 1 + number) for number, name in enumerate("ABC")]
    found = {"resnet18": {keys[0]: verdict(keys[0], rows=5), keys[1]: None}, "bert_base": {}}
    asked = []

    def tune_model(name, target, threads, trials, work):
        asked.append((name, threads, trials))
        return found[name]

    monkeypatch.setattr(tune_shipped, "tune_model", tune_model)
    path = tmp_path / "records.jsonl"
    old = [verdict(key, rows=number) for number, key in enumerate(keys)]
    tune_shipped.write(path, old, resolve_target("znver3"))
    options = ["--models", "resnet18,bert_base", "--threads", "2", "--trials", "9"]
    paths = ["--work", str(tmp_path / "work.jsonl"), "-o", str(path)]
    assert tune_shipped.main(["--target", "x86-64-v3", *options, *paths]) == 0
    assert asked == [("resnet18", 2, 9), ("bert_base", 2, 9)]
    again = Database.open(path)
    assert {record.key: record.schedule["rows"] for record in again.records()} == {keys[0]: 5, keys[2]: 2}
    assert json.loads(path.read_text().splitlines()[0])["threads"] == [1, 3]


@pytest.mark.parametrize("ratio", [0.9, 1.1])
def test_records_are_shipped_only_where_the_model_gains(conv, shipping, monkeypatch, ratio):
    key, algorithm = shipping
    monkeypatch.setattr(session, "shipped_records", Database)
    built = []

    def in_turns(analytic, better, feeds, threads):
        built.extend(kernel_of(each)["note"] for each in (analytic, better))
        return {}, ratio

    monkeypatch.setattr(tune_shipped, "in_turns", in_turns)
    assert tune_shipped.pays(conv, [verdict(key, algorithm=algorithm, tiles=0)], host_target(), 1) == (
        ratio < 1
    )
    assert algorithm not in built[0] and algorithm in built[1]


def test_bad_requests_end_in_one_line(tmp_path, capsys):
    for target, said in (("cuda", "tuning is for CPUs"), ("arm", "cannot be measured here")):
        assert tune_shipped.main(["--target", target, "--work", str(tmp_path / "work.jsonl")]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert tune_shipped.main(["--target", "host", "--models", "resnet17", "--work", str(tmp_path / "w")]) == 2
    assert "resnet17" in capsys.readouterr().err
