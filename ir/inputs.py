"""Inputs to try a model on: random ones, and those that break things."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from .constants import constant_array
from .errors import ModelError

# Operators that hand integer inputs on unchanged, so that what reads their result bounds the input.
_CARRIERS = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile"}
    | {"Transpose", "Unsqueeze", "Where", "Mod"}
)
# Which inputs are sizes or counts: 1 is the value that is nearly always legal.
_SIZES = {
    "Reshape": {1},
    "Expand": {1},
    "Tile": {1},
    "ConstantOfShape": {0},
    "TopK": {1},
    "Range": {0, 1, 2},
    "Resize": {3},
    "Loop": {0},
}
# Which inputs are positions in a sequence, which may be short.
_POSITIONS = {"SequenceAt": 1, "SequenceErase": 1, "SequenceInsert": 2}
_UNBOUNDED_HIGH = 10
_WORDS = ("", "a", "B", "graph", "wright", "0", "-1.5", "two words")


def random_inputs(model: ir.Model, seed: int = 0, *, dims: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Seeded random values for every input that has no default.

    Floats are standard normal. Integers that index a table (Gather, as in an embedding) stay inside it, masks
    (by name, cast to bool, or subtracted from one) are 0 or 1, divisors never 0, other 64- and 32-bit ones
    are 0 to 9, narrower ones use their whole range; booleans are fair coins. Strings are words, sequences
    hold three tensors.

    Args:
        model: the model; symbolic dimensions may remain.
        seed: each input draws from its own stream, by seed and name.
        dims: sizes of symbolic dimensions; others get `default_dims`.

    Raises:
        ModelError: an input has an unknown rank, or is of a type that cannot be made up.
    """
    shapes = input_shapes(model, dims)
    return {
        name: _random_value(value, shapes[name], np.random.default_rng([seed, zlib.crc32(name.encode())]))
        for name, value in _inputs(model).items()
    }


def edge_inputs(
    model: ir.Model, *, dims: Mapping[str, int] | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """Named sets of unusual inputs: all finite and legal, so that a model has a defined result for each.

    Float inputs are zero, one, negative, large, tiny (normal but near the smallest), denormal, alternating in
    sign; integers stay in the range known for them (first, last, ...).

    Raises:
        ModelError: as for `random_inputs`.
    """
    shapes = input_shapes(model, dims)
    fills: list[tuple[str, Callable[[np.ndarray, np.dtype], np.ndarray], str]] = [
        ("zeros", lambda noise, dtype: np.zeros_like(noise), "low"),
        ("ones", lambda noise, dtype: np.ones_like(noise), "one"),
        ("negative", lambda noise, dtype: -np.abs(noise), "low"),
        ("large", lambda noise, dtype: noise * 1e3, "high"),
        ("tiny", lambda noise, dtype: np.sign(noise) * 4 * _smallest_normal(dtype), "low"),
        ("denormal", lambda noise, dtype: np.sign(noise) * _smallest_normal(dtype) / 4, "low"),
        ("alternating", lambda noise, dtype: _alternating(noise.shape), "alternating"),
    ]
    cases: list[tuple[str, dict[str, Any]]] = []
    for label, fill, choice in fills:
        feeds: dict[str, Any] = {}
        for name, value in _inputs(model).items():
            if not _is_numbers(value):
                feeds[name] = _random_value(value, shapes[name], np.random.default_rng(len(cases)))
                continue
            dtype = _numpy_dtype(value)
            if _is_float(dtype):
                noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shapes[name])
                feeds[name] = np.asarray(fill(noise, dtype)).astype(dtype)
            else:
                feeds[name] = _edge_integers(value, dtype, shapes[name], choice)
        cases.append((label, feeds))
    return cases


