"""`graphwright inspect MODEL|DIR`: what is in a graph, or in an artifact."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...backends.manifest import is_artifact
from ...ir.errors import ToolError
from ..console import human_bytes, human_count, print_json, print_line, print_table
from ..options import DimOption, JsonOption, ModelArgument, load_model

if TYPE_CHECKING:
    import onnx_ir as ir


def inspect_model(
    model: ModelArgument,
    dim: DimOption = None,
    counting: Annotated[
        str | None,
        typer.Option(
            "--counting",
            metavar="RULES",
            help="Also count operations as another tool does: torch-pruning, or torch-pruning-1.2.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Print the whole graph as text.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show inputs, outputs, operators, parameters, MACs and size of a model, or what an artifact holds."""
    from ...ir.shapes import infer_shapes

    if is_artifact(model) and counting is None and not text:
        from ..artifact_facts import inspect_artifact

        inspect_artifact(model, as_json)
        return

    graph = load_model(model, dim).model
    infer_shapes(graph)
    if text:
        from ...ir.text import to_text

        print_line(to_text(graph))
        return
    facts = describe(graph)
    if counting is not None:
        facts["counting"] = _counted(graph, counting)
    if as_json:
        print_json(facts)
        return
    rows = [(kind[:-1], each["name"], each["type"]) for kind in ("inputs", "outputs") for each in facts[kind]]
    print_table(model, ["", "name", "type"], rows, left=3)
    counts = [(name, str(count)) for name, count in facts["operators"].items()]
    print_table(None, ["operator", "nodes"], counts)
    print_line(
        f"{facts['nodes']} nodes, {human_count(facts['parameters'])} parameters, "
        f"{human_count(facts['macs'])} MACs, {human_bytes(facts['bytes'])}, opset {facts['opset']}"
    )
    if counting is not None:
        counted = facts["counting"]
        print_line(
            f"{counting}: {counted['total']:,} operations per sample; ours: {counted['products']:,} MACs\n"
            f"{counted['explanation']}"
        )


def _counted(model: ir.Model, counting: str) -> dict[str, Any]:
    from ...passes.pruning.counting import COUNTINGS, count_operations

    if counting not in COUNTINGS:
        raise ToolError(f"--counting knows {', '.join(COUNTINGS)}, not {counting!r}")
    found = count_operations(model, counting)
    return {**vars(found), "explanation": found.explanation}


def describe(model: ir.Model) -> dict[str, Any]:
    """The facts about a graph as JSON-able data."""
    from ...ir.account import account
    from ...ir.save import serialized_size

    counted = account(model)
    operators = Counter(node.op_type for node in model.graph.all_nodes())
    return {
        "inputs": [_value(v) for v in model.graph.inputs if v.name not in model.graph.initializers],
        "outputs": [_value(v) for v in model.graph.outputs],
        "operators": dict(operators.most_common()),
        "nodes": counted.nodes,
        "parameters": counted.parameters,
        "macs": counted.macs,
        "bytes": serialized_size(model),
        "opset": model.opset_imports.get("", None),
    }


def _value(value: ir.Value) -> dict[str, str]:
    dtype = str(value.dtype.numpy()) if value.dtype is not None else "?"
    shape = (
        "?"
        if value.shape is None
        else ",".join(str(d if isinstance(d, int) else d.value) for d in value.shape)
    )
    return {"name": str(value.name), "type": f"{dtype}[{shape}]"}
