"""What a kernel has to do, as one line of text: the key under which tuning records are kept.

The line names operators, shapes, types, layouts and the class of the epilogue, but no model and no node, so
that models share records. Numbers that only enter the arithmetic (scales, epsilons) are left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .layout import Layout
from .spec import External, GroupSpec, Member, Ref

_DEFAULTS = {"auto_pad": "NOTSET", "group": 1, "ceil_mode": 0, "storage_order": 0, "transA": 0, "transB": 0}
_SHORT = {"float32": "f32", "float16": "f16", "float64": "f64", "bfloat16": "bf16"}


def workload_key(spec: GroupSpec) -> str:
    """The key of a group that is built around an anchor; "" for groups without one."""
    if spec.anchor < 0:
        return ""
    parts = [_member(spec, member) for member in spec.members]
    parts[spec.anchor] = f"[{parts[spec.anchor]}]"
    return " ".join(parts) + f" -> {_type(spec.out_type.shape, spec.out_type.dtype)}{_layout(spec.layout)}"


def _member(spec: GroupSpec, member: Member) -> str:
    inputs = ",".join(_input(spec, ref) for ref in member.inputs)
    attributes = ",".join(
        f"{name}={_text(value)}"
        for name, value in sorted(member.op.attributes.items())
        if not isinstance(value, float | np.ndarray) and not _is_default(name, value)
    )
    return f"{member.op.type}({inputs}{';' if attributes else ''}{attributes})"


def _is_default(name: str, value: Any) -> bool:
    """Whether an attribute says what its absence says as well."""
    if name in ("strides", "dilations"):
        return all(each == 1 for each in value)
    if name == "pads":
        return not any(value)
    return name in _DEFAULTS and value == _DEFAULTS[name]


def _input(spec: GroupSpec, ref: Ref | None) -> str:
    if ref is None:
        return "-"
    if not ref.is_external:
        return f"#{ref.member}"
    external = spec.externals[ref.external]
    return _external(external)


def _external(external: External) -> str:
    mark = "*" if external.constant else ""
    return f"{mark}{_type(external.type.shape, external.type.dtype)}{_layout(external.layout)}"


def _type(shape: tuple[int, ...], dtype: str) -> str:
    return f"{_SHORT.get(dtype, dtype)}[{'x'.join(map(str, shape))}]"


def _layout(layout: Layout) -> str:
    return "@last" if layout.channels_last else ""


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
