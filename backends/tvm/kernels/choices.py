"""Parameters of templates: the analytic model decides them, and a tuner may ask for other values.

A template calls `choose` where it has a choice: the tile, the algorithm, the rows per task. The names and
values of one emission are its *schedule*: plain data that a database can hold, and that decides the code.
What can be chosen is found by emitting: later parameters may depend on earlier ones, as in the traces of
MetaSchedule (Shao et al., 2022, arXiv:2205.13603), and a new template needs nothing but calls of `choose`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from math import log2

Value = int | str | tuple[int, ...]
Schedule = Mapping[str, Value]
"""Values by the name of the parameter."""

TILES = "tiles"
"""The parameter that decides between tile registers (1) and vectors (0, also where it is not asked for)."""

_STRANGENESS = 1.02
"""What an option is taken to cost per factor of two away from a choice whose effect no model estimates."""


@dataclass(frozen=True)
class Option:
    """A value that a parameter can take, and its estimated time relative to the analytic choice's."""

    value: Value
    cost: float = 1.0


@dataclass(frozen=True)
class Asked:
    """A parameter that a template asked for: what it got, and what else it could take."""

    name: str
    value: Value
    analytic: Value
    options: tuple[Option, ...]


@dataclass
class Choices:
    """Values for the parameters of one emission, and what was asked for.

    A given value that a template does not offer is passed over: records may come from an older version, or
    from a damaged file, and must never make wrong code.
    """

    given: Schedule = field(default_factory=dict)
    asked: dict[str, Asked] = field(default_factory=dict)

    @property
    def schedule(self) -> dict[str, Value]:
        """What was decided, analytic values included."""
        return {name: each.value for name, each in self.asked.items()}

    @property
    def is_stale(self) -> bool:
        """Whether what was given is a record of the other kernel: of vectors for a layer that has got tile
        registers since, or of tiles for one that has none here. Their parameters share names.
        """
        decided, recorded = self.schedule.get(TILES, 0), self.given.get(TILES, 0)
        return bool(self.given) and decided != recorded

    @property
    def ignored(self) -> dict[str, Value]:
        """Given values that did not take effect."""
        taken = self.schedule
        return {name: value for name, value in self.given.items() if taken.get(name) != value}

    def decide(self, name: str, analytic: Value, options: Iterable[Option]) -> Value:
        """The value of a parameter; a name asked for twice is one parameter."""
        offered = {analytic: Option(analytic)}
        for option in options:
            offered.setdefault(option.value, option)
        wanted = self.given.get(name, analytic)
        value = wanted if wanted in offered else analytic
        self.asked.setdefault(name, Asked(name, value, analytic, tuple(offered.values())))
        return value


_CURRENT: ContextVar[Choices | None] = ContextVar("choices", default=None)


@contextmanager
def choosing(choices: Choices) -> Iterator[Choices]:
    """Templates emitted inside take their parameters from `choices`."""
    token = _CURRENT.set(choices)
    try:
        yield choices
    finally:
        _CURRENT.reset(token)


def choose(name: str, analytic: Value, options: Callable[[], Iterable[Option]]) -> Value:
    """The value of a parameter of the template being emitted: the analytic one unless somebody chooses."""
    current = _CURRENT.get()
    return analytic if current is None else current.decide(name, analytic, options())


def choose_flag(name: str, analytic: bool) -> bool:
    """A parameter that is on or off."""
    return bool(choose(name, int(analytic), lambda: [Option(0, _STRANGENESS), Option(1, _STRANGENESS)]))


def choose_size(name: str, analytic: int, most: int, sizes: Sequence[int] = ()) -> int:
    """A size between 1 and `most`: powers of two, and the sizes given."""
    usual = {*sizes, *(1 << power for power in range(most.bit_length())), most}
    offered = sorted(size for size in usual if 1 <= size <= most)

    def options() -> list[Option]:
        return [Option(size, _STRANGENESS ** abs(log2(size / analytic))) for size in offered]

    value = choose(name, analytic, options)
    assert isinstance(value, int)
    return value
