"""Which schedules of a workload to try next: a Bayesian linear model over the parameters, sampled.

The logarithm of the time is taken to be the analytic estimate, scaled, plus one unknown term per value of a
parameter (a tile also has one per side). With few measurements the analytic model decides; what is measured
corrects it. Each candidate of a batch is the best one under a sample of the posterior (Thompson, 1933), which
tries what may be good as well as what looks good. Candidates differ from one of the best known by a parameter
or two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .record import Value

Schedule = dict[str, Value]

_PRIOR_SCALE, _PRIOR_TERM, _NOISE = 0.5, 0.12, 0.03
"""Standard deviations: of the factor on the analytic estimate (around 1), of a term, of a measurement."""
_ELITES = 4
_MOST_CANDIDATES = 2000
_FAR = 3.0
"""Candidates estimated to take longer than this many times the best are not tried."""
_BRANCH = "algorithm"
"""The parameter that decides which others there are."""


@dataclass(frozen=True)
class Parameter:
    """A parameter as it was asked for in one emission: its options with their estimated relative times."""

    name: str
    analytic: Value
    costs: Mapping[Value, float]


@dataclass
class Point:
    """A schedule that was built: every parameter that it was asked for, and the least time of a call."""

    schedule: Schedule
    parameters: tuple[Parameter, ...]
    microseconds: float = math.inf


@dataclass
class Search:
    """The state of the search for one workload.

    Attributes:
        analytic: the choice of the analytic model, once it was built.
        points: what was built, by `identity` of its schedule.
        tried: identities of all schedules that were asked for, failed ones included.
    """

    analytic: Point | None = None
    points: dict[str, Point] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    seed: int = 0

    def add(self, point: Point) -> None:
        """Take note of a measurement; the first one is the analytic choice."""
        if self.analytic is None:
            self.analytic = point
        name = identity(point.schedule)
        self.tried.add(name)
        known = self.points.setdefault(name, point)
        known.microseconds = min(known.microseconds, point.microseconds)

    def best(self, count: int = 1) -> list[Point]:
        """The fastest points."""
        return sorted(self.points.values(), key=lambda point: point.microseconds)[:count]

    def propose(self, count: int) -> list[Schedule]:
        """Up to `count` schedules that were not tried; none where the space is exhausted."""
        assert self.analytic is not None
        pool = self._candidates()
        if not pool:
            return []
        rng = np.random.default_rng([self.seed, len(self.tried)])
        model = _Model(list(self.points.values()), self.analytic.microseconds)
        features = model.encode([parameters for _, parameters in pool])
        chosen = dict.fromkeys(self._other_algorithms(pool))
        for position in range(4 * count):
            predicted = features @ (model.mean if position == 0 else model.sample(rng))
            for index in np.argsort(predicted):
                if int(index) not in chosen:
                    chosen[int(index)] = None
                    break
            if len(chosen) >= min(count, len(pool)):
                break
        return [pool[index][0] for index in list(chosen)[:count]]

    def _candidates(self) -> list[tuple[Schedule, _Valued]]:
        """Untried schedules near the best ones, with the parameters that they are expected to have."""
        found: dict[str, tuple[Schedule, _Valued]] = {}
        elites = self._elites()
        rng = np.random.default_rng([self.seed, len(self.points), 1])
        for elite in elites:
            for schedule, valued in self._near(elite, rng):
                name = identity(schedule)
                if name in self.tried or _estimate(valued) > math.log(_FAR):
                    continue
                found.setdefault(name, (schedule, valued))
                if len(found) >= _MOST_CANDIDATES:
                    return list(found.values())
        return list(found.values())

    def _other_algorithms(self, pool: Sequence[tuple[Schedule, _Valued]]) -> list[int]:
        """Candidates that are the first of their algorithm."""
        return [index for index, (schedule, _) in enumerate(pool) if list(schedule) == [_BRANCH]]

    def _elites(self) -> list[Point]:
        """The best points, the best of each algorithm, and the analytic choice."""
        ranked = self.best(len(self.points))
        branches: dict[Value, Point] = {}
        for point in ranked:
            branches.setdefault(point.schedule.get(_BRANCH, ""), point)
        assert self.analytic is not None
        wanted = [*ranked[:_ELITES], *branches.values(), self.analytic]
        return list({identity(point.schedule): point for point in wanted}.values())

    def _near(self, point: Point, rng: np.random.Generator) -> Iterator[tuple[Schedule, _Valued]]:
        singles: list[tuple[Parameter, Value]] = [
            (parameter, value)
            for parameter in point.parameters
            for value in parameter.costs
            if value != point.schedule[parameter.name]
        ]
        for change in singles:
            yield self._changed(point, [change])
        for _ in range(len(singles) * 4 if len(point.parameters) > 1 else 0):
            first, second = (singles[int(i)] for i in rng.integers(0, len(singles), 2))
            if first[0].name != second[0].name and _BRANCH not in (first[0].name, second[0].name):
                yield self._changed(point, [first, second])

    def _changed(self, point: Point, changes: Sequence[tuple[Parameter, Value]]) -> tuple[Schedule, _Valued]:
        parameter, value = changes[0]
        if parameter.name == _BRANCH:
            # Another algorithm has other parameters; the analytic model gives them.
            return {_BRANCH: value}, [(parameter, value)]
        schedule = {**point.schedule, **{each.name: value for each, value in changes}}
        return schedule, [(each, schedule[each.name]) for each in point.parameters]


_Valued = Sequence[tuple[Parameter, Value]]


class _Model:
    """log(time / analytic time) = scale * estimate + sum of terms, with Gaussian priors and noise."""

    def __init__(self, points: Sequence[Point], analytic: float):
        measured = [point for point in points if math.isfinite(point.microseconds)]
        valued = [[(p, point.schedule[p.name]) for p in point.parameters] for point in measured]
        self._columns: dict[Any, int] = {}
        for each in valued:
            for term in _terms(each):
                self._columns.setdefault(term, len(self._columns))
        size = 1 + len(self._columns)
        prior = np.full(size, _PRIOR_TERM**-2)
        prior[0] = _PRIOR_SCALE**-2
        centre = np.zeros(size)
        centre[0] = 1.0
        x = self.encode(valued)
        y = np.log([point.microseconds / analytic for point in measured])
        precision = np.diag(prior) + x.T @ x / _NOISE**2
        self.mean = np.linalg.solve(precision, prior * centre + x.T @ y / _NOISE**2)
        self._factor = np.linalg.cholesky(precision)

    def encode(self, valued: Sequence[_Valued]) -> np.ndarray:
        """One row per schedule; values never seen have no column, their terms are expected to be zero."""
        rows = np.zeros((len(valued), 1 + len(self._columns)))
        for row, each in zip(rows, valued, strict=True):
            row[0] = _estimate(each)
            for term in _terms(each):
                if term in self._columns:
                    row[1 + self._columns[term]] = 1.0
        return rows

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Weights drawn from the posterior."""
        return self.mean + np.linalg.solve(self._factor.T, rng.standard_normal(len(self.mean)))


def _estimate(valued: _Valued) -> float:
    """Logarithm of the time relative to the analytic choice, by the analytic model."""
    return sum(math.log(parameter.costs.get(value, 1.0)) for parameter, value in valued)


def _terms(valued: _Valued) -> Iterator[Any]:
    branch = next((value for parameter, value in valued if parameter.name == _BRANCH), None)
    for parameter, value in valued:
        yield branch, parameter.name, value
        if isinstance(value, tuple):
            for axis, part in enumerate(value):
                yield branch, parameter.name, axis, part


def identity(schedule: Mapping[str, Value]) -> str:
    """A text that is equal for equal schedules."""
    return json.dumps(sorted(schedule.items()))