def input_shapes(model: ir.Model, dims: Mapping[str, int] | None = None) -> dict[str, tuple[int, ...]]:
    """A concrete shape per input; equal symbolic dimensions get equal sizes.

    A symbolic dimension not in `dims` is 2 as the first axis, 32 as a spatial axis (third or later of four or
    more), else 8. Expressions of symbols ("2*s") are evaluated.

    Raises:
        ModelError: an input has an unknown rank, or is of a type that cannot be made up.
    """
    sizes = dict(dims or {})
    declared: dict[str, ir.Shape] = {}
    for name, value in _inputs(model).items():
        if not (_is_numbers(value) or _is_strings(value) or _is_sequence(value)):
            raise ModelError(
                f"input '{name}' has type {value.type}, which cannot be made up; feed it from Python"
            )
        if value.shape is None:
            raise ModelError(f"input '{name}' has no shape; feed it yourself")
        declared[name] = value.shape
    for shape in declared.values():
        for axis, dim in enumerate(shape):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None and dim.value.isidentifier():
                sizes.setdefault(dim.value, _default_size(axis, len(shape)))
    return {
        name: tuple(_size(dim, _default_size(axis, len(shape)), sizes) for axis, dim in enumerate(shape))
        for name, shape in declared.items()
    }


def _inputs(model: ir.Model) -> dict[str, ir.Value]:
    stored = model.graph.initializers
    return {str(value.name): value for value in model.graph.inputs if value.name not in stored}


def _default_size(axis: int, rank: int) -> int:
    if axis == 0:
        return 2
    return 32 if rank >= 4 and axis >= 2 else 8


