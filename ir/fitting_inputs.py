"""Shapes for inputs that say nothing, or little, about theirs: those with which the model runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from .clone import clone
from .errors import GraphwrightError, ModelError
from .inputs import random_inputs
from .static import constant_ints, static_shape

# Operators whose result has the shape of what they read first, as far as hints go.
_KEEPERS = frozenset(
    {"Abs", "Cast", "Clip", "Dropout", "Elu", "Exp", "Gelu", "Identity", "LeakyRelu", "Log", "Neg", "Relu"}
    | {"Sigmoid", "Softmax", "Sqrt", "Tanh", "Add", "Div", "Mul", "Pow", "Sub", "LayerNormalization", "Erf"}
    | {"BatchNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "HardSwish"}
)
_RANKS = (2, 4, 3, 1, 5, 0)
# What dimensions that nothing is known of are tried at: None for the sizes that `random_inputs` takes.
_SIZES = (None, 1, 16, 64, 224)
_TRIALS = 64

Feeds = dict[str, np.ndarray]


@dataclass
class _Hint:
    """What the readers of an input say of its shape.

    Attributes:
        rank: Its rank, None where not known.
        least: The least rank it can have.
        sizes: Sizes by axis; negative axes count from the end.
    """

    rank: int | None = None
    least: int = 0
    sizes: dict[int, int] = field(default_factory=dict)


def fitted(model: ir.Model, run: Callable[[Feeds], object]) -> ir.Model:
    """A copy of a model whose inputs have shapes, known but for named dimensions, that it runs with.

    Args:
        model: Any model; not changed.
        run: Runs the model on one set of inputs; raises a `GraphwrightError` where it does not.

    Raises:
        ModelError: None of the shapes tried works; the line tells the reason for the likeliest.
    """
    copy = clone(model)
    stored = copy.graph.initializers
    inputs = [value for value in copy.graph.inputs if value.name not in stored]
    open_ones = [value for value in inputs if value.shape is None or static_shape(value) is None]
    declared = [value.shape for value in open_ones]
    hints = [_hint(value) for value in open_ones]
    reason: GraphwrightError | None = None
    for shapes in itertools.islice(_candidates(declared, hints), _TRIALS):
        for value, shape in zip(open_ones, shapes, strict=True):
            value.shape = ir.Shape(shape)
        try:
            run(random_inputs(copy))
        except GraphwrightError as error:
            reason = reason or error
            continue
        return copy
    names = ", ".join(f"'{value.name}'" for value in open_ones)
    if not open_ones:
        raise ModelError(f"the model does not run on inputs made up for it: {_tried(run, copy)}")
    raise ModelError(
        f"no shape was found for {names} with which the model runs ({reason}); give inputs of your own "
        "with --inputs X.npz, or sizes with --dim NAME=SIZE"
    )


def _tried(run: Callable[[Feeds], object], model: ir.Model) -> str:
    try:
        run(random_inputs(model))
    except GraphwrightError as error:
        return str(error)
    return "no reason is known"


Shape = list[int | ir.SymbolicDim]


def _candidates(declared: list[ir.Shape | None], hints: list[_Hint]) -> Iterator[list[Shape]]:
    """Shapes for all open inputs, the likeliest first."""
    ranks = [_ranks(shape, hint) for shape, hint in zip(declared, hints, strict=True)]
    alike = list(
        dict.fromkeys(zip(*(itertools.islice(itertools.cycle(each), 6) for each in ranks), strict=True))
    )
    for size in _SIZES:
        for chosen in dict.fromkeys([*alike, *itertools.islice(itertools.product(*ranks), 36)]):
            symbols: dict[str, int] = {}
            yield [
                _shape(shape, rank, hint, size, symbols)
                for shape, rank, hint in zip(declared, chosen, hints, strict=True)
            ]


def _ranks(shape: ir.Shape | None, hint: _Hint) -> list[int]:
    if shape is not None:
        return [len(shape)]
    if hint.rank is not None:
        return [hint.rank]
    return [rank for rank in _RANKS if rank >= hint.least] or [hint.least]


def _shape(
    shape: ir.Shape | None, rank: int, hint: _Hint, size: int | None, symbols: dict[str, int]
) -> Shape:
    wanted = {axis % rank: number for axis, number in hint.sizes.items() if -rank <= axis < rank}
    found: Shape = []
    for axis in range(rank):
        dim = shape[axis] if shape is not None else ir.SymbolicDim(None)
        if isinstance(dim, int):
            found.append(dim)
            continue
        name = dim.value
        number = wanted.get(axis)
        if name is not None and name.isidentifier():
            number = symbols.setdefault(name, number) if number is not None else symbols.get(name)
        spatial = axis >= 2 and rank >= 4
        if number is None and size is not None and (size < 224 or spatial):
            number = size
        found.append(dim if number is None else number)
    return found


def _hint(value: ir.Value) -> _Hint:
    """Look at the readers of an input, and at those behind operators that keep its shape."""
    hint = _Hint()
    seen = {value}
    stack = [value]
    while stack and len(seen) < 64:
        for node, index in stack.pop().uses():
            _read(node, index, hint)
            if node.op_type in _KEEPERS and (index == 0 or node.op_type in ("Add", "Mul", "Sub", "Div")):
                result = node.outputs[0]
                if result not in seen:
                    seen.add(result)
                    stack.append(result)
    return hint


def _read(node: ir.Node, index: int, hint: _Hint) -> None:
    others = [static_shape(other) if other is not None else None for other in node.inputs]
    second = others[1] if len(others) > 1 else None
    op_type = node.op_type
    if op_type == "Conv" and index == 0 and second is not None:
        _learn(hint, len(second), {1: second[1] * node.attributes.get_int("group", 1)})
    elif op_type == "ConvTranspose" and index == 0 and second is not None:
        _learn(hint, len(second), {1: second[0]})
    elif op_type in ("MaxPool", "AveragePool", "LpPool") and index == 0:
        _learn(hint, 2 + len(node.attributes.get_ints("kernel_shape", ()) or ()), {})
    elif op_type == "Gemm" and index == 0 and second is not None:
        across = node.attributes.get_int("transB", 0)
        turned = node.attributes.get_int("transA", 0)
        _learn(hint, 2, {0 if turned else 1: second[1 if across else 0]})
    elif op_type == "MatMul" and index == 0 and second is not None and len(second) >= 2:
        _learn(hint, None, {-1: second[-2]}, 1)
    elif op_type in ("BatchNormalization", "InstanceNormalization", "GroupNormalization") and index == 0:
        if second is not None:
            _learn(hint, None, {1: second[0]}, 2 if op_type == "BatchNormalization" else 3)
    elif op_type in ("LayerNormalization", "RMSNormalization") and index == 0 and second is not None:
        _learn(hint, None, dict(zip(range(-len(second), 0), second, strict=True)), len(second))
    elif op_type in ("Add", "Mul", "Sub", "Div", "PRelu", "Pow") and len(others) == 2:
        other = node.inputs[1 - index]
        shape = others[1 - index]
        if shape is not None and other is not None and other.is_initializer():
            sizes = {axis: size for axis, size in zip(range(-len(shape), 0), shape, strict=True) if size > 1}
            _learn(hint, None, sizes, 0)
    elif op_type == "Reshape" and index == 0:
        target = constant_ints(node.inputs[1])
        if target is not None and 0 not in target:
            # As many elements as it wants, or twice the others where one size is left open.
            _learn(hint, 1, {0: abs(math.prod(target)) * (2 if -1 in target else 1)})
    elif op_type == "Transpose" and index == 0:
        perm = node.attributes.get_ints("perm", None)
        if perm:
            _learn(hint, len(perm), {})


def _learn(hint: _Hint, rank: int | None, sizes: dict[int, int], least: int = 0) -> None:
    if rank is not None:
        hint.rank = hint.rank or rank
    hint.least = max(hint.least, least)
    for axis, size in sizes.items():
        hint.sizes.setdefault(axis, size)
