"""Where a node came from, where it went, or which rules were tried on it and why each did not fire."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ..ir.errors import PassError
from ..ir.provenance import module_path
from .manager import PassRecord
from .rewriter import FROM_KEY, PASS_KEY, RULE_KEY


def explain(before: ir.Model, after: ir.Model, records: Sequence[PassRecord], name: str) -> list[str]:
    """Tell the story of the node called `name` through a pipeline.

    Args:
        before: The model that went in.
        after: The model that came out.
        records: The passes' records, of a run with `explain=name`.
        name: A node of either model, or one that lived in between.

    Returns:
        Lines to print: origin, fate, and the attempts of each pass.

    Raises:
        PassError: No node of that name ever existed.
    """
    old, new = _find(before, name), _find(after, name)
    consumed = [(r, f) for r in records for f in r.firings if f.node == name]
    created = [(r, f) for r in records for f in r.firings if name in f.created]
    if old is None and new is None and not consumed and not created:
        raise PassError(f"there was never a node '{name}'; `graphwright inspect --text` shows the names")
    lines = []
    for node in [new or old]:
        if node is not None:
            path = module_path(node)
            lines.append(f"{name}: {node.op_type}{f' of module {path}' if path else ''}")
    lines.append(_origin(old, new, created))
    if new is None:
        lines.append(_fate(name, after, consumed))
    for record in records:
        for rule, outcome in record.attempts:
            lines.append(f"  {record.name}: {rule}: {outcome}")
        for left in record.left_alone:
            if left.node == name and not any(left.reason in outcome for _, outcome in record.attempts):
                lines.append(f"  {record.name}: left alone: {left.reason}")
    if not any(line.startswith("  ") for line in lines):
        lines.append("  no rule of this pipeline is meant for it")
    return lines


def _origin(old: ir.Node | None, new: ir.Node | None, created: list) -> str:  # type: ignore[type-arg]
    if old is not None:
        return "it was in the model from the start"
    if new is not None:
        made_by = new.metadata_props.get(PASS_KEY, "?")
        rule = new.metadata_props.get(RULE_KEY)
        sources = new.metadata_props.get(FROM_KEY, "").replace(";", ", ")
        return f"made by {made_by}{f', rule {rule},' if rule else ''} from {sources or 'nothing'}"
    record, firing = created[0]
    return f"made by {record.name}, rule {firing.rule}, at {firing.node}"


def _fate(name: str, after: ir.Model, consumed: list) -> str:  # type: ignore[type-arg]
    heirs = [
        f"'{node.name}' ({node.op_type})"
        for graph in after.graphs()
        for node in graph
        if name in node.metadata_props.get(FROM_KEY, "").split(";")
    ]
    became = f"; it lives on in {', '.join(heirs[:4])}" if heirs else ""
    if consumed:
        record, firing = consumed[-1]
        return f"rewritten by {record.name}, rule {firing.rule}{became}"
    return f"it is gone{became}"


def _find(model: ir.Model, name: str) -> ir.Node | None:
    return next((node for graph in model.graphs() for node in graph if node.name == name), None)
