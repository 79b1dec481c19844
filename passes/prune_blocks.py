"""`prune-blocks`: leave out whole residual branches or layers that change little."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from ..ir.account import account
from ..ir.errors import PassError
from ..ir.reference import Reference
from ..ir.shapes import infer_shapes
from .base import Pass, PassContext
from .fold_constants import FoldConstants
from .functions import flatten_functions
from .pruning.blocks import Block, find_branches, find_layers
from .pruning.budget import parse_budget
from .quantization.calibration import Calibration, as_calibration
from .registry import register


@register
@dataclass(frozen=True)
class PruneBlocks(Pass):
    """Replace y = x + f(x) by x where f changes x the least on calibration data.

    The influence of a block from u to v is 1 - cos(u, v), averaged over tokens (arrays of up to three axes:
    along the last one) or over samples (images: along all but the first); Block Influence of ShortGPT, Men
    et al. 2024. Blocks are found on the graph, not by names: branches are operands of an Add whose other
    operand has the shape of the sum, layers are stretches of the residual stream that repeat, from a value
    to one that it dominates. The lowest influence goes first, one at a time until the amount is reached.

    Left alone: blocks that the selectors exclude (by any of their nodes), those whose influence is above
    `max_influence`, and those that overlap with one that went.
    """

    name: ClassVar[str] = "prune-blocks"
    lossless: ClassVar[bool] = False

    ratio: float = 0.25
    """Share of the blocks to leave out, from 0 to 1; rounded down."""
    count: int | None = None
    """Number of blocks to leave out, instead of a share."""
    macs: float | str | None = None
    """Budget of multiply-accumulates instead: blocks go until it is met (0.8 of the original, or 300M)."""
    unit: Literal["branch", "layer"] = "branch"
    """Whether single branches of sums go, or whole layers (attention and feed-forward together)."""
    max_influence: float = 1.0
    """Leave blocks alone that change more than this (0: nothing, 1: everything)."""
    again: bool = True
    """Measure the influence of the others anew after each block that went."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.ratio <= 1.0:
            raise PassError(f"{self.name}: option 'ratio' must be from 0 to 1, not {self.ratio}")
        if self.count is not None and self.count < 0:
            raise PassError(f"{self.name}: option 'count' must be at least 0, not {self.count}")
        if self.count is not None and self.macs is not None:
            raise PassError(f"{self.name}: give either 'count' or 'macs', not both")
        if not 0.0 < self.max_influence <= 2.0:
            raise PassError(
                f"{self.name}: option 'max_influence' must be above 0 and at most 2, not {self.max_influence}"
            )
        if self.macs is not None:
            parse_budget("macs", self.macs, self.name)

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Find the blocks, measure them, leave the least influential out."""
        if context.calibration is None:
            raise PassError(
                "the influence of blocks is measured on calibration data: calibration=... in Python, "
                "--calibration FILE on the command line"
            )
        calibration = as_calibration(context.calibration)
        flatten_functions(model, context)
        FoldConstants().apply(model, context)
        context.left_alone.clear()
        before = account(model)
        total = len(self._blocks(model, context))
        rows: list[dict[str, object]] = []
        influences: dict[str, float] = {}
        while not self._is_enough(model, before.macs, len(rows), total):
            blocks = self._blocks(model, None)
            if not influences or self.again:
                influences = measure_influence(model, blocks, calibration)
            best = min(
                (block for block in blocks if influences.get(block.key, math.inf) <= self.max_influence),
                key=lambda block: influences[block.key],
                default=None,
            )
            if best is None:
                break
            macs = account(model).macs
            rows.append({"block": best.name, "kind": best.kind, "influence": influences[best.key]})
            self._leave_out(model, best, context)
            left = account(model).macs
            rows[-1]["macs"] = None if macs is None or left is None else macs - left
        self._report(model, influences, before.macs, len(rows), context)
        after = account(model)
        context.details.update(
            blocks=rows,
            found=total,
            macs=[before.macs, after.macs],
            parameters=[before.parameters, after.parameters],
        )

    def _blocks(self, model: ir.Model, context: PassContext | None) -> list[Block]:
        """Blocks that the selectors allow; those that they exclude are reported to `context`."""
        found = find_branches(model.graph) if self.unit == "branch" else find_layers(model.graph)
        allowed = []
        for block in found:
            if (
                all(self.selects(node) for node in block.nodes)
                if self.only is None
                else self._is_meant(block)
            ):
                allowed.append(block)
            elif context is not None and self.only is None:
                context.leave(block.nodes[-1], "the selectors exclude a node of this block")
        return allowed

    def _is_meant(self, block: Block) -> bool:
        """Whether `only` matches the node that ends a block or any of its nodes, and `skip` none of them."""
        without = PruneBlocks(skip=self.skip)
        return any(self.selects(node) for node in block.nodes) and all(
            without.selects(node) for node in block.nodes
        )

    def _is_enough(self, model: ir.Model, first: int | None, gone: int, total: int) -> bool:
        if self.macs is None:
            return gone >= (int(self.ratio * total + 1e-9) if self.count is None else min(self.count, total))
        now = account(model).macs
        if now is None or first is None:
            raise PassError("the budget of MACs needs shapes without open dimensions; fix them with --dim")
        return now <= parse_budget("macs", self.macs, self.name).of(first)

    def _leave_out(self, model: ir.Model, block: Block, context: PassContext) -> None:
        rewriter = context.rewriter(model)
        last = block.end.producer()
        rewriter.replace_uses(block.end, block.start)
        rewriter.erase_unread(last)
        infer_shapes(model)
        context.count("blocks left out")
        context.count("nodes of blocks", len(block.nodes))

    def _report(
        self,
        model: ir.Model,
        influences: dict[str, float],
        first: int | None,
        gone: int,
        context: PassContext,
    ) -> None:
        for block in self._blocks(model, None):
            influence = influences.get(block.key)
            if influence is not None and influence > self.max_influence:
                context.leave(block.nodes[-1], f"its influence is above max_influence={self.max_influence:g}")
        if self.macs is not None and not self._is_enough(model, first, gone, gone):
            context.note(f"the budget macs={self.macs} is not met: no other block may be left out")


def measure_influence(model: ir.Model, blocks: list[Block], calibration: Calibration) -> dict[str, float]:
    """1 - cos(start, end) of every block, averaged over the calibration data; by key.

    Raises:
        PassError: The data does not suit the model.
        ModelError: The reference cannot run the model.
    """
    if not blocks:
        return {}
    sums = {block.key: [0.0, 0] for block in blocks}
    names = list(dict.fromkeys(str(value.name) for block in blocks for value in (block.start, block.end)))
    reference = Reference(model)
    for feeds in calibration.batches(model):
        values = reference.run_values(feeds, names)
        for block in blocks:
            distances = _distances(values[str(block.start.name)], values[str(block.end.name)])
            entry = sums[block.key]
            entry[0] += float(distances.sum())
            entry[1] += len(distances)
    return {key: total / max(count, 1) for key, (total, count) in sums.items()}


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - cosine of every token or sample; two zero vectors are the same, one is wholly different."""
    width = a.shape[-1] if a.ndim in (2, 3) else int(np.prod(a.shape[1:])) if a.ndim > 3 else a.size
    left, right = (each.astype(np.float64).reshape(-1, max(width, 1)) for each in (a, b))
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    dots = (left * right).sum(axis=1)
    same = np.all(left == right, axis=1)
    cosines = np.where(norms > 0, dots / np.where(norms > 0, norms, 1.0), same.astype(np.float64))
    # What is not finite is not known to be small.
    return np.nan_to_num(1.0 - cosines, nan=1.0)
