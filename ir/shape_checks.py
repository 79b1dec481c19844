"""Contradictions between the shapes of one node that shape inference does not complain about.

The rules of `onnx-shape-inference` leave an impossible broadcast or permutation unknown and never compare
channels with weights. A rewrite that prunes one side of such a pair must hear of it at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx_ir as ir

Shape = Sequence[int | ir.SymbolicDim]


def contradiction(node: ir.Node) -> str | None:
    """What is impossible about the shapes around `node`, None if nothing is (or too little is known)."""
    check = None if node.domain else _CHECKS.get(node.op_type)
    try:
        return None if check is None else check(node)
    except (TypeError, ValueError):  # an attribute of another type: the verifier's business
        return None


def _shape(node: ir.Node, index: int) -> Shape | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.shape is None else value.shape.dims


def _text(shape: Shape) -> str:
    return "[" + ",".join(str(dim) for dim in shape) + "]"


def _differ(a: int | ir.SymbolicDim, b: int | ir.SymbolicDim) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a != b


def _broadcast(node: ir.Node) -> str | None:
    shapes = [s for s in (_shape(node, i) for i in range(len(node.inputs))) if s is not None]
    return _clash(shapes, shapes)


def _clash(parts: Sequence[Shape], shapes: Sequence[Shape]) -> str | None:
    """Whether `parts` of `shapes` do not broadcast."""
    sizes: list[int] = [1] * max((len(part) for part in parts), default=0)
    for part in parts:
        for axis, dim in enumerate(reversed(part)):
            if not isinstance(dim, int) or dim in (1, sizes[axis]):
                continue
            if sizes[axis] != 1:
                return f"shapes {' and '.join(_text(s) for s in shapes)} do not broadcast"
            sizes[axis] = dim
    return None


def _transpose(node: ir.Node) -> str | None:
    shape, perm = _shape(node, 0), node.attributes.get("perm")
    if shape is None or perm is None or perm.is_ref():
        return None
    if sorted(perm.value) != list(range(len(shape))):
        return f"perm {list(perm.value)} does not permute shape {_text(shape)}"
    return None


def _reshape(node: ir.Node) -> str | None:
    before, after = _shape(node, 0), node.outputs[0].shape
    if before is None or after is None or not after.is_static():
        return None
    if any(not isinstance(dim, int) for dim in before):
        return None
    sizes = [math.prod(dim for dim in shape if isinstance(dim, int)) for shape in (before, after)]
    return None if sizes[0] == sizes[1] else f"shape {_text(before)} cannot become {_text(after.dims)}"


def _convolution(node: ir.Node) -> str | None:
    x, w = _shape(node, 0), _shape(node, 1)
    if x is None or w is None:
        return None
    if len(x) != len(w) or len(x) < 3:
        return f"input {_text(x)} and weight {_text(w)} do not fit together"
    group = node.attributes.get_int("group", 1)
    transposed = node.op_type == "ConvTranspose"
    needed = w[0] if transposed else w[1] * group
    if _differ(x[1], needed):
        return f"input {_text(x)} has {x[1]} channels, weight {_text(w)} in {group} groups wants {needed}"
    outputs = w[1] * group if transposed else w[0]
    if isinstance(outputs, int) and outputs % group:
        return f"{outputs} output channels do not divide into {group} groups"
    bias = _shape(node, 2)
    if bias is not None and bias and _differ(bias[0], outputs):
        return f"bias {_text(bias)} does not fit {outputs} output channels"
    kernel = node.attributes.get_ints("kernel_shape", None)
    if kernel is not None and any(_differ(a, b) for a, b in zip(kernel, w[2:], strict=False)):
        return f"kernel_shape {list(kernel)} is not that of weight {_text(w)}"
    return None


def _per_channel(axis: int) -> Callable[[ir.Node], str | None]:
    """All further inputs are vectors along `axis` of the first."""

    def check(node: ir.Node) -> str | None:
        x = _shape(node, 0)
        if x is None or len(x) <= axis:
            return None
        for index in range(1, len(node.inputs)):
            vector = _shape(node, index)
            if vector is not None and len(vector) == 1 and _differ(vector[0], x[axis]):
                value = node.inputs[index]
                name = "" if value is None else value.name
                return f"'{name}' {_text(vector)} does not fit the {x[axis]} channels of {_text(x)}"
        return None

    return check


def _concat(node: ir.Node) -> str | None:
    axis = node.attributes.get_int("axis", 0)
    shapes = [s for s in (_shape(node, i) for i in range(len(node.inputs))) if s is not None]
    if not shapes:
        return None
    first = shapes[0]
    axis %= max(len(first), 1)
    for shape in shapes[1:]:
        if any(_differ(a, b) for i, (a, b) in enumerate(zip(first, shape, strict=False)) if i != axis):
            return f"shapes {_text(first)} and {_text(shape)} differ outside axis {axis}"
    return None


def _matmul(node: ir.Node) -> str | None:
    a, b = _shape(node, 0), _shape(node, 1)
    if not a or not b:
        return None
    if _differ(a[-1], b[-2] if len(b) > 1 else b[0]):
        return f"shapes {_text(a)} and {_text(b)} do not multiply"
    return _clash([a[:-2], b[:-2]], [a, b])


def _gemm(node: ir.Node) -> str | None:
    a, b = _shape(node, 0), _shape(node, 1)
    if a is not None and b is not None:
        turned = [node.attributes.get_int(name, None) not in (None, 0) for name in ("transA", "transB")]
        if len(a) != 2 or len(b) != 2 or _differ(a[0 if turned[0] else 1], b[1 if turned[1] else 0]):
            return f"shapes {_text(a)} and {_text(b)} do not multiply"
    bias, out = _shape(node, 2), node.outputs[0].shape
    if bias is None or out is None:
        return None
    pairs = zip(reversed(bias), reversed(out.dims), strict=False)
    if len(bias) > 2 or any(_differ(a, b) and a != 1 for a, b in pairs):
        return f"bias {_text(bias)} does not broadcast to {_text(out.dims)}"
    return None


_ELEMENT_WISE = (
    *("Add", "Sub", "Mul", "Div", "Mod", "Pow", "Max", "Min", "Mean", "Sum", "Where", "PRelu"),
    *("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor"),
    *("BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor"),
)

_CHECKS: dict[str, Callable[[ir.Node], str | None]] = {
    **dict.fromkeys(_ELEMENT_WISE, _broadcast),
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "ConvTranspose": _convolution,
    "BatchNormalization": _per_channel(1),
    "InstanceNormalization": _per_channel(1),
    "Concat": _concat,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
