"""The operator set that every graph inside the house is written in, and the way up to it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import onnx_ir as ir

from . import ort
from .errors import ModelError

CANONICAL_OPSET = 23

# Oldest opset that onnxscript converts on the IR itself; below it the converter of the onnx package goes
# through protobuf, which loses node metadata, and so goes no further up than needed.
_OLDEST_ON_IR = 18


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
    elif version > ort.MAX_OPSET:
        raise ModelError(
            f"the model needs opset {version}; opsets up to {ort.MAX_OPSET} can be read. "
            "Export it again with an older opset"
        )
    elif version < CANONICAL_OPSET:
        _convert(model, version)


def _convert(model: ir.Model, version: int) -> None:
    grouped = _group_norms(model) if _OLDEST_ON_IR <= version < 21 else []
    if version < _OLDEST_ON_IR:
        _convert_step(model, version, _OLDEST_ON_IR)
    _convert_step(model, version, CANONICAL_OPSET)
    for node, name in grouped:
        if node.graph is not None and not _is_per_channel(node):
            raise ModelError(
                f"cannot upgrade node '{name}' (GroupNormalization) from opset {version}: "
                "its number of channels is unknown"
            )


def _convert_step(model: ir.Model, original: int, target: int) -> None:
    from onnxscript import version_converter

    with collected_warnings("onnxscript.version_converter") as warnings:
        try:
            version_converter.convert_version(model, target, fallback=True)
        except Exception as error:
            raise ModelError(f"cannot upgrade the model from opset {original}: {_reason(error)}") from error
    failed = [record for record in warnings if record.exc_info or record.getMessage().startswith("Skipping")]
    if failed or model.opset_imports.get("") != target:
        cause = failed[0].exc_info[1] if failed and failed[0].exc_info else None
        reason = _reason(cause) if cause else failed[0].getMessage() if failed else "the converter gave up"
        raise ModelError(f"cannot upgrade the model from opset {original} to {CANONICAL_OPSET}: {reason}")


def _same_operators(model: ir.Model, target: int) -> bool:
    """Whether every standard operator of the model has the same version in its opset and in `target`."""
    for graph in model.graphs():
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
    for graph in model.graphs():
        for node in graph:
            if node.domain == "":
                node.version = version


def _group_norms(model: ir.Model) -> list[tuple[ir.Node, str]]:
    return [
        (node, str(node.name))
        for graph in model.graphs()
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


@contextlib.contextmanager
def collected_warnings(name: str) -> Iterator[list[logging.LogRecord]]:
    """Keeps what a logger and its children say off the screen and in a list."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign,assignment]
    logger = logging.getLogger(name)
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
