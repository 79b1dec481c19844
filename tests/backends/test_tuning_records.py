"""Tuning records: what a line holds, what a damaged file costs, who shares what; and the search over them."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import signal
import tempfile
from pathlib import Path

import pytest
from graphwright.backends.target import resolve_target
from graphwright.backends.tuning.database import VERSION, Database, default_path, merge
from graphwright.backends.tuning.record import TRIAL, VERDICT, Key, Record, isa_of
from graphwright.backends.tuning.search import Parameter, Point, Search
from graphwright.ir.errors import CompileError
from hypothesis import given
from hypothesis import strategies as st

KEY = Key("[Conv(f32[1x8x4x4])]", "x86_64:avx+avx2+fma/256", 1)


def trial(microseconds=5.0, key=KEY, **schedule):
    return Record(key, TRIAL, schedule or {"tile": (6, 2, 8), "order": "rows"}, microseconds, 6.0)


def test_records_survive_the_file(tmp_path):
    path = tmp_path / "new" / "records.jsonl"
    database = Database.open(path)
    records = [
        trial(),
        Record(KEY, TRIAL, {"rows": 3}, None, None, "no answer within 10 s", "znver3", "a CPU"),
    ]
    verdict = Record(KEY, VERDICT, {"tile": (6, 2, 8)}, 5.0, 6.0, cpu="znver3")
    for record in [*records, verdict]:
        database.add(record)
    again = Database.open(path)
    assert again.trials(KEY) == records
    assert again.verdict(KEY) == verdict
    assert len(again) == 3
    assert json.loads(path.read_text().splitlines()[0]) == {
        "format": "graphwright-tuning",
        "version": VERSION,
    }


def test_damaged_lines_are_skipped_and_named(tmp_path):
    path = tmp_path / "records.jsonl"
    Database.open(path).add(trial())
    good = json.dumps(trial(7.0).to_json())
    broken = [
        "{",
        "[1, 2]",
        good.replace('"trial"', '"guess"'),
        good.replace("[6, 2, 8]", "[6, 2.5]"),
        good.replace("7.0", "-7.0"),
        good.replace('"threads": 1', '"threads": "1"'),
    ]
    with path.open("ab") as file:
        file.write("\n".join([*broken, "", good]).encode() + b"\n\xff\xfe\n")
    database = Database.open(path)
    assert [line.number for line in database.bad_lines] == [3, 4, 5, 6, 7, 8, 11]
    assert str(database.bad_lines[0]) == f"{path}, line 3: skipped (not JSON)"
    assert "'us' is -7.0" in str(database.bad_lines[4])
    assert [record.microseconds for record in database.trials(KEY)] == [5.0, 7.0]


def test_a_line_cut_off_by_a_kill_costs_itself_only(tmp_path):
    path = tmp_path / "records.jsonl"
    database = Database.open(path)
    database.add(trial(1.0))
    database.add(trial(2.0))
    os.truncate(path, path.stat().st_size - 9)
    Database.open(path).add(trial(3.0))
    again = Database.open(path)
    assert [record.microseconds for record in again.trials(KEY)] == [1.0, 3.0]
    assert [line.number for line in again.bad_lines] == [3]


def test_a_full_disk_ends_in_one_line_and_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "records.jsonl"
    database = Database.open(path)
    database.add(trial(1.0))

    def full(handle, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CompileError, match="No space left on device; what was measured before is kept"):
        database.add(trial(2.0))
    monkeypatch.undo()
    assert [record.microseconds for record in Database.open(path).trials(KEY)] == [1.0]


def test_a_disk_that_fills_up_within_a_line_costs_that_line(tmp_path):
    """The system itself cuts the write off, as it does on a full disk."""
    path = tmp_path / "records.jsonl"
    database = Database.open(path)
    database.add(trial(1.0))
    before, signals = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 40, before[1]))
    try:
        with pytest.raises(CompileError, match="what was measured before is kept"):
            database.add(trial(2.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, signals)
    database.add(trial(3.0))
    again = Database.open(path)
    assert [record.microseconds for record in again.trials(KEY)] == [1.0, 3.0]
    assert [bad.number for bad in again.bad_lines] == [3]


@given(st.integers(0, 600), st.lists(st.floats(1.0, 9.0), min_size=1, max_size=3))
def test_a_file_cut_off_anywhere_goes_on(length, times):
    """A kill may leave any beginning of the file: whole lines stay, new records are kept."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "records.jsonl")
        database = Database.open(path)
        for microseconds in times:
            database.add(trial(microseconds))
        data = path.read_bytes()[:length]
        path.write_bytes(data)
        whole = max(0, data.count(b"\n") - 1)
        if data and not data.endswith(b"\n") and whole < len(times):
            # A line that only lacks its end is whole.
            whole += data.splitlines()[-1] == path_lines(times)[whole + 1] and data.count(b"\n") > 0
        cut = Database.open(path)
        assert [record.microseconds for record in cut.trials(KEY)] == times[:whole]
        cut.add(trial(5.5))
        again = Database.open(path)
        assert [record.microseconds for record in again.trials(KEY)] == [*times[:whole], 5.5]
        assert len(again.bad_lines) <= 1


