"""Contents of small integer tensors, followed through operators where `onnx-shape-inference` loses them.

Exporters compute shapes with tensors: `Where(Equal(shape, -1), ones, shape)` is how `expand` looks, and zeros
are made by expanding a scalar to `Shape(x)`. Unless the elements of those tensors are followed, every shape
after them is unknown. Each rule here runs after the library's own rule for its operator and adds elements.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import onnx_ir as ir
import onnx_shape_inference as osi

Element = int | ir.SymbolicDim
Rule = Callable[[Any, ir.Node], None]

_MOST_ELEMENTS = 64


def install() -> None:
    """Put the rules behind those of the library's registry, or in their place (once)."""
    for op_type, rule in _RULES.items():
        _wrap(op_type, functools.partial(_chained, rule))
    for op_type, rule in _WHERE_OPERAND_IS_UNKNOWN.items():
        _wrap(op_type, functools.partial(_replaced, rule))
    _wrap("Loop", _without_condition)
    osi.registry.register("", "ConstantOfShape", since_version=9)(_constant_of_shape)


def _wrap(op_type: str, wrapper: Callable[[Rule], Rule]) -> None:
    for version in sorted(set(osi.registry.version_boundaries("", op_type))):
        base = osi.registry.get("", op_type, version=version)
        assert base is not None
        osi.registry.register("", op_type, since_version=version)(wrapper(base))


def _chained(rule: Rule, base: Rule) -> Rule:
    @functools.wraps(base)
    def both(context: Any, node: ir.Node) -> None:
        base(context, node)
        if node.outputs:
            rule(context, node)

    return both


def _replaced(rule: Rule, base: Rule) -> Rule:
    """`rule` where the second operand is given but its elements are not known, else `base`."""

    @functools.wraps(base)
    def either(context: Any, node: ir.Node) -> None:
        operand = node.inputs[1] if len(node.inputs) > 1 else None
        unknown = operand is not None and ir.convenience.get_const_tensor(operand) is None
        (rule if unknown else base)(context, node)

    return either


def _without_condition(base: Rule) -> Rule:
    """The library insists on a condition for Loop; the standard lets it be left out, and means true."""

    @functools.wraps(base)
    def rule(context: Any, node: ir.Node) -> None:
        limit, condition, *carried = [*node.inputs, None, None][: max(2, len(node.inputs))]
        given = [limit, ir.Value(name="true") if condition is None else condition, *carried]
        seen = SimpleNamespace(inputs=given, outputs=node.outputs, attributes=node.attributes, name=node.name)
        base(context, cast(ir.Node, seen))

    return rule


