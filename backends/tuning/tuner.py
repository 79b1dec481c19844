"""Spending trials where a model's latency is.

Every kernel is first measured as the analytic model would have it. Then batches of trials go to the kernel
from which the next batch is expected to save the most time of the model: calls x time x what its last batches
gained, a measure that halves with every batch that finds nothing. Everything measured is in the database
before the next candidate is built.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..target import Target
from .client import CandidateError, Worker
from .database import Database
from .measure import compare, race
from .record import TRIAL, VERDICT, Key, Record, Value
from .search import Parameter, Point, Schedule, Search, identity

BATCH = 8
_PROSPECT = 0.15
"""What the first batch of a kernel is expected to save of its time."""
_SATURATED = 0.002
"""Searching ends where the next batches of all kernels together are expected to save less than this share."""
_REBUILT = 4
"""Best trials of earlier runs that a search begins from."""
_FINALISTS = 3
"""Fastest schedules that are compared with the analytic one in pairs after each batch."""
_ANALYTIC = "analytic"


@dataclass
class Task:
    """A kernel of the model, how often it is called, and how its search stands.

    Times are in microseconds; `analytic` and `best` are of one call.
    """

    key: Key
    spec: Any
    calls: int
    search: Search = field(default_factory=Search)
    trials: int = 0
    analytic: float = math.nan
    best: float = math.nan
    prospect: float = _PROSPECT
    schedule: Schedule = field(default_factory=dict)
    """The verdict: parameters to use, empty for the analytic choice."""
    judged: set[str] = field(default_factory=set)
    """Schedules that were compared in pairs."""
    error: str = ""

    @property
    def expected_gain(self) -> float:
        """Microseconds of the model that the next batch is expected to save."""
        return 0.0 if self.error or math.isnan(self.best) else self.calls * self.best * self.prospect

    @property
    def saved(self) -> float:
        """Microseconds of the model saved so far."""
        return 0.0 if math.isnan(self.best) else self.calls * (self.analytic - self.best)


@dataclass(frozen=True)
class Progress:
    """Where tuning stands.

    Attributes:
        trials: trials in the database for the kernels of this model.
        budget: trials to spend.
        estimate_ms: the model's latency as it would be now.
        before_ms: the model's latency with analytic choices.
        seconds_left: for the rest of the budget at the pace so far; None before the first trial.
        doing: what happens now.
    """

    trials: int
    budget: int
    estimate_ms: float
    before_ms: float
    seconds_left: float | None
    doing: str

    def __str__(self) -> str:
        left = "" if self.seconds_left is None else f", at most {_duration(self.seconds_left)} left"
        return (
            f"trial {min(self.trials, self.budget)} of {self.budget}: about {self.estimate_ms:.3f} ms "
            f"(was {self.before_ms:.3f}){left}; {self.doing}"
        )


class Tuner:
    """Measures candidates for the kernels of one model.

    Args:
        tasks: the kernels.
        target: what to build for; it must run here.
        threads: threads that kernels run on.
        database: where records are looked up and kept.
        budget: trials to spend, those in the database included.
        model_ms: the model's latency with analytic choices; the sum of its kernels where None.
        say: called with the progress.
        seed: seed of what is tried.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        target: Target,
        threads: int,
        database: Database,
        budget: int,
        *,
        model_ms: float | None = None,
        say: Callable[[Progress], None] | None = None,
        seed: int = 0,
    ):
        self.tasks, self._target, self._database, self._budget = list(tasks), target, database, budget
        self._say = say or (lambda progress: None)
        self._model_ms = model_ms
        self._worker = Worker(target, threads)
        self._built: dict[str, str] = {}
        """Names of the worker's candidates by the identity of their schedule."""
        self._spent, self._seconds = 0, 0.0
        for task in self.tasks:
            task.search.seed = seed
            task.trials = len(database.trials(task.key))

    def run(self) -> None:
        """Tune until the budget is spent or nothing more is expected; may be interrupted at any point."""
        with self._worker:
            for number, task in enumerate(self.tasks, start=1):
                self._tell(f"kernel {number} of {len(self.tasks)} as it is")
                self._begin(task)
            while self.trials < self._budget and self.tasks and not self._is_saturated():
                self._batch(max(self.tasks, key=lambda each: each.expected_gain))

    @property
    def trials(self) -> int:
        """Trials in the database for these kernels."""
        return sum(task.trials for task in self.tasks)

    @property
    def spent(self) -> int:
        """Trials made by this tuner."""
        return self._spent

    def progress(self, doing: str = "") -> Progress:
        """Where tuning stands."""
        known = sum(task.calls * task.analytic for task in self.tasks if not math.isnan(task.analytic)) / 1e3
        before = known if self._model_ms is None else self._model_ms
        estimate = before - sum(task.saved for task in self.tasks) / 1e3
        left = (self._budget - self.trials) * self._seconds / self._spent if self._spent else None
        return Progress(
            self.trials, self._budget, estimate, before, None if left is None else max(left, 0.0), doing
        )

    def _tell(self, doing: str) -> None:
        self._say(self.progress(doing))

    def _is_saturated(self) -> bool:
        total = sum(task.calls * task.best for task in self.tasks if not math.isnan(task.best))
        return sum(task.expected_gain for task in self.tasks) <= _SATURATED * total

    def _begin(self, task: Task) -> None:
        """Measure the analytic choice and the best of earlier records."""
        earlier = self._database.trials(task.key)
        verdict = self._database.verdict(task.key, self._target.cpu)
        try:
            self._open(task)
        except CandidateError as error:
            task.error = str(error)
            return
        task.search.tried.update(identity(dict(record.schedule)) for record in earlier)
        # What earlier batches did not find is not looked for as eagerly again.
        task.prospect *= 0.5 ** (task.trials / BATCH)
        ranked = sorted((each for each in earlier if each.microseconds and each.analytic), key=_relative)
        wanted = [dict(record.schedule) for record in ranked[:_REBUILT]]
        if verdict is not None and verdict.schedule:
            wanted.insert(0, dict(verdict.schedule))
        if wanted:
            self._race(task, self._build_all(task, wanted, is_new=False))
            self._judge(task)

    def _batch(self, task: Task) -> None:
        start = time.perf_counter()
        before = task.best
        try:
            self._open(task)
        except CandidateError:
            # The machine may have stood still; the kernel gets another chance when it is the most promising.
            task.prospect /= 2
            return
        count = min(BATCH, self._budget - self.trials)
        proposals = [*self._of_relatives(task), *task.search.propose(count)][:count]
        if not proposals:
            task.prospect = 0.0
            return
        leading = [point.schedule for point in task.search.best(1) if point is not task.search.analytic]
        self._race(
            task,
            self._build_all(task, leading, is_new=False),
            self._build_all(task, proposals, is_new=True),
        )
        self._judge(task)
        task.prospect = max((before - task.best) / before, task.prospect / 2)
        self._seconds += time.perf_counter() - start
        self._tell(task.key.workload)

    def _of_relatives(self, task: Task) -> list[Schedule]:
        """Untried schedules that were the best of kernels that only differ in what follows the anchor."""
        found = {
            identity(each.schedule): each.schedule
            for each in self.tasks
            if each is not task and each.schedule and _anchor(each.key) == _anchor(task.key)
        }
        return [schedule for name, schedule in found.items() if name not in task.search.tried]

    def _open(self, task: Task) -> None:
        """Turn the worker to a task, its analytic choice built; measured if it was not yet."""
        self._worker.open(task.spec)
        self._built = {}
        answer = self._worker.build(_ANALYTIC, {})
        if task.search.analytic is None:
            times, failed = race(self._worker, [_ANALYTIC])
            if failed:
                raise CandidateError(failed[_ANALYTIC])
            task.analytic = task.best = times[_ANALYTIC] * 1e6
            task.search.add(_point(answer, task.analytic))

    def _build_all(self, task: Task, schedules: Sequence[Schedule], *, is_new: bool) -> dict[str, Point]:
        """Build candidates, by name. Failures of new ones are recorded; what is known already is left out."""
        made: dict[str, Point] = {}
        for schedule in schedules:
            name = identity(schedule)
            task.search.tried.add(name)
            try:
                point = _point(self._worker.build(name, schedule), math.inf)
            except CandidateError as error:
                if is_new:
                    self._count(task, schedule, None, None, str(error))
                continue
            same = identity(point.schedule)
            if same in self._built or (is_new and same in task.search.points):
                self._worker.drop([name])
                continue
            self._built[same] = name
            made[name] = point
        return made

    def _race(self, task: Task, old: dict[str, Point], new: dict[str, Point] | None = None) -> None:
        """Time candidates beside the analytic choice; times are scaled to its first measurement."""
        new = new or {}
        if not old and not new:
            return
        times, failed = race(self._worker, [_ANALYTIC, *old, *new])
        for name in set(failed).intersection(new):
            self._count(task, new[name].schedule, None, None, failed[name])
        if _ANALYTIC in failed:
            return
        for name, point in {**old, **new}.items():
            if name not in times:
                continue
            point.microseconds = task.analytic * times[name] / times[_ANALYTIC]
            task.search.add(point)
            if name in new:
                self._count(task, point.schedule, times[name] * 1e6, times[_ANALYTIC] * 1e6, "")

    def _judge(self, task: Task) -> None:
        """Compare the fastest schedules with the analytic one in pairs, and record what is to be used."""
        analytic = task.search.analytic
        assert analytic is not None
        verdict = self._database.verdict(task.key, self._target.cpu)
        known = identity(dict(verdict.schedule)) if verdict is not None else ""
        for point in task.search.best(_FINALISTS):
            same = identity(point.schedule)
            if point is analytic or point.microseconds >= task.best:
                break
            if same in task.judged:
                continue
            task.judged.add(same)
            try:
                if same not in self._built:
                    self._worker.build(same, point.schedule)
                    self._built[same] = same
                compared = compare(self._worker, self._built[same], _ANALYTIC)
            except CandidateError:
                del task.search.points[same]
                continue
            point.microseconds = task.analytic * compared.ratio
            if compared.is_faster and point.microseconds < task.best:
                task.schedule, task.best = dict(point.schedule), point.microseconds
        if identity(task.schedule) != known and (task.trials or verdict is not None):
            self._keep(task, VERDICT, task.schedule, task.best, task.analytic, "")

    def _count(
        self, task: Task, schedule: Schedule, microseconds: float | None, analytic: float | None, error: str
    ) -> None:
        self._keep(task, TRIAL, schedule, microseconds, analytic, error)
        task.trials += 1
        self._spent += 1

    def _keep(
        self,
        task: Task,
        kind: str,
        schedule: Schedule,
        microseconds: float | None,
        analytic: float | None,
        error: str,
    ) -> None:
        self._database.add(
            Record(
                task.key,
                kind,
                dict(schedule),
                None if microseconds is None else round(microseconds, 3),
                None if analytic is None else round(analytic, 3),
                error,
                self._target.cpu,
                _machine(),
            )
        )


def _point(answer: dict[str, Any], microseconds: float) -> Point:
    parameters = tuple(
        Parameter(each.name, each.analytic, {option.value: option.cost for option in each.options})
        for each in answer["asked"]
    )
    schedule: dict[str, Value] = {each.name: each.value for each in answer["asked"]}
    return Point(schedule, parameters, microseconds)


def _anchor(key: Key) -> str:
    """The part of a workload's key that describes the anchor."""
    return key.workload.partition("[")[2].rpartition(")]")[0]


def _relative(record: Record) -> float:
    assert record.microseconds is not None and record.analytic is not None
    return record.microseconds / record.analytic


@functools.lru_cache(maxsize=1)
def _machine() -> str:
    from ..host import describe_host

    return str(describe_host()["summary"]).removeprefix("this machine: ")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
