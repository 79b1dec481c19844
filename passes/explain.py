"""Where a node came from, where it went, or which rules were tried on it and why each did not fire."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from ..ir.bodies import all_graphs
from ..ir.errors import PassError
from ..ir.provenance import module_path, source_line
from .records import PassRecord
from .rewriter import FROM_KEY, PASS_KEY, RULE_KEY
from .watched import Event

_SHOWN = 4
_GENERATIONS = 12


def explain(before: ir.Model, after: ir.Model, records: Sequence[PassRecord], name: str) -> list[str]:
    """Tell the story of the node called `name` through a pipeline.

    Args:
        before: The model that went in.
        after: The model that came out.
        records: The passes' records, of a run with `explain=name`.
        name: A node of either model, or one that lived in between.

    Returns:
        Lines to print: what it is, its origin back to nodes of the model that went in, its fate, and what the
        rules of each pass said to it, or that none of them looks at such an operator.

    Raises:
        PassError: No node of that name ever existed.
    """
    old, new = _find(before, name), _find(after, name)
    history = _History(records)
    if old is None and new is None and not history.knows(name):
        known = [node.name for model in (before, after) for graph in all_graphs(model) for node in graph]
        close = difflib.get_close_matches(name, [each for each in known if each], 1)
        hint = f"did you mean '{close[0]}'?" if close else "`graphwright inspect --text` shows the names"
        raise PassError(f"there was never a node '{name}'; {hint}")
    node = new or old
    op_type = node.op_type if node is not None else history.op_type(name)
    lines = [f"{name}: {op_type}{_place(node)}"]
    lines += _origin(old, new, history, name)
    if new is None:
        lines += _fate(name, after, history)
    attempts = list(_attempts(name, op_type, node, records))
    lines += attempts or ["  no rule of this pipeline is meant for it"]
    return lines


class _History:
    """What happened to nodes in the passes of a run."""

    def __init__(self, records: Sequence[PassRecord]):
        self._created: dict[str, tuple[PassRecord, Event]] = {}
        self._gone: dict[str, tuple[PassRecord, Event]] = {}
        self._changed: dict[str, list[tuple[PassRecord, Event]]] = {}
        for record in records:
            for event in record.story:
                if event.kind == "created":
                    self._created[event.node] = (record, event)
                elif event.kind == "changed":
                    self._changed.setdefault(event.node, []).append((record, event))
                elif event.kind == "replaced" or event.node not in self._gone:
                    self._gone[event.node] = (record, event)

    def knows(self, name: str) -> bool:
        return name in self._created or name in self._gone

    def op_type(self, name: str) -> str:
        return (self._created.get(name) or self._gone[name])[1].op_type

    def creation(self, name: str) -> tuple[PassRecord, Event] | None:
        return self._created.get(name)

    def end(self, name: str) -> tuple[PassRecord, Event] | None:
        return self._gone.get(name)

    def changes(self, name: str) -> list[str]:
        found = [f"changed by {_author(record, event)}" for record, event in self._changed.get(name, ())]
        return list(dict.fromkeys(found))


def _author(record: PassRecord, event: Event) -> str:
    return f"{record.name}{f', rule {event.rule}' if event.rule else ''}"


def _place(node: ir.Node | None) -> str:
    if node is None:
        return ""
    path, line = module_path(node), source_line(node)
    return f"{f' of module {path}' if path else ''}{f' at {line}' if line else ''}"


def _origin(old: ir.Node | None, new: ir.Node | None, history: _History, name: str) -> list[str]:
    if old is not None:
        return ["it was in the model from the start", *history.changes(name)]
    if new is not None:
        made_by = new.metadata_props.get(PASS_KEY, "?")
        rule = new.metadata_props.get(RULE_KEY)
        sources = new.metadata_props.get(FROM_KEY, "").replace(";", ", ")
        lines = [f"made by {made_by}{f', rule {rule},' if rule else ''} from {sources or 'nothing'}"]
    else:
        lines = []
    return lines + list(_chain(history, name))[1 if lines else 0 :] + history.changes(name)


def _chain(history: _History, name: str) -> Iterator[str]:
    """How a node was made, and what it was made from, and so on back to the model that went in."""
    for generation in range(_GENERATIONS):
        made = history.creation(name)
        if made is None:
            return
        record, event = made
        parent = event.by[0] if event.by else "nothing"
        subject = "made" if generation == 0 else f"'{name}' was made"
        yield f"{subject} by {_author(record, event)}, at {parent}"
        name = parent


def _fate(name: str, after: ir.Model, history: _History) -> list[str]:
    heirs = [
        f"'{node.name}' ({node.op_type})"
        for graph in all_graphs(after)
        for node in graph
        if name in node.metadata_props.get(FROM_KEY, "").split(";")
    ]
    became = f"; it lives on in {', '.join(heirs[:_SHOWN])}" if heirs else ""
    end = history.end(name)
    if end is None:
        return [f"it is gone{became}"]
    record, event = end
    if event.kind == "erased":
        return [f"removed by {_author(record, event)}: nothing read it any more{became}"]
    by = _quoted([each for each in event.by if each != name])
    if heirs or not by:
        return [f"rewritten by {_author(record, event)}{became}"]
    lines = [f"replaced by {by}, by {_author(record, event)}"]
    heir = next((each for each in event.by if each != name), None)
    for _ in range(_GENERATIONS):
        later = history.end(heir) if heir else None
        if later is None or not later[1].by:
            break
        lines.append(f"then '{heir}' by {_quoted(later[1].by)}, by {_author(*later)}")
        heir = later[1].by[0]
    return lines


def _attempts(name: str, op_type: str, node: ir.Node | None, records: Sequence[PassRecord]) -> Iterator[str]:
    for record in records:
        if record.error:
            yield f"  {record.name}: {record.error}"
        if node is not None and record.instance is not None and not record.instance.selects(node):
            yield f"  {record.name}: only= or skip= keeps it off"
            continue
        said = list(dict.fromkeys(record.attempts))
        for rule, outcome in said:
            yield f"  {record.name}: {rule}: {outcome}"
        for left in record.left_alone:
            if left.node == name and not any(left.reason in outcome for _, outcome in said):
                yield f"  {record.name}: left alone: {left.reason}"
        if said or not record.looked_at:
            continue
        tried = [label for label, ops in record.looked_at.items() if not ops or op_type in ops]
        if not tried:
            yield f"  {record.name}: no rule of it looks at {op_type}; {_looks_at(record)}"


def _looks_at(record: PassRecord) -> str:
    ops = list(dict.fromkeys(op for ops in record.looked_at.values() for op in ops))
    more = ", ..." if len(ops) > _SHOWN else ""
    return f"they start at {', '.join(ops[:_SHOWN])}{more}"


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _find(model: ir.Model, name: str) -> ir.Node | None:
    return next((node for graph in all_graphs(model) for node in graph if node.name == name), None)