def path_lines(times):
    """The lines of a file with a trial per time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "records.jsonl")
        for microseconds in times:
            Database.open(path).add(trial(microseconds))
        return path.read_bytes().splitlines()


def test_two_processes_that_begin_a_file_at_once_harm_nothing(tmp_path):
    path = tmp_path / "records.jsonl"
    Database.open(path).add(trial(1.0))
    header = path.read_text().splitlines()[0]
    with path.open("a") as file:
        file.write(f"{header}\n")
    Database.open(path).add(trial(2.0))
    again = Database.open(path)
    assert [record.microseconds for record in again.trials(KEY)] == [1.0, 2.0] and not again.bad_lines


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hello\n", "is not a tuning database"),
        ('{"format": "graphwright-tuning", "version": 99}\n', "of version 99, this is version"),
    ],
)
def test_other_files_are_refused(tmp_path, text, said):
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(CompileError, match=said) as caught:
        Database.open(path)
    assert "\n" not in str(caught.value)


def test_records_are_shared_by_what_the_code_may_use_and_not_by_name():
    znver3, haswell, v4 = (resolve_target(name) for name in ("znver3", "haswell", "x86-64-v4"))
    assert isa_of(znver3) == isa_of(haswell) != isa_of(v4)
    database = Database()
    key = Key("w", isa_of(haswell), 1)
    database.add(Record(key, VERDICT, {"tile": (1, 1, 8)}, 1.0, 2.0, cpu="haswell"))
    assert database.schedules(znver3, 1)("w") == {"tile": (1, 1, 8)}
    assert database.schedules(znver3, 2)("w") is None
    assert database.schedules(v4, 1)("w") is None
    database.add(Record(key, VERDICT, {"tile": (2, 1, 8)}, 1.0, 2.0, cpu="znver3"))
    assert database.schedules(znver3, 1)("w") == {"tile": (2, 1, 8)}
    assert database.schedules(haswell, 1)("w") == {"tile": (1, 1, 8)}
    database.add(Record(key, VERDICT, {}, 2.0, 2.0, cpu="haswell"))
    assert database.schedules(haswell, 1)("w") is None


def test_trials_alone_decide_nothing():
    database = Database()
    database.add(trial(0.001))
    assert database.schedules(resolve_target("x86-64-v3"), 1)(KEY.workload) is None


def test_merging_lets_later_databases_count_more():
    first, second = Database(), Database()
    first.add(Record(KEY, VERDICT, {"rows": 1}, 1.0, 2.0))
    second.add(Record(KEY, VERDICT, {"rows": 2}, 1.0, 2.0))
    verdict = merge([first, second]).verdict(KEY)
    assert verdict is not None and verdict.schedule == {"rows": 2}


def test_where_records_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("GRAPHWRIGHT_TUNING", str(tmp_path / "mine"))
    assert default_path() == tmp_path / "mine"
    monkeypatch.delenv("GRAPHWRIGHT_TUNING")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "graphwright" / f"tuning-v{VERSION}.jsonl"


TILES = {(p, v, 8): max(p * v, 10) / (p * v) for p in range(1, 9) for v in range(1, 5)}


def cost(schedule):
    """The truth behind the search below: the analytic model is wrong about wide tiles and blind to order."""
    pixels, vectors, _ = schedule["tile"]
    return (
        100
        * TILES[schedule["tile"]]
        * (1.3 if vectors >= 3 else 1.0)
        * (0.9 if pixels == 6 else 1.0)
        * (0.8 if schedule["order"] == "weights" else 1.0)
    )


def asked(schedule):
    parameters = (
        Parameter("tile", (4, 3, 8), {tile: estimate / TILES[4, 3, 8] for tile, estimate in TILES.items()}),
        Parameter("order", "rows", {"rows": 1.0, "weights": 1.0}),
    )
    full = {"tile": (4, 3, 8), "order": "rows", **schedule}
    return Point(full, parameters, cost(full))


def test_the_search_finds_what_the_analytic_model_missed():
    search = Search()
    search.add(asked({}))
    for _ in range(5):
        for schedule in search.propose(6):
            search.add(asked(schedule))
    best = min(cost({"tile": tile, "order": "weights"}) for tile in TILES)
    assert search.best()[0].microseconds <= 1.02 * best
    assert len(search.points) < 0.6 * 2 * len(TILES)


def test_nothing_is_proposed_twice_and_the_search_ends():
    search, seen = Search(), set()
    search.add(asked({}))
    while proposals := search.propose(8):
        for schedule in proposals:
            name = json.dumps(sorted(schedule.items()))
            assert name not in seen
            seen.add(name)
            search.add(asked(schedule))
    assert not math.isinf(search.best()[0].microseconds)
    assert len(search.points) > len(TILES)
