"""Timing candidates of one workload side by side, so that a machine that slows down slows all of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .client import CandidateError, Worker

_ROUNDS = 6
_VISIT_SECONDS = 0.004
"""Time of the calls of one candidate in one round."""
_MOST_RUNS = 12
_OUT_OF_RACE = 1.4
"""Candidates that are this many times slower than the best after two rounds are timed no further."""
_TIMEOUT_SECONDS = 10.0

_PAIRS = 20
_LEAST_GAIN = 0.02
"""What a schedule must save over the analytic one to be taken."""
_LEAST_WINS = 0.75


def race(worker: Worker, names: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
    """Least seconds of one call by candidate, taken in turns; and the errors of those that failed."""
    best: dict[str, float] = {}
    failed: dict[str, str] = {}
    for round_ in range(_ROUNDS):
        running = [name for name in names if name not in failed]
        if round_ >= 2 and best:
            limit = _OUT_OF_RACE * min(best.values())
            running = [name for name in running if best[name] <= limit]
        for name in running if round_ % 2 == 0 else running[::-1]:
            try:
                samples = worker.time(name, _runs(best.get(name)), _timeout(best.get(name)))
            except CandidateError as error:
                failed[name] = str(error)
                best.pop(name, None)
                continue
            best[name] = min([*samples, best.get(name, float("inf"))])
    return best, failed


@dataclass(frozen=True)
class Comparison:
    """Two candidates in paired rounds.

    Attributes:
        ratio: median over the rounds of the challenger's least time over the other's.
        wins: share of rounds in which the challenger was faster.
    """

    ratio: float
    wins: float

    @property
    def is_faster(self) -> bool:
        """Whether the challenger is faster beyond doubt and by something that matters."""
        return self.ratio <= 1 - _LEAST_GAIN and self.wins >= _LEAST_WINS


def compare(worker: Worker, challenger: str, other: str) -> Comparison:
    """Fresh measurements of two candidates in turns.

    Raises:
        CandidateError: one of them fails.
    """
    first = {name: min(worker.time(name, 2, _TIMEOUT_SECONDS)) for name in (challenger, other)}
    ratios = []
    for pair in range(_PAIRS):
        order = (challenger, other) if pair % 2 == 0 else (other, challenger)
        least = {name: min(worker.time(name, _runs(first[name]), _timeout(first[name]))) for name in order}
        ratios.append(least[challenger] / least[other])
    return Comparison(statistics.median(ratios), sum(ratio < 1 for ratio in ratios) / len(ratios))


def _runs(seconds: float | None) -> int:
    if seconds is None:
        return 2
    return max(1, min(_MOST_RUNS, int(_VISIT_SECONDS / max(seconds, 1e-7))))


def _timeout(seconds: float | None) -> float:
    return _TIMEOUT_SECONDS + 100 * (seconds or 0.0)