def _elements(context: Any, node: ir.Node, index: int) -> list[Element] | None:
    """Known elements of an input of rank 0 or 1."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.shape is None or len(value.shape) > 1:
        return None
    known = context.get_symbolic_value(value)
    if known is None and value.dtype == ir.DataType.BOOL:
        tensor = ir.convenience.get_const_tensor(value)
        known = None if tensor is None else [int(x) for x in tensor.numpy().reshape(-1)]
    return None if known is None or len(known) > _MOST_ELEMENTS else list(known)


def _output_length(node: ir.Node) -> int | None:
    """Number of elements of the output, None if unknown, large or of rank 2 and more."""
    shape = node.outputs[0].shape
    if shape is None or len(shape) > 1 or not shape.is_static():
        return None
    length = math.prod(shape.numpy())
    return length if length <= _MOST_ELEMENTS else None


def _set(context: Any, node: ir.Node, elements: Sequence[Element]) -> None:
    if _output_length(node) == len(elements):
        context.set_symbolic_value(node.outputs[0], list(elements))


def _expand(context: Any, node: ir.Node) -> None:
    data, length = _elements(context, node, 0), _output_length(node)
    if data is not None and length is not None and len(data) in (1, length):
        _set(context, node, data * (length // len(data)) if len(data) == 1 else data)


def _constant_of_shape(context: Any, node: ir.Node) -> None:
    output, filler = node.outputs[0], node.attributes.get("value")
    dtype = ir.DataType.FLOAT if filler is None else filler.value.dtype
    shape = _elements(context, node, 0)
    context.set_shape_and_dtype(output, None if shape is None else ir.Shape(shape), dtype)
    length = _output_length(node)
    if length is not None and filler is not None and dtype in (ir.DataType.INT64, ir.DataType.INT32):
        _set(context, node, [int(filler.value.numpy().reshape(-1)[0])] * length)


def _paired(context: Any, node: ir.Node, combine: Callable[[Element, Element], Element | None]) -> None:
    """Combine the elements of two inputs, the shorter of them repeated if it has only one."""
    a, b = _elements(context, node, 0), _elements(context, node, 1)
    if not a or not b or (len(a) != len(b) and 1 not in (len(a), len(b))):
        return
    length = max(len(a), len(b))
    pairs = zip(a * (length // len(a)), b * (length // len(b)), strict=True)
    combined = [combine(x, y) for x, y in pairs]
    known = [element for element in combined if element is not None]
    if len(known) == length:
        _set(context, node, known)


def _equal(context: Any, node: ir.Node) -> None:
    def combine(x: Element, y: Element) -> Element | None:
        if isinstance(x, int) and isinstance(y, int):
            return int(x == y)
        if isinstance(x, int) or isinstance(y, int):
            number, dim = (x, y) if isinstance(x, int) else (y, x)
            assert not isinstance(dim, int)
            return 0 if isinstance(number, int) and number < 0 and _non_negative(context, dim) else None
        return 1 if x.value is not None and x == y else None

    _paired(context, node, combine)


def _divide(context: Any, node: ir.Node) -> None:
    def combine(x: Element, y: Element) -> Element | None:
        if not isinstance(y, int) or y <= 0:
            return None
        if isinstance(x, int):
            return x // y if x >= 0 else -(-x // y)
        return x // y if _non_negative(context, x) else None

    if node.outputs[0].dtype in (ir.DataType.INT64, ir.DataType.INT32):
        _paired(context, node, combine)


def _where(context: Any, node: ir.Node) -> None:
    chosen, yes, no = (_elements(context, node, index) for index in range(3))
    length = _output_length(node)
    if not chosen or not yes or not no or length is None:
        return
    if any(not isinstance(c, int) for c in chosen) or {len(chosen), len(yes), len(no)} - {1, length}:
        return
    rows = zip(*(part * (length // len(part)) for part in (chosen, yes, no)), strict=True)
    _set(context, node, [a if flag else b for flag, a, b in rows])


def _range(context: Any, node: ir.Node) -> None:
    bounds = [_elements(context, node, index) for index in range(3)]
    numbers = [b[0] for b in bounds if b and isinstance(b[0], int)]
    if len(numbers) == 3 and numbers[2] != 0:
        found = range(*numbers)
        if len(found) <= _MOST_ELEMENTS:
            _set(context, node, list(found))


def _product(context: Any, node: ir.Node) -> None:
    data = _elements(context, node, 0)
    if data is None or _output_length(node) != 1:
        return
    total: Element = 1
    for element in data:
        total = element * total
    _set(context, node, [total])


def _split_to_sequence(context: Any, node: ir.Node) -> None:
    """The shape of the parts, where they are all of one size."""
    data = node.inputs[0]
    if data is None or data.shape is None:
        return
    axis = node.attributes.get_int("axis", 0) % len(data.shape)
    dims = list(data.shape)
    whole, split = dims[axis], _elements(context, node, 1)
    if split is None and len(node.inputs) == 1:
        dims[axis : axis + 1] = [1] if node.attributes.get_int("keepdims", 1) else []
    elif split and isinstance(whole, int) and all(part == split[0] for part in split):
        if len(split) == 1 and isinstance(split[0], int) and whole % split[0]:
            return
        dims[axis] = split[0]
    else:
        return
    context.set_shape(node.outputs[0], ir.Shape(dims))


def _sequence_at(context: Any, node: ir.Node) -> None:
    sequence = node.inputs[0]
    if sequence is not None and sequence.shape is not None:
        context.set_shape(node.outputs[0], sequence.shape)


def _non_negative(context: Any, dim: ir.SymbolicDim) -> bool:
    """Whether a dimension is at least 0 for all sizes of its symbols.

    Symbols made up by the library may stand for any element of a tensor, -1 among them.
    """
    text = dim.value
    if text is None:
        return False
    if text.isidentifier():
        return not context.is_generated_symbol(text)
    try:
        symbols = dim.free_symbols()
    except ValueError:
        return False
    expression: Any = dim._expr
    return bool(expression.is_nonnegative) and not any(map(context.is_generated_symbol, symbols))


def _split_at_run_time(context: Any, node: ir.Node) -> None:
    data = node.inputs[0]
    if data is None:
        return
    for output in node.outputs:
        dims = None if data.shape is None else list(data.shape)
        if dims is not None:
            dims[node.attributes.get_int("axis", 0)] = context.new_symbolic_dim()
        context.set_shape_and_dtype(output, None if dims is None else ir.Shape(dims), data.dtype)


def _squeeze_at_run_time(context: Any, node: ir.Node) -> None:
    data, axes = node.inputs[0], node.inputs[1]
    if data is None or axes is None:
        return
    count = None if axes.shape is None or len(axes.shape) != 1 else axes.shape[0]
    rank = len(data.shape) - count if data.shape is not None and isinstance(count, int) else None
    context.set_shape_and_dtype(node.outputs[0], _of_rank(context, rank), data.dtype)


def _reduce_at_run_time(context: Any, node: ir.Node) -> None:
    data = node.inputs[0]
    if data is None:
        return
    keeps = data.shape is not None and node.attributes.get_int("keepdims", None) != 0
    rank = len(data.shape) if data.shape is not None and keeps else None
    context.set_shape_and_dtype(node.outputs[0], _of_rank(context, rank), data.dtype)


def _of_rank(context: Any, rank: int | None) -> ir.Shape | None:
    return None if rank is None else ir.Shape([context.new_symbolic_dim() for _ in range(rank)])


def _unique(context: Any, node: ir.Node) -> None:
    """With an axis the result keeps its rank; the library makes a vector of it."""
    axis, data, output = node.attributes.get("axis"), node.inputs[0], node.outputs[0]
    if axis is None or data is None or data.shape is None or len(data.shape) == len(output.shape or ()):
        return
    dims: list[Element] = list(data.shape)
    dims[axis.value] = output.shape[0] if output.shape else context.new_symbolic_dim()
    output.shape = ir.Shape(dims)


_RULES: dict[str, Rule] = {
    "Expand": _expand,
    "Equal": _equal,
    "Div": _divide,
    "Where": _where,
    "Range": _range,
    "ReduceProd": _product,
    "SplitToSequence": _split_to_sequence,
    "SequenceAt": _sequence_at,
    "Unique": _unique,
}
"""Run after the library's rule."""

_REDUCTIONS = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")

_WHERE_OPERAND_IS_UNKNOWN: dict[str, Rule] = {
    "Split": _split_at_run_time,
    "Squeeze": _squeeze_at_run_time,
    **dict.fromkeys((f"Reduce{name}" for name in _REDUCTIONS), _reduce_at_run_time),
}
"""Run instead of the library's rule, which takes an unknown operand for one left out."""
