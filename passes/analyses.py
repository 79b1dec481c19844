"""Analyses: facts about a graph that are computed once and kept right while rewrites go on.

A pass says which ones it reads (`needs`) and which ones stay true whatever it does (`preserves`), and asks
for them by class: `context.analysis(Costs)`. The rewriter notes what it touches; an analysis is told those
nodes and values when it is next asked for, and mends itself or, where it does not know how, is computed anew.
Anybody may write one: a subclass of `Analysis` with a `compute` is all it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import onnx_ir as ir

from ..ir.errors import PassError

A = TypeVar("A", bound="Analysis")

_known: dict[str, type[Analysis]] = {}


class Analysis:
    """Base of all analyses.

    Attributes:
        name: Kebab-case name, shown by `graphwright passes NAME`, in timings and errors; the class name in
            that form unless given.
        needs: Other analyses that `compute` reads.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[tuple[type[Analysis], ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = cls.__dict__.get("name") or _kebab(cls.__name__)
        known = _known.get(cls.name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise PassError(f"analysis name '{cls.name}' is taken by {known.__module__}.{known.__qualname__}")
        _known[cls.name] = cls

    @classmethod
    def compute(cls: type[A], model: ir.Model, analyses: Analyses) -> A:
        """Analyse `model`, shapes inferred; other analyses are had from `analyses.get`."""
        raise NotImplementedError

    def update(self, changes: Changes) -> bool:
        """Mend the result after rewrites; False (the default) where it has to be computed anew."""
        return False

    def facts(self) -> Any:
        """What two results of the same graph must have equal; compared where a pass claims to preserve it."""
        return vars(self)


def registered_analyses() -> dict[str, type[Analysis]]:
    """Every analysis whose module was imported, by name."""
    from . import analyses_graph, analyses_values  # noqa: F401

    return dict(sorted(_known.items()))


@dataclass(frozen=True)
class Changes:
    """What rewrites touched since an analysis was last right.

    Attributes:
        nodes: Nodes that are new, that read or are something else than before, or whose readers changed;
            erased ones have no graph any more (`node.graph is None`).
        values: Values whose shape, type or stored constant changed, and initializers that came or went.
    """

    nodes: tuple[ir.Node, ...]
    values: tuple[ir.Value, ...]


@dataclass
class _Entry:
    result: Any
    seen: int
    version: int


@dataclass
class Analyses:
    """The analyses of one model, as far as somebody asked for them.

    Attributes:
        model: What they are about.
        version: Counts mutations; where it went on without a word in the journal, nothing is trusted.
        computed: How often each analysis was computed from scratch, by name.
        updated: How often each was mended instead.
    """

    model: ir.Model
    version: Callable[[], int] = lambda: 0
    computed: dict[str, int] = field(default_factory=dict)
    updated: dict[str, int] = field(default_factory=dict)
    _entries: dict[type[Analysis], _Entry] = field(default_factory=dict, repr=False)
    _journal: list[ir.Node | ir.Value] = field(default_factory=list, repr=False)

    def __bool__(self) -> bool:
        """Whether anything is cached, so that rewrites need watching."""
        return bool(self._entries)

    def get(self, wanted: type[A]) -> A:
        """Return the analysis `wanted` of the model as it is now."""
        entry = self._entries.get(wanted)
        if entry is not None and self._mend(wanted, entry):
            return entry.result
        result = wanted.compute(self.model, self)
        self._entries[wanted] = _Entry(result, len(self._journal), self.version())
        self.computed[wanted.name] = self.computed.get(wanted.name, 0) + 1
        return result

    def note(self, thing: ir.Node | ir.Value) -> None:
        """Remember that a rewrite touched a node or a value."""
        if self._entries:
            self._journal.append(thing)

    def forget(self, kept: Iterable[type[Analysis]] = ()) -> None:
        """Drop every result but those of `kept`: something changed and nobody can tell what."""
        entries = {cls: self._entries[cls] for cls in kept if cls in self._entries}
        self._entries.clear()
        self._entries.update(entries)
        self._journal.clear()
        for entry in entries.values():
            entry.seen = 0

    def trust(self, preserved: Iterable[type[Analysis]]) -> None:
        """Take the word of a pass that what it did leaves these analyses true."""
        for cls in preserved:
            entry = self._entries.get(cls)
            if entry is not None:
                entry.seen, entry.version = len(self._journal), self.version()

    def settle(self, version: Callable[[], int]) -> None:
        """Begin a new pass, whose mutations `version` counts."""
        for cls, entry in list(self._entries.items()):
            if entry.version != self.version() and entry.seen == len(self._journal):
                del self._entries[cls]
        self.version = version
        for entry in self._entries.values():
            entry.version = version()

    def wrong(self, claimed: Iterable[type[Analysis]]) -> type[Analysis] | None:
        """Compute cached analyses of `claimed` anew; return the first that differs from what is cached."""
        for cls in claimed:
            entry = self._entries.get(cls)
            if entry is None:
                continue
            fresh = cls.compute(self.model, Analyses(self.model))
            if fresh.facts() != entry.result.facts():
                return cls
        return None

    def cached(self, wanted: type[Analysis]) -> bool:
        """Whether `wanted` was computed and not forgotten."""
        return wanted in self._entries

    def _mend(self, wanted: type[Analysis], entry: _Entry) -> bool:
        news = self._journal[entry.seen :]
        now = self.version()
        if not news and entry.version == now:
            return True
        if not news or not entry.result.update(_changes(news)):
            return False
        entry.seen, entry.version = len(self._journal), now
        self.updated[wanted.name] = self.updated.get(wanted.name, 0) + 1
        return True


def _changes(news: list[ir.Node | ir.Value]) -> Changes:
    unique = dict.fromkeys(news)
    nodes = tuple(thing for thing in unique if isinstance(thing, ir.Node))
    return Changes(nodes, tuple(thing for thing in unique if isinstance(thing, ir.Value)))


def _kebab(name: str) -> str:
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")