def _size(dim: int | ir.SymbolicDim, default: int, sizes: dict[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if dim.value is None:
        return default
    if dim.value in sizes:
        return sizes[dim.value]
    symbols = _symbols(dim)
    if not symbols:
        # A name that is no expression, such as "batch size".
        return sizes.setdefault(dim.value, default)
    for symbol in symbols:
        sizes.setdefault(symbol, default)
        size = dim.evaluate(sizes)
    if not isinstance(size, int) or size < 0:
        raise ModelError(
            f"dimension '{dim.value}' has no valid size with {sizes}; give its symbols in `dims`"
        )
    return size


def _symbols(dim: ir.SymbolicDim) -> list[str]:
    try:
        return sorted(dim.free_symbols())
    except ValueError:
        return []


def _numpy_dtype(value: ir.Value) -> np.dtype:
    if not isinstance(value.type, ir.TensorType) or value.dtype in (None, ir.DataType.STRING):
        raise ModelError(
            f"input '{value.name}' has type {value.type}; only tensors of numbers can be made up"
        )
    return np.dtype(value.dtype.numpy())


def _is_numbers(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype not in (None, ir.DataType.STRING)


def _is_strings(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype == ir.DataType.STRING


def _is_sequence(value: ir.Value) -> bool:
    return (
        isinstance(value.type, ir.SequenceType)
        and isinstance(value.type.elem_type, ir.TensorType)
        and value.dtype not in (None, ir.DataType.STRING)
    )


def _is_float(dtype: np.dtype) -> bool:
    # ml_dtypes kinds are "V" or "f"; its integers are the ones whose name says so.
    return dtype.kind in "fc" or (dtype.kind == "V" and "int" not in dtype.name)


def _is_sub_byte_integer(dtype: np.dtype) -> bool:
    return "int" in dtype.name and dtype.kind not in "iu"


def _random_value(value: ir.Value, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """What a graph input may be fed with: an array, or a list of three for a sequence."""
    if _is_strings(value):
        return rng.choice(np.array(_WORDS, dtype=object), size=shape)
    if _is_sequence(value):
        assert value.dtype is not None
        kind = np.dtype(value.dtype.numpy())
        noise = [
            rng.standard_normal(shape) if _is_float(kind) else rng.integers(0, 2, shape) for _ in range(3)
        ]
        return [each.astype(kind) for each in noise]
    return _random(value, shape, rng)


def _random(value: ir.Value, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    dtype = _numpy_dtype(value)
    if _is_float(dtype):
        return rng.standard_normal(shape).astype(dtype)
    low, high = integer_range(value)
    return rng.integers(low, high, size=shape, dtype=np.int64, endpoint=True).astype(dtype)


def _edge_integers(value: ir.Value, dtype: np.dtype, shape: tuple[int, ...], choice: str) -> np.ndarray:
    low, high = integer_range(value)
    if choice == "alternating":
        flat = np.where(np.arange(int(np.prod(shape))) % 2 == 0, low, high)
        return flat.reshape(shape).astype(dtype)
    number = {"low": low, "high": high, "one": min(max(1, low), high)}[choice]
    return np.full(shape, number).astype(dtype)


def integer_range(value: ir.Value) -> tuple[int, int]:
    """The lowest and highest integer that is sensible for an input, both included."""
    dtype = _numpy_dtype(value)
    if dtype.kind == "b":
        return 0, 1
    readers = _readers(value)
    if any(index in _SIZES.get(node.op_type, ()) for node, index in readers):
        return 1, 1
    if any(_POSITIONS.get(node.op_type) == index for node, index in readers):
        return 0, 0
    if any(node.op_type in ("Div", "Mod") and index == 1 for node, index in readers):
        return 1, _UNBOUNDED_HIGH - 1
    bounds = [bound for node, index in readers if (bound := _index_bound(node, index)) is not None]
    if bounds:
        return 0, max(0, min(bounds) - 1)
    if "mask" in str(value.name).lower() or any(_is_truth(node, index) for node, index in readers):
        return 0, 1
    if _is_sub_byte_integer(dtype):
        bits = int("".join(filter(str.isdigit, dtype.name)))
        return (0, 2**bits - 1) if dtype.name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if dtype.itemsize <= 2:
        info = np.iinfo(dtype)
        return int(info.min), int(info.max)
    return 0, _UNBOUNDED_HIGH - 1


def _readers(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Nodes that read a value, directly or through operators that only carry integers along."""
    found: list[tuple[ir.Node, int]] = []
    seen = {value}
    stack = [value]
    while stack:
        for node, index in stack.pop().uses():
            found.append((node, index))
            if node.op_type not in _CARRIERS or index in _SIZES.get(node.op_type, ()):
                continue
            for output in node.outputs:
                if output not in seen:
                    seen.add(output)
                    stack.append(output)
    return found


def _is_truth(node: ir.Node, index: int) -> bool:
    """Whether an operand is read as true or false: cast to bool, or subtracted from one."""
    if node.op_type == "Sub" and index == 1 and node.inputs[0] is not None:
        whole = _behind_casts(node.inputs[0])
        return whole is not None and whole.size == 1 and whole.item() == 1
    return node.op_type == "Cast" and node.attributes.get_int("to", 0) == int(ir.DataType.BOOL)


def _behind_casts(value: ir.Value) -> np.ndarray | None:
    """The single number that a value is, in whatever type it was written down."""
    node = value.producer()
    while (
        node is not None and node.op_type in ("Cast", "CastLike", "Identity") and node.inputs[0] is not None
    ):
        value = node.inputs[0]
        node = value.producer()
    return constant_array(value, 1)


def _index_bound(node: ir.Node, index: int) -> int | None:
    """How many entries input `index` of `node` can point at, if it is an index and that is known."""
    if index != 1 or not node.inputs or node.inputs[0] is None:
        return None
    if node.op_type not in ("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"):
        return None
    shape = node.inputs[0].shape
    if shape is None:
        stored = constant_array(node.inputs[0])
        if stored is None:
            return None
        shape = ir.Shape(stored.shape)
    if node.op_type in ("GatherND", "ScatterND"):
        known = [dim for dim in shape if isinstance(dim, int)]
        return min(known) if known else None
    axis = node.attributes.get_int("axis", 0)
    dim = shape[axis] if -len(shape) <= axis < len(shape) else None
    return dim if isinstance(dim, int) else None


def _smallest_normal(dtype: np.dtype) -> float:
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).smallest_normal)


def _alternating(shape: tuple[int, ...]) -> np.ndarray:
    signs = np.where(np.arange(int(np.prod(shape))) % 2 == 0, 1.0, -1.0)
    return signs.reshape(shape)
