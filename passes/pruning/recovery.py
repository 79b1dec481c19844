"""Recovery without training: what reads pruned channels is fitted to the original's results.

A layer z = V y + c that lost channels of y sees z' = V' y' + c' on the pruned model. On calibration data the
residual z - z' is fitted by what is still there,

    min over D, d  of  sum |z - z' - D y' - d|^2 + l |D|^2,

a ridge regression towards the weights as they are (channel pruning by least squares, He et al. 2017), and D,
d are added to V', c'. Layers are done front to back, each on the model as recovered so far, so that later
ones also make up for what earlier ones could not. `bias` fits d alone: the mean of what was removed.

Normal equations are summed up in float64, batch by batch, over at most `_ROWS` positions of each; a quarter
of them is held out, chooses l, and decides whether the layer is changed at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from ...ir.clone import clone
from ...ir.constants import constant_array
from ...ir.errors import PassError
from ...ir.reference import Reference
from ...ir.static import only_reader
from ..base import PassContext
from ..channels import Removal
from ..channels.places import ordered_nodes
from ..channels.removal import cut_values
from ..quantization.calibration import Calibration
from ..rewriter import Rewriter
from .layers import LinearLayer, linear_layer

Recovery = Literal["none", "bias", "weights"]

_ROWS = 4096
_MAX_FEATURES = 6144
_RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass
class _Equations:
    """Normal equations of residuals on features: float64."""

    gram: np.ndarray
    cross: np.ndarray
    energy: float = 0.0
    rows: int = 0

    @classmethod
    def empty(cls, features: int, outputs: int) -> _Equations:
        return cls(np.zeros((features, features)), np.zeros((features, outputs)))

    def add(self, features: np.ndarray, residual: np.ndarray) -> None:
        self.gram += features.T @ features
        self.cross += features.T @ residual
        self.energy += float(np.square(residual).sum())
        self.rows += len(features)

    def __add__(self, other: _Equations) -> _Equations:
        return _Equations(
            self.gram + other.gram,
            self.cross + other.cross,
            self.energy + other.energy,
            self.rows + other.rows,
        )

    def error(self, solution: np.ndarray) -> float:
        """Sum of squares that a solution [features, outputs] leaves."""
        return (
            self.energy
            - 2.0 * float((solution * self.cross).sum())
            + float((solution * (self.gram @ solution)).sum())
        )

    def solve(self, ridge: float) -> np.ndarray:
        """The solution; the last feature is the intercept and not held back."""
        size = len(self.gram)
        scale = float(np.trace(self.gram[:-1, :-1])) / max(size - 1, 1)
        held = np.full(size, ridge * scale + np.finfo(np.float64).tiny)
        held[-1] = 1e-12 * max(self.rows, 1)
        return np.linalg.solve(self.gram + np.diag(held), self.cross)


def recover(
    original: ir.Model,
    pruned: ir.Model,
    removal: Removal,
    how: Recovery,
    calibration: Calibration,
    context: PassContext,
) -> list[dict[str, Any]]:
    """Fit every layer of `pruned` that lost inputs to the results it has in `original`.

    Args:
        original: The model before the removal; not changed.
        pruned: The model after it; its weights and biases change.
        removal: What went.
        how: `bias` or `weights`.
        calibration: Data, read once per layer.
        context: For the rewriter, progress, and reports of layers left as they are.

    Returns:
        One row per layer that was fitted: its name, squared error on held-out positions before and after, and
        the ridge that was chosen.

    Raises:
        PassError: The data can be read only once, or does not suit the model.
    """
    if not calibration.repeatable:
        raise PassError(
            f"recovery reads the calibration data once per layer, but an {calibration.source} can be read "
            "once only; give a list, or a function that returns a new iterator"
        )
    nodes = ordered_nodes(original)
    # Positions beyond are those of bodies, which are left as they are.
    positions = sorted({mask[0] for mask in removal.masks if mask[0] < len(nodes)})
    made_by = {str(value.name): node for node in pruned.graph for value in node.outputs}
    rows = []
    rewriter = context.rewriter(pruned)
    for done, position in enumerate(positions):
        meant = nodes[position]
        layer, reason = linear_layer(meant)
        if meant.graph is not original.graph:
            layer, reason = None, "it lies in a body"
        if layer is not None:
            # Of the same name, but with the weights that are left.
            layer, reason = linear_layer(made_by[str(meant.outputs[0].name)])
        if layer is None:
            context.leave(meant, f"not recovered: {reason}")
            continue
        if context.progress is not None:
            context.progress(done, len(positions), f"recovering {meant.name}")
        row = _recover_layer(original, pruned, removal, layer, how, calibration, context, rewriter)
        if row is not None:
            rows.append(row)
            context.count("layers recovered")
    return rows


def _recover_layer(
    original: ir.Model,
    pruned: ir.Model,
    removal: Removal,
    layer: LinearLayer,
    how: Recovery,
    calibration: Calibration,
    context: PassContext,
    rewriter: Rewriter,
) -> dict[str, Any] | None:
    alone = how == "bias" or layer.features > _MAX_FEATURES
    if how == "weights" and alone:
        context.leave(layer.node, f"only its bias is recovered: {layer.features} inputs are too many to fit")
    kept = removal.computed.get(str(layer.node.outputs[0].name), {})
    width = 1 if alone else layer.features + 1
    fit = [_Equations.empty(width, layer.outputs // layer.groups) for _ in range(layer.groups)]
    held = [_Equations.empty(width, layer.outputs // layer.groups) for _ in range(layer.groups)]
    generator = np.random.default_rng(context.seed)
    seen = 0
    for wanted, inputs, results in _runs(original, pruned, layer, calibration, removal):
        target = cut_values({"": wanted}, {"": kept})[""]
        for group, (features, residual) in enumerate(
            layer.rows(inputs, target.astype(np.float64) - results, generator, _ROWS)
        ):
            augmented = np.ones((len(features), width))
            if not alone:
                augmented[:, :-1] = features
            test = np.arange(seen, seen + len(features)) % 4 == 3
            fit[group].add(augmented[~test], residual[~test])
            held[group].add(augmented[test], residual[test])
        seen += len(features)
    before = sum(each.energy for each in held)
    if not np.isfinite(before) or before <= 0.0:
        context.leave(
            layer.node, "not recovered: it lost nothing on the calibration data, or is not finite there"
        )
        return None
    ridge, after = _best_ridge(fit, held, (0.0,) if alone else _RIDGES)
    if not after < before:
        context.leave(layer.node, "not recovered: no fit helps on held-out calibration data")
        return None
    solutions = [(a + b).solve(ridge) for a, b in zip(fit, held, strict=True)]
    change = None if alone else np.concatenate([solution[:-1].T for solution in solutions])
    _apply(layer, change, np.concatenate([solution[-1] for solution in solutions]), rewriter)
    return {"node": layer.node.name, "error_before": before, "error_after": after, "ridge": ridge}


def _best_ridge(
    fit: list[_Equations], held: list[_Equations], ridges: tuple[float, ...]
) -> tuple[float, float]:
    """The ridge with the least held-out error, and that error."""
    best = (ridges[0], np.inf)
    for ridge in ridges:
        try:
            error = sum(h.error(f.solve(ridge)) for f, h in zip(fit, held, strict=True))
        except np.linalg.LinAlgError:
            continue
        if error < best[1]:
            best = (ridge, error)
    return best


def _runs(
    original: ir.Model, pruned: ir.Model, layer: LinearLayer, calibration: Calibration, removal: Removal
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For every batch what the layer should return, what it reads and what it returns."""
    result, source = str(layer.node.outputs[0].name), str(layer.source.name)
    expected = Reference(_up_to(original, [result]))
    actual = Reference(_up_to(pruned, [source, result]))
    for feeds in calibration.batches(original):
        (wanted,) = expected.run(feeds).values()
        found = actual.run_values(removal.feeds(feeds), [source, result])
        yield wanted, found[source], found[result]


