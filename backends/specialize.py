"""From one model to a version for each batch size, and the proof that a batch may be cut into pieces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ..ir.clone import clone
from ..ir.errors import CompileError, GraphwrightError, ModelError
from ..ir.inputs import random_inputs
from ..ir.reference import Reference
from ..ir.shapes import bind_dims, infer_shapes
from ..ir.static import static_shape
from ..ir.symbols import input_symbols
from ..passes.rewriter import Rewriter
from .batches import NO_BATCH, Batches
from .checking import check_against_reference

_SYMBOL = "batch"
_SAMPLE = 3
"""A batch size to find out with where the batch stands in outputs: hardly ever the size of anything else."""


@dataclass(frozen=True)
class Specialized:
    """A model for several batch sizes.

    Attributes:
        batches: the sizes.
        models: the graph for each size; every shape fixed that does not depend on anything else.
    """

    batches: Batches
    models: Mapping[int, ir.Model]


def free_batch(model: ir.Model) -> str:
    """Make sure that the leading dimension of the inputs is one symbol, in place, and return its name.

    Where all of them are the same number, as in a model exported for one image, a symbol takes its place if
    the model still computes the same rows then.

    Raises:
        CompileError: the leading dimensions differ, or the model has its batch size built in.
    """
    inputs = _inputs(model)
    leading = {value.name: value.shape[0] for value in inputs if value.shape is not None and len(value.shape)}
    symbols = {str(dim.value): name for name, dim in leading.items() if not isinstance(dim, int)}
    if len(symbols) > 1:
        (first, one), (second, other) = list(symbols.items())[:2]
        raise CompileError(
            f"batch sizes are for one dimension, but input '{one}' begins with '{first}' and input '{other}' "
            f"with '{second}'; fix one of them with --dim"
        )
    if symbols:
        symbol = next(iter(symbols))
        if not symbol.isidentifier():
            raise CompileError(
                f"input '{symbols[symbol]}' begins with '{symbol}', which is no plain dimension"
            )
        return symbol
    everywhere = input_symbols(model)
    if len(everywhere) == 1:
        return next(iter(everywhere))
    numbers = {dim for dim in leading.values() if isinstance(dim, int)}
    if len(numbers) != 1:
        what = "no input has a dimension" if not numbers else "the inputs begin with different sizes"
        raise CompileError(
            f"batch sizes need a batch dimension: {what}; export with a dynamic batch dimension"
        )
    _free(model, [value for value in inputs if value.name in leading], numbers.pop())
    return _SYMBOL


def specialize(
    model: ir.Model,
    symbol: str,
    sizes: Sequence[int],
    refine: Callable[[ir.Model], ir.Model],
    *,
    seed: int = 0,
) -> Specialized:
    """A graph for each batch size, and whether rows are independent.

    Args:
        model: the optimized model; not changed.
        symbol: its batch dimension.
        sizes: in ascending order.
        refine: passes that profit from known shapes; gets a graph to use up.
        seed: of the inputs for the proof.

    Raises:
        ShapeError: a size contradicts the model.
        CompileError: no input has the dimension any more.
    """
    models = {size: refine(_bound(model, symbol, size)) for size in sizes}
    batches = _batches(model, symbol, tuple(sizes))
    refusal = _why_whole(batches, model) or _why_dependent(model, batches, seed)
    return Specialized(replace(batches, refusal=refusal), models)


def batch_feeds(model: ir.Model, symbol: str, size: int, seed: int) -> dict[str, np.ndarray]:
    """Random inputs for a batch size."""
    return random_inputs(model, seed=seed, dims={symbol: size})


def _bound(model: ir.Model, symbol: str, size: int) -> ir.Model:
    bound = clone(model)
    bind_dims(bound, {symbol: size})
    return bound


def _free(model: ir.Model, inputs: Sequence[ir.Value], number: int) -> None:
    """Put the symbol in place of the number, and prove that rows stay what they were."""
    original = clone(model)
    for value in inputs:
        assert value.shape is not None
        value.shape = ir.Shape([ir.SymbolicDim(_SYMBOL), *value.shape[1:]])
    _free_reshapes(model, number)
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    rows = 2 * number
    try:
        infer_shapes(model)
        feeds = batch_feeds(model, _SYMBOL, rows, 0)
        whole = Reference(model).run(feeds)
        before = Reference(original)
        for start in range(0, rows, number):
            part = before.run({name: array[start : start + number] for name, array in feeds.items()})
            for name, array in part.items():
                same = whole[name][start : start + number]
                if same.shape != array.shape or not _close(same, array):
                    raise ModelError(f"output '{name}' is another one in a batch of {rows}")
    except GraphwrightError as error:
        raise CompileError(
            f"the model is made for batches of {number}: {error}; export it with a dynamic batch dimension"
        ) from None


def _free_reshapes(model: ir.Model, number: int) -> None:
    """Where a tensor begins with the batch before and after, as in `x.view(1, -1)`, keep whatever it is."""
    rewriter = Rewriter(model, origin="batch sizes")
    for node in list(model.graph):
        if node.op_type != "Reshape" or node.domain not in ("", "ai.onnx"):
            continue
        before, after = (static_shape(value) for value in (node.inputs[0], node.outputs[0]))
        if before and after and before[0] == after[0] == number and 0 not in after:
            rewriter.set_input(node, 1, rewriter.initializer("shape", np.array([0, *after[1:]], np.int64)))
            rewriter.set_attribute(node, "allowzero", 0)


def _close(found: np.ndarray, expected: np.ndarray) -> bool:
    if expected.dtype.kind in "biu":
        return bool(np.array_equal(found, expected))
    wide = np.asarray(expected, np.float64)
    scale = float(np.abs(wide).max(initial=0.0))
    return bool(
        np.allclose(np.asarray(found, np.float64), wide, rtol=0, atol=1e-4 * scale + 1e-30, equal_nan=True)
    )


def _batches(model: ir.Model, symbol: str, sizes: tuple[int, ...]) -> Batches:
    """Where the batch stands in inputs and outputs."""
    if symbol not in input_symbols(model):
        raise CompileError(f"after the passes no input has the dimension '{symbol}' any more")
    sample, twice = (_bound(model, symbol, size) for size in (_SAMPLE, 2 * _SAMPLE))
    inputs = zip(_inputs(sample), _inputs(twice), strict=True)
    outputs = zip(sample.graph.outputs, twice.graph.outputs, strict=True)
    return Batches(
        symbol,
        sizes,
        tuple(_axis(f"input '{a.name}'", a, b) for a, b in inputs),
        tuple(_axis(f"output '{a.name}'", a, b) for a, b in outputs),
    )


def _inputs(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def _axis(what: str, sample: ir.Value, twice: ir.Value) -> int:
    """The axis that has the size of the batch; `NO_BATCH` if none depends on it, or several do."""
    if sample.shape is None or twice.shape is None:
        return NO_BATCH
    changed = [axis for axis, (a, b) in enumerate(zip(sample.shape, twice.shape, strict=True)) if a != b]
    if what.startswith("input") and (
        len(changed) > 1 or any(sample.shape[axis] != _SAMPLE for axis in changed)
    ):
        raise CompileError(f"{what} depends on the batch size in more than one plain dimension")
    return changed[0] if len(changed) == 1 and sample.shape[changed[0]] == _SAMPLE else NO_BATCH


def _why_whole(batches: Batches, model: ir.Model) -> str:
    """Why batches cannot be cut up at all; "" if their layout allows it."""
    for value, axis in zip(_inputs(model), batches.input_axes, strict=True):
        if axis > 0:
            return (
                f"input '{value.name}' has the batch in dimension {axis}, so that others cannot run in pieces"
            )
    for value, axis in zip(model.graph.outputs, batches.output_axes, strict=True):
        if axis != 0:
            return f"output '{value.name}' does not begin with the batch, so that others cannot run in pieces"
    return ""


def _why_dependent(model: ir.Model, batches: Batches, seed: int) -> str:
    """Why rows of a batch are not independent by the reference; "" if they are.

    A batch of a size that is not there runs whole and in pieces on the reference.
    """
    rows = next(
        size for size in range(batches.sizes[0] + 1, batches.sizes[-1] + 2) if size not in batches.sizes
    )
    feeds = batch_feeds(model, batches.symbol, rows, seed)
    names = list(feeds)
    reference = Reference(model)

    def run(_size: int, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return list(reference.run(dict(zip(names, arrays, strict=True))).values())

    def in_pieces(given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = batches.run([given[name] for name in names], run)
        return dict(zip((str(value.name) for value in model.graph.outputs), found, strict=True))

    try:
        check_against_reference(model, in_pieces, feeds)
    except GraphwrightError:
        return "its rows depend on each other, so that others cannot run in pieces"
    return ""
