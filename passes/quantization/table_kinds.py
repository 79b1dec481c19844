"""Whether a quantization table in JSON has entries of the right kinds, before anything is made of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...ir.errors import PassError

_OBJECTS = ("activations", "weights", "weighted", "keeps_float")
_EXAMPLES = {
    "activations": '{"dtype": "uint8", "symmetric": false}',
    "weights": '{"dtype": "int8", "symmetric": true}',
    "weighted": '{"Conv": {}, "MatMul": {"result": "any"}}',
    "keeps_float": '{"Softmax": "the reason"}',
    "Conv": '{"result": "integer", "bias": "int32"}',
}
_LISTS = ("computed", "shared", "tails", "precisions")


def check_kinds(entries: Mapping[str, Any], weighted: type, numbers: type) -> None:
    """Refuse what is no object, list of names, text or switch where it must be one.

    Args:
        entries: The table as JSON gives it.
        weighted: The dataclass that an operator with weights becomes.
        numbers: The one that integers become.

    Raises:
        PassError: The line names the entry.
    """
    where = f"quantization table '{entries.get('name', '?')}'"
    for key in _OBJECTS:
        if not isinstance(entries.get(key, {}), Mapping):
            raise PassError(f"{where}: '{key}' must be an object, such as {_EXAMPLES[key]}")
    for op_type, entry in entries.get("weighted", {}).items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("weights") or {}, Mapping):
            raise PassError(
                f"{where}: '{op_type}' of 'weighted' must be an object, such as {_EXAMPLES['Conv']}"
            )
        _check_keys(entry, weighted, f"{where}: '{op_type}' of 'weighted'")
        _check_keys(entry.get("weights") or {}, numbers, f"{where}: 'weights' of '{op_type}'")
    for key in ("activations", "weights"):
        _check_keys(entries.get(key, {}), numbers, f"{where}: '{key}'")
    if not isinstance(entries.get("name", ""), str):
        raise PassError(f"{where}: 'name' must be a text")
    for key in _LISTS:
        each = entries.get(key, [])
        if (
            isinstance(each, str)
            or not isinstance(each, Sequence)
            or not all(isinstance(n, str) for n in each)
        ):
            raise PassError(f"{where}: '{key}' must be a list of names")


def _check_keys(entry: Mapping[str, Any], kind: type, where: str) -> None:
    """Refuse entries that there are not, and texts where a switch must stand."""
    known = {each.name: each.type for each in dataclasses.fields(kind)}
    for key, value in entry.items():
        if key not in known:
            raise PassError(f"{where} has an unknown entry '{key}'; entries are: {', '.join(known)}")
        if known[key] == "bool" and not isinstance(value, bool):
            raise PassError(f"{where}: '{key}' must be true or false, not {json.dumps(value)}")
