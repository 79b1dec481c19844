"""The way of a model from the opset of its file to the canonical one."""

from __future__ import annotations

import re

import onnx
import onnx_ir as ir

from . import ort
from .bodies import all_graphs
from .carry_over import CHANGED_SINCE_18, carry_over
from .errors import ModelError
from .normalize import name_nodes
from .old_operators import finish_old_operators, prepare_old_operators
from .opset import CANONICAL_OPSET
from .quiet import collected_warnings
from .relabel import lower, relabel, same_version
from .runtime_gaps import runnable_opset
from .sweep import nodes_in

# Oldest opset that onnxscript converts on the IR itself; below it the converter of the onnx package goes
# through protobuf, which loses node metadata, and so goes no further up than needed.
_OLDEST_ON_IR = 18


def upgrade(model: ir.Model) -> None:
    """Rewrites a model of an older (or compatible newer) opset in the canonical one, in place.

    A newer model that only uses operators which the canonical opset has in the same version is relabelled;
    one that needs its newer operators is kept as it is, if the reference can run it. A model with an operator
    that ONNX Runtime lacks in the canonical opset, but has in an earlier one, comes to that earlier one.

    Raises:
        ModelError: the converter knows no way for an operator, or the opset is too new.
    """
    version = model.opset_imports.get("")
    if version is None:
        model.opset_imports[""] = version = CANONICAL_OPSET
    newest = onnx.defs.onnx_opset_version()
    if version > newest:
        raise ModelError(
            f"the model imports opset {version}, and onnx {onnx.__version__} knows those up to {newest}. "
            "Export it again with an older one, or install a newer onnx"
        )
    for target in dict.fromkeys((runnable_opset(model, CANONICAL_OPSET), CANONICAL_OPSET)):
        if version == target:
            return
        if _same_operators(model, target):
            relabel(model, target)
            return
        if version < target:
            _convert(model, version, target)
            return
        newer = lower(model, target)
        if newer is None:
            return
    if version > ort.MAX_OPSET:
        raise ModelError(
            f"{newer} needs opset {version}; opsets up to {ort.MAX_OPSET} can be read. "
            "Export the model again with an older one"
        )


def _convert(model: ir.Model, version: int, target: int) -> None:
    if _only_widened(model, target):
        relabel(model, target)
        return
    if carry_over(model, target):
        return
    grouped = _group_norms(model) if _OLDEST_ON_IR <= version < 21 else []
    if version < _OLDEST_ON_IR:
        prepare_old_operators(model, version)
        _convert_step(model, version, _OLDEST_ON_IR, target)
        name_nodes(model)
        finish_old_operators(model, version)
    _convert_step(model, version, target, target)
    for node, name in grouped:
        if node.graph is not None and not _is_per_channel(node):
            raise ModelError(
                f"cannot upgrade node '{name}' (GroupNormalization) from opset {version}: "
                "its number of channels is unknown"
            )


def _convert_step(model: ir.Model, original: int, target: int, final: int) -> None:
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
        raise ModelError(f"cannot upgrade the model from opset {original} to {final}: {reason}")


def _only_widened(model: ir.Model, target: int) -> bool:
    """Whether newer versions of the model's operators only accept more: then functions need no inlining."""
    imports = [model.opset_imports, *(function.opset_imports for function in model.functions.values())]
    if any(each.get("", target) < _OLDEST_ON_IR for each in imports):
        return False
    return not any(
        node._op_type in CHANGED_SINCE_18 and node.domain == ""
        for graph in all_graphs(model)
        for node in nodes_in(graph)
    )


def _same_operators(model: ir.Model, target: int) -> bool:
    """Whether every standard operator of the model has the same version in its opset and in `target`."""
    version, asked = model.opset_imports[""], set[str]()
    for graph in all_graphs(model):
        for node in nodes_in(graph):
            op_type = node._op_type
            if op_type not in asked and node.domain == "":
                asked.add(op_type)
                if not same_version(op_type, version, target):
                    return False
    return all(
        function.opset_imports.get("", model.opset_imports[""]) == model.opset_imports[""]
        for function in model.functions.values()
    )


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
