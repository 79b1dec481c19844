"""Tuning records in a file of JSON lines that is only ever appended to.

The first line says what the file is and its version; every further line is one record. A line is written in
one piece and flushed to disk before the next trial begins, so that a kill or a full disk costs the trial in
flight at most. Lines that cannot be read are skipped and reported by number. Several processes may append.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...ir.errors import CompileError
from ..target import Target
from .record import TRIAL, VERDICT, Key, Record, Value, isa_of

VERSION = 1
"""Of the file and of the meaning of parameters; files of another version are refused."""
FORMAT = "graphwright-tuning"
_HEADER = json.dumps({"format": FORMAT, "version": VERSION}) + "\n"


@dataclass(frozen=True)
class BadLine:
    """A line that was passed over."""

    path: str
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.number}: skipped ({self.reason})"


@dataclass
class Database:
    """Records by key, in memory and, with a path, on disk.

    Attributes:
        path: the file; None for records that only live in this process.
        bad_lines: lines that were passed over when the file was read.
        fallback: records that count where this has no verdict, such as those that come with the package.
    """

    path: Path | None = None
    bad_lines: list[BadLine] = field(default_factory=list)
    fallback: Database | None = None
    _records: dict[Key, list[Record]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path | None) -> Database:
        """The database in a file, which need not exist yet.

        Raises:
            CompileError: the file cannot be read, or is something else.
        """
        database = cls(None if path is None else Path(path))
        if database.path is not None and database.path.exists():
            database._read(database.path)
        return database

    def add(self, record: Record) -> None:
        """Keep a record; with a path it is on disk when this returns.

        Raises:
            CompileError: it cannot be written.
        """
        if self.path is not None:
            try:
                self._append(self.path, record)
            except OSError as error:
                raise CompileError(
                    f"cannot write {self.path}: {error.strerror or error}; what was measured before is kept"
                ) from error
        self._records.setdefault(record.key, []).append(record)

    def __len__(self) -> int:
        return sum(len(records) for records in self._records.values())

    def records(self) -> list[Record]:
        """All records; those of one workload in the order they were made."""
        return [record for records in self._records.values() for record in records]

    def trials(self, key: Key) -> list[Record]:
        """Trials of a workload, in the order they were made."""
        return [record for record in self._records.get(key, []) if record.kind == TRIAL]

    def verdict(self, key: Key, cpu: str = "") -> Record | None:
        """The last verdict on a workload; one of the same CPU comes before those of others.

        Own verdicts come before those of the fallback, also where they say that the analytic choice is best;
        those for tile registers before those of CPUs without.
        """
        found = self._last(key, cpu)
        if found is None and self.fallback is not None:
            found = self.fallback._last(key, cpu)
        if found is None and key.without_tiles is not None:
            found = self.verdict(key.without_tiles, cpu)
        return found

    def is_own(self, key: Key) -> bool:
        """Whether the verdict is one of its own, rather than of the fallback."""
        if self._last(key) is not None:
            return True
        if key.without_tiles is None or (self.fallback is not None and self.fallback._last(key) is not None):
            return False
        return self.is_own(key.without_tiles)

    def _last(self, key: Key, cpu: str = "") -> Record | None:
        verdicts = [record for record in self._records.get(key, []) if record.kind == VERDICT]
        own = [record for record in verdicts if record.cpu == cpu]
        return next(reversed(own or verdicts), None)

    def schedules(self, target: Target, threads: int) -> Schedules:
        """Looks up what a target's kernels were found to run best with."""
        return Schedules(self, isa_of(target), threads, target.cpu)

    def _read(self, path: Path) -> None:
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise CompileError(f"cannot read the tuning database {path}: {error.strerror}") from error
        if len(lines) == 1 and lines[0] and _HEADER.encode().startswith(lines[0]):
            self.bad_lines.append(BadLine(str(path), 1, "cut off"))
            return
        header = _parsed(lines[0])
        if path.stat().st_size and (not isinstance(header, dict) or header.get("format") != FORMAT):
            raise CompileError(f"{path} is not a tuning database (its first line should say so)")
        if isinstance(header, dict) and header.get("version") != VERSION:
            raise CompileError(
                f"{path} is a tuning database of version {header.get('version')}, this is version {VERSION}; "
                "give another file"
            )
        for number, line in enumerate(lines[1:], start=2):
            if line.strip():
                self._take(path, number, line)

    def _take(self, path: Path, number: int, line: bytes) -> None:
        data = _parsed(line)
        if data is None:
            self.bad_lines.append(BadLine(str(path), number, "not JSON"))
            return
        if isinstance(data, dict) and data.get("format") == FORMAT:
            return  # Two processes began the file at once.
        try:
            record = Record.from_json(data)
        except ValueError as error:
            self.bad_lines.append(BadLine(str(path), number, str(error)))
            return
        self._records.setdefault(record.key, []).append(record)

    @staticmethod
    def _append(path: Path, record: Record) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            text = json.dumps(record.to_json(), separators=(",", ":")) + "\n"
            end = os.fstat(handle).st_size
            if end < len(_HEADER):
                # Nothing is there yet, or a part of the first line.
                os.ftruncate(handle, 0)
                text = _HEADER + text
            elif os.pread(handle, 1, end - 1) != b"\n":
                # The last write was cut off: its line stays damaged, this one starts on its own.
                text = "\n" + text
            _write_all(handle, text.encode())
            os.fsync(handle)
        finally:
            os.close(handle)


@dataclass(frozen=True)
class Schedules:
    """The schedules of verdicts for one instruction set and number of threads, by workload."""

    database: Database
    isa: str
    threads: int
    cpu: str = ""

    def __call__(self, workload: str) -> dict[str, Value] | None:
        """The schedule to use, None where there is no record or the analytic choice is the best known."""
        verdict = self.database.verdict(Key(workload, self.isa, self.threads), self.cpu)
        return dict(verdict.schedule) if verdict is not None and verdict.schedule else None


def merge(databases: Iterable[Database]) -> Database:
    """The records of several databases in memory; later ones count more."""
    merged = Database()
    for database in databases:
        merged.bad_lines += database.bad_lines
        for key, records in database._records.items():
            merged._records.setdefault(key, []).extend(records)
    return merged


def default_path() -> Path:
    """Where records are kept if nothing else is said: `GRAPHWRIGHT_TUNING`, else in the user's cache."""
    told = os.environ.get("GRAPHWRIGHT_TUNING")
    if told:
        return Path(told)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "graphwright" / f"tuning-v{VERSION}.jsonl"


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]