def _up_to(model: ir.Model, names: list[str]) -> ir.Model:
    """A copy that computes only the values `names` and what they need; its inputs stay."""
    copy = clone(model)
    graph = copy.graph
    made = {str(value.name): value for node in graph for value in node.outputs}
    graph.outputs[:] = [made[name] for name in dict.fromkeys(names) if name in made]
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    return copy


def _apply(layer: LinearLayer, change: np.ndarray | None, shift: np.ndarray, rewriter: Rewriter) -> None:
    """Add a change [outputs, features] to the weight and a shift [outputs] to the bias."""
    if change is not None:
        weight = constant_array(layer.weight)
        assert weight is not None
        rewriter.set_initializer(layer.weight, layer.changed(weight, change))
    dtype = layer.weight.dtype
    assert dtype is not None
    node = layer.node
    if layer.bias_operand is not None:
        old = node.inputs[layer.bias_operand] if len(node.inputs) > layer.bias_operand else None
        base = constant_array(old)
        bias = (shift if base is None else base.astype(np.float64).reshape(-1) + shift).astype(dtype.numpy())
        rewriter.set_input(node, layer.bias_operand, rewriter.initializer(f"{node.name}.bias", bias))
        rewriter.drop_orphans()
        return
    adder, place = (None, 0) if layer.letters is not None else _bias_behind(node, len(shift))
    if adder is not None:
        old = adder.inputs[place]
        base = constant_array(old)
        assert base is not None and old is not None
        bias = (base.astype(np.float64) + shift.reshape(base.shape)).astype(dtype.numpy())
        rewriter.set_input(adder, place, rewriter.initializer(str(old.name), bias))
        rewriter.drop_orphans()
        return
    output = node.outputs[0]
    bias = rewriter.initializer(f"{node.name}.bias", layer.bias(shift).astype(dtype.numpy()))
    (shifted,) = rewriter.insert_after(node, "Add", [output, bias])
    shifted.shape, shifted.type = output.shape, output.type
    rewriter.replace_uses(output, shifted)
    adder = shifted.producer()
    assert adder is not None
    rewriter.set_input(adder, 0, output)


def _bias_behind(node: ir.Node, outputs: int) -> tuple[ir.Node | None, int]:
    """The Add that alone reads a product and adds a constant per output, and the constant's position."""
    output = node.outputs[0]
    if not only_reader(output):
        return None, 0
    (reader,) = output.consumers()
    if reader.op_type != "Add" or reader.domain not in ("", "ai.onnx"):
        return None, 0
    place = 1 if reader.inputs[0] is output else 0
    base = constant_array(reader.inputs[place])
    if base is None or base.size != outputs or base.shape[-1:] != (outputs,):
        return None, 0
    return reader, place
