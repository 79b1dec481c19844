"""The way of a model from the opset of its file to the canonical one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from . import ort
from .bodies import all_graphs
from .errors import ModelError
from .normalize import name_nodes
from .old_operators import finish_old_operators, prepare_old_operators
from .opset import CANONICAL_OPSET
from .quiet import collected_warnings
from .verify import problems

if TYPE_CHECKING:
    import onnx

# Oldest opset that onnxscript converts on the IR itself; below it the converter of the onnx package goes
# through protobuf, which loses node metadata, and so goes no further up than needed.
_OLDEST_ON_IR = 18
# What an operator of that opset or later may have to be rewritten for.
_CHANGED_SINCE = frozenset({"DFT", "GridSample", "GroupNormalization"})


def upgrade(model: ir.Model) -> None:
    """Rewrites a model of an older (or compatible newer) opset in the canonical one, in place.

    A newer model that only uses operators which the canonical opset has in the same version is relabelled;
    one that needs its newer operators is kept as it is, if the reference can run it.

    Raises:
        ModelError: the converter knows no way for an operator, or the opset is too new.
    """
    version = model.opset_imports.get("")
    if version is None:
        model.opset_imports[""] = version = CANONICAL_OPSET
    if version != CANONICAL_OPSET and _same_operators(model, CANONICAL_OPSET):
        _relabel(model, CANONICAL_OPSET)
    elif version > CANONICAL_OPSET:
        _downgrade(model, version)
    elif version < CANONICAL_OPSET:
        _convert(model, version)


def _convert(model: ir.Model, version: int) -> None:
    if _only_widened(model):
        _relabel(model, CANONICAL_OPSET)
        return
    grouped = _group_norms(model) if _OLDEST_ON_IR <= version < 21 else []
    if version < _OLDEST_ON_IR:
        prepare_old_operators(model, version)
        _convert_step(model, version, _OLDEST_ON_IR)
        name_nodes(model)
        finish_old_operators(model, version)
    _convert_step(model, version, CANONICAL_OPSET)
    for node, name in grouped:
        if node.graph is not None and not _is_per_channel(node):
            raise ModelError(
                f"cannot upgrade node '{name}' (GroupNormalization) from opset {version}: "
                "its number of channels is unknown"
            )


def _convert_step(model: ir.Model, original: int, target: int) -> None:
    from onnxscript import version_converter

    with collected_warnings("onnxscript.version_converter", "onnx_ir") as warnings:
        try:
            version_converter.convert_version(model, target, fallback=True)
        except Exception as error:
            raise ModelError(f"cannot upgrade the model from opset {original}: {_reason(error)}") from error
    failed = [
        record
        for record in warnings
        if record.exc_info or record.getMessage().startswith("Skipping version conversion")
    ]
    if failed or model.opset_imports.get("") != target:
        cause = failed[0].exc_info[1] if failed and failed[0].exc_info else None
        reason = _reason(cause) if cause else failed[0].getMessage() if failed else "the converter gave up"
        raise ModelError(f"cannot upgrade the model from opset {original} to {CANONICAL_OPSET}: {reason}")


def _downgrade(model: ir.Model, version: int) -> None:
    """Relabels a newer model if no node uses anything that came later; most newer versions only add types."""
    newer = next(
        (node for graph in all_graphs(model) for node in graph if not _means_the_same(node, version)), None
    )
    if newer is None:
        before = problems(model)
        _relabel(model, CANONICAL_OPSET)
        if problems(model) == before:
            return
        _relabel(model, version)
    if version > ort.MAX_OPSET:
        what = f"node '{newer.name}' ({newer.op_type})" if newer else "a node with newer element types"
        raise ModelError(
            f"{what} needs opset {version}; opsets up to {ort.MAX_OPSET} can be read. "
            "Export the model again with an older one"
        )


def _means_the_same(node: ir.Node, version: int) -> bool:
    """Whether a node reads alike in opset `version` and in the canonical one, element types aside."""
    import onnx

    if node.domain != "" or _same_version(node.op_type, version, CANONICAL_OPSET):
        return True
    try:
        newer = onnx.defs.get_schema(node.op_type, version, "")
        older = onnx.defs.get_schema(node.op_type, CANONICAL_OPSET, "")
    except onnx.defs.SchemaError:
        return False
    return (
        _formal(newer.inputs)[: len(older.inputs)] == _formal(older.inputs)
        and len(node.inputs) <= older.max_input
        and _formal(newer.outputs)[: len(older.outputs)] == _formal(older.outputs)
        and len(node.outputs) <= older.max_output
        and all(_same_default(newer, older, name) for name in older.attributes)
        and all(name in older.attributes for name in node.attributes)
    )


def _formal(parameters: Sequence[onnx.defs.OpSchema.FormalParameter]) -> list[tuple[str, str]]:
    return [(parameter.name, str(parameter.option)) for parameter in parameters]


def _same_default(newer: onnx.defs.OpSchema, older: onnx.defs.OpSchema, name: str) -> bool:
    if name not in newer.attributes:
        return False
    return newer.attributes[name].default_value == older.attributes[name].default_value


def _only_widened(model: ir.Model) -> bool:
    """Whether newer versions of the model's operators only accept more: then functions need no inlining."""
    imports = [model.opset_imports, *(function.opset_imports for function in model.functions.values())]
    if any(each.get("", CANONICAL_OPSET) < _OLDEST_ON_IR for each in imports):
        return False
    return not any(
        node.domain == "" and node.op_type in _CHANGED_SINCE for graph in all_graphs(model) for node in graph
    )


def _same_operators(model: ir.Model, target: int) -> bool:
    """Whether every standard operator of the model has the same version in its opset and in `target`."""
    for graph in all_graphs(model):
        for node in graph:
            if node.domain == "" and not _same_version(node.op_type, model.opset_imports[""], target):
                return False
    return all(
        function.opset_imports.get("", model.opset_imports[""]) == model.opset_imports[""]
        for function in model.functions.values()
    )


def _same_version(op_type: str, version: int, target: int) -> bool:
    import onnx

    try:
        here = onnx.defs.get_schema(op_type, version, "").since_version
        there = onnx.defs.get_schema(op_type, target, "").since_version
    except onnx.defs.SchemaError:
        return False
    return here == there


def _relabel(model: ir.Model, version: int) -> None:
    model.opset_imports[""] = version
    for function in model.functions.values():
        function.opset_imports[""] = version
    for graph in all_graphs(model):
        for node in graph:
            if node.domain == "":
                node.version = version


def _group_norms(model: ir.Model) -> list[tuple[ir.Node, str]]:
    return [
        (node, str(node.name))
        for graph in all_graphs(model)
        for node in graph
        if node.op_type == "GroupNormalization" and node.domain == ""
    ]


def _is_per_channel(node: ir.Node) -> bool:
    """Opset 21 reads scale and bias per channel where older ones read them per group."""
    groups = node.attributes.get_int("num_groups", 1)
    data, scale = node.inputs[0], node.inputs[1]
    if data is not None and data.shape is not None and data.shape[1] == groups:
        return True
    if scale is None or scale.shape is None or data is None or data.shape is None:
        return False
    return isinstance(scale.shape[0], int) and scale.shape[0] == data.shape[1]


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The converter of the onnx package puts its own source position in front.
    return re.sub(r"^\S+\.(?:cc|h):\d+: \w+: ", "", lines[0]) if lines else type(error).__name__
