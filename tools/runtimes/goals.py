"""What compiling with zero trials is meant to reach, beside what was measured, shortfalls included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .contenders import OPENVINO, ORT, OURS, TITLES
from .models import TUNED_MODELS
from .records import Record

MEAN, LEAST, FAST = 1.15, 0.9, 1.5
"""Times ONNX Runtime's speed: of all rows together, of every row, of the models in `FAST_MODELS`."""
FAST_MODELS = ("resnet18", "vgg16")
COMPILE_MODEL, COMPILE_SECONDS = "resnet50", 30.0
ERROR = 1e-3
TUNED_MEAN, TUNED_LEAST, TUNING_MINUTES = 1.5, {"resnet18": 2.0, "resnet50": 1.4}, 60.0
"""Of the tuned models."""


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes:
        what: in words.
        found: the figure or figures.
        met: None where nothing was measured.
    """

    what: str
    found: str
    met: bool | None

    def cells(self) -> list[str]:
        """A row of the table."""
        return [self.what, self.found, "-" if self.met is None else "yes" if self.met else "**NO**"]


def goals(rows: Sequence[Record], threads: Sequence[int]) -> list[Goal]:
    """All goals; latencies with warm caches."""
    found = []
    for count in threads:
        found += _latency_goals(rows, count)
    found += [_compile_goal(rows), _error_goal(rows)]
    for count in threads:
        found += [
            _at_most_theirs(rows, count, "peak_bytes", "peak memory at most ONNX Runtime's"),
            _at_most_theirs(rows, count, "seconds", "start to first result at most ONNX Runtime's"),
        ]
    return found


def tuned_goals(rows: Sequence[Record], threads: Sequence[int]) -> list[Goal]:
    """Goals of the tuned models; latencies with warm caches."""
    found = []
    for count in threads:
        where = _where(count)
        for rival in (ORT, OPENVINO):
            ratios = {row.model: ratio for row in rows if (ratio := row.ratio(rival, count, "warm"))}
            what = f"times {TITLES[rival]}'s speed, {where}"
            if not ratios:
                found.append(Goal(what, "-", None))
                continue
            mean, slow = (
                geometric_mean(list(ratios.values())),
                [ratio for ratio in ratios.values() if ratio < 1],
            )
            text = f"{mean:.2f} of {len(ratios)} models"
            met = mean >= TUNED_MEAN if len(ratios) == len(TUNED_MODELS) or mean < TUNED_MEAN else None
            found.append(Goal(f"geometric mean at least {TUNED_MEAN} {what}", text, met))
            found.append(
                Goal(f"no model slower than {TITLES[rival]}, {where}", f"{len(slow)} slower", not slow)
            )
        for model, least in TUNED_LEAST.items():
            row = next((row for row in rows if row.model == model), None)
            ratio = row.ratio(ORT, count, "warm") if row is not None else None
            text, met = ("-", None) if ratio is None else (f"{ratio:.2f}", ratio >= least)
            found.append(Goal(f"{model} at least {least} times {TITLES[ORT]}'s speed, {where}", text, met))
    return [*found, _tuning_goal(rows)]


def _tuning_goal(rows: Sequence[Record]) -> Goal:
    what = f"{COMPILE_MODEL} tuned within {TUNING_MINUTES:.0f} minutes"
    spent = [row.compiled.get("tuning", {}) for row in rows if row.model == COMPILE_MODEL]
    if not spent or not spent[0]:
        return Goal(what, "-", None)
    taken = max(each["seconds"] for each in spent[0].values()) / 60
    return Goal(what, f"{taken:.0f} minutes for a number of threads", taken <= TUNING_MINUTES)


def _where(threads: int) -> str:
    return "one thread" if threads == 1 else f"{threads} threads"


def geometric_mean(values: Sequence[float]) -> float:
    """The mean of ratios; not a number where there are none."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def _latency_goals(rows: Sequence[Record], threads: int) -> list[Goal]:
    ratios = {row.key: ratio for row in rows if (ratio := row.ratio(ORT, threads, "warm")) is not None}
    where = _where(threads)
    if not ratios:
        return [Goal(f"times ONNX Runtime's speed, {where}", "-", None)]
    mean, slow = geometric_mean(list(ratios.values())), sum(ratio < LEAST for ratio in ratios.values())
    found = [
        Goal(
            f"geometric mean at least {MEAN} times ONNX Runtime's speed, {where}", f"{mean:.2f}", mean >= MEAN
        ),
        Goal(f"no row below {LEAST} of it, {where}", f"{slow} of {len(ratios)} rows", slow == 0),
    ]
    for model in FAST_MODELS:
        ratio = ratios.get((model, "as-is"))
        text = "-" if ratio is None else f"{ratio:.2f}"
        met = None if ratio is None else ratio >= FAST
        found.append(Goal(f"{model} at least {FAST} times its speed, {where}", text, met))
    return found


def _compile_goal(rows: Sequence[Record]) -> Goal:
    what = f"{COMPILE_MODEL} compiled within {COMPILE_SECONDS:.0f} s"
    row = next((row for row in rows if row.key == (COMPILE_MODEL, "as-is") and row.compiled), None)
    if row is None:
        return Goal(what, "-", None)
    taken, used = row.compiled["seconds"], row.compiled["cpu_seconds"]
    return Goal(what, f"{taken:.1f} s ({used:.1f} s of the processors)", taken <= COMPILE_SECONDS)


def _error_goal(rows: Sequence[Record]) -> Goal:
    errors = [
        loaded["max_relative_error"]
        for row in rows
        for loaded in row.contenders.get(OURS, {}).values()
        if "max_relative_error" in loaded
    ]
    what = f"relative error at most {ERROR:g}"
    return Goal(what, f"{max(errors):.1e}", max(errors) <= ERROR) if errors else Goal(what, "-", None)


def _at_most_theirs(rows: Sequence[Record], threads: int, figure: str, what: str) -> Goal:
    pairs = [
        (start[OURS][figure], start[ORT][figure])
        for row in rows
        if {OURS, ORT} <= (start := row.startup.get(str(threads), {})).keys()
    ]
    where = _where(threads)
    if not pairs:
        return Goal(f"{what}, {where}", "-", None)
    kept = sum(ours <= theirs for ours, theirs in pairs)
    mean = geometric_mean([ours / theirs for ours, theirs in pairs])
    text = f"{kept} of {len(pairs)} rows; {mean:.2f} of it on geometric mean"
    return Goal(f"{what}, {where}", text, kept == len(pairs))
