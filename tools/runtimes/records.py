"""Records of the runtime benchmark: one JSON file per commit, model and variant."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...backends.timing import Timing
from ...ir.errors import ToolError
from .contenders import OURS, RIVALS, WRONG

STATES = ("warm", "cold")
UNSTEADY = 2.0
"""Ratio of the 90th percentile to the 10th from which on a median says little."""


@dataclass
class Record:
    """What was measured about one model and variant.

    Attributes:
        commit: of the sources.
        model: key of `MODELS`.
        variant: "as-is" or "pruned".
        day: year-month-day.
        machine: what it was measured on.
        facts: parameters and multiply-adds, and what pruning left of them.
        compiled: seconds, sizes and check of our library.
        contenders: by name and threads: how each loaded, its error, why it failed, and its timings by state.
        startup: by threads and contender: seconds to the first result, and peak memory.
        profiles: by threads: our share of the machine's peak.
        notes: what could not be measured besides.
        failure: why there is nothing more.
    """

    commit: str
    model: str
    variant: str
    day: str
    machine: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    compiled: dict[str, Any] = field(default_factory=dict)
    contenders: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    startup: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failure: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Model and variant."""
        return self.model, self.variant

    def add_contender(self, name: str, threads: int, ready: Mapping[str, Any], failure: str) -> None:
        """How a contender loaded."""
        self.contenders.setdefault(name, {})[str(threads)] = {**ready, "failure": failure, "timings": {}}

    def add_timings(self, state: str, threads: int, timings: Mapping[str, Timing]) -> None:
        """Latencies of contenders that took turns, with warm or cold caches; ours is one of them."""
        for name, timing in timings.items():
            kept = timing.to_json()
            if name != OURS:
                kept |= {"ours_ms": timings[OURS].median_ms, "ours_p10_ms": timings[OURS].p10}
            self.contenders[name][str(threads)]["timings"][state] = kept

    def choice(self, name: str, threads: int) -> str:
        """The file that a contender was fastest with; empty where it had none to choose."""
        return str(self.contenders.get(name, {}).get(str(threads), {}).get("choice", ""))

    def trouble(self, name: str, threads: int) -> str:
        """Why a contender was not measured; empty where it was, or was not asked to."""
        found = self.contenders.get(name, {}).get(str(threads), {})
        apart = found.get("max_relative_error", 0.0)
        return f"its outputs are wrong by {apart:.1g}" if apart > WRONG else str(found.get("failure", ""))

    def timing(self, name: str, threads: int, state: str) -> dict[str, float] | None:
        """Median and spread of a contender that computes the model, or None."""
        if self.trouble(name, threads):
            return None
        found = self.contenders.get(name, {}).get(str(threads), {}).get("timings", {})
        return found.get(state)

    def ratio(self, rival: str, threads: int, state: str) -> float | None:
        """The rival's median over ours, measured in turns with it: above 1 we are faster."""
        theirs = self.timing(rival, threads, state)
        return theirs["median_ms"] / theirs["ours_ms"] if theirs else None

    def quiet_ratio(self, rival: str, threads: int, state: str) -> float | None:
        """The same of the 10th percentiles, which other programs on the machine touch least."""
        theirs = self.timing(rival, threads, state)
        return theirs["p10_ms"] / theirs["ours_p10_ms"] if theirs else None

    def unsteady(self, threads: int, state: str) -> list[str]:
        """Contenders whose slow runs take more than `UNSTEADY` times as long as their fast ones."""
        timings = {name: self.timing(name, threads, state) for name in self.contenders}
        return [name for name, each in timings.items() if each and each["p90_ms"] > UNSTEADY * each["p10_ms"]]

    def missing(
        self, threads: Sequence[int], rivals: Sequence[str], *, failures: bool = False
    ) -> list[str] | None:
        """The rivals that are still to be measured; None where nothing is.

        A failure counts as an answer, unless those are to be tried again.
        """
        if self.failure:
            return None
        wanted = {str(count) for count in threads}

        def is_answered(name: str) -> bool:
            known = self.contenders.get(name, {})
            failed = failures and any(each["failure"] for each in known.values())
            return wanted <= known.keys() and not failed

        if not is_answered(OURS):
            return list(rivals)
        return [name for name in rivals if not is_answered(name)] or None

    def merge(self, later: Record) -> None:
        """Add what a later run measured; of what both did, rivals are taken from it and the rest is kept."""
        self.machine |= later.machine
        self.notes += [note for note in later.notes if note not in self.notes]
        for name, counts in later.contenders.items():
            mine = self.contenders.setdefault(name, {})
            self.contenders[name] = counts | mine if name == OURS else mine | counts
        self.startup = later.startup | self.startup
        self.profiles = later.profiles | self.profiles

    def line(self) -> str:
        """What was found, in a line."""
        if self.failure:
            return f"{self.model}, {self.variant}: {self.failure}"
        parts = []
        for threads in self.contenders.get(OURS, {}):
            ours = self.timing(OURS, int(threads), "warm")
            ratios = [(rival, self.ratio(rival, int(threads), "warm")) for rival in RIVALS]
            times = ", ".join(f"{rival} {ratio:.2f}x" for rival, ratio in ratios if ratio is not None)
            parts.append(f"{threads} thread(s) {ours['median_ms']:.2f} ms ({times})" if ours else threads)
        return f"{self.model}, {self.variant}: {'; '.join(parts)}"

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """What `to_json` made.

        Raises:
            ToolError: a field is missing or unknown.
        """
        if set(data) != {each.name for each in dataclasses.fields(cls)}:
            raise ToolError("a record of the runtime benchmark was written by another version; remove it")
        return cls(**data)


def write_record(folder: Path, record: Record) -> None:
    """Put a record into its file, whole or not at all."""
    place = folder / record.commit
    place.mkdir(parents=True, exist_ok=True)
    final = place / f"{record.model}.{record.variant}.json"
    temporary = final.with_suffix(".tmp")
    temporary.write_text(json.dumps(record.to_json(), indent=1), encoding="utf-8")
    temporary.replace(final)


def read_records(folder: Path, commit: str | None = None) -> list[Record]:
    """All records, or those of one commit, the latest last.

    Raises:
        ToolError: a file holds no record.
    """
    paths = folder.glob(f"{commit or '*'}/*.json")
    records = []
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        try:
            records.append(Record.from_json(json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError, AttributeError, ToolError) as error:
            raise ToolError(f"'{path}' is no record of this benchmark: {error}") from error
    return records


def latest(records: Sequence[Record], commit: str) -> dict[tuple[str, str], Record]:
    """One record per model and variant: that of `commit`, or the last that was written."""
    found: dict[tuple[str, str], Record] = {}
    for record in records:
        known = found.get(record.key)
        if known is None or known.commit != commit or record.commit == commit:
            found[record.key] = record
    return found
