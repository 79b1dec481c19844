"""Weights as tile registers read them: what is summed in which steps, and panels packed in that order."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ...split_floats import split_float32
from . import emit
from .tile import blocks
from .tile_registers import LANES, Format, Registers


@dataclass(frozen=True)
class Reduction:
    """What is summed for one output: `outer` nested loops around runs of neighbouring elements, in steps.

    The last step of a run is moved up to end with the run; weights of what is read twice are zero. Where the
    data end in elements to spare (`slack`), it reads beyond the run instead, and weights are zero there.

    Attributes:
        outer: (iterations, elements between them) per loop.
        run: elements of a run.
        steps: steps of a run.
        depth: elements per step.
        slack: whether there are elements to spare.
    """

    outer: tuple[tuple[int, int], ...]
    run: int
    steps: int
    depth: int
    slack: bool = False

    @classmethod
    def of(
        cls, form: Format, run: int, outer: tuple[tuple[int, int], ...] = (), slack: bool = False
    ) -> Reduction | None:
        """The fewest steps of equal length; None for runs shorter than four bytes."""
        steps = blocks(run, form.most)
        depth = blocks(blocks(run, steps), form.word) * form.word
        if depth > run and not slack:
            steps, depth = 2, run // form.word * form.word
        return cls(outer, run, steps, depth, slack) if depth else None

    @property
    def runs(self) -> int:
        """How many runs there are."""
        return prod(count for count, _ in self.outer)

    @property
    def total(self) -> int:
        """Steps of all runs."""
        return self.runs * self.steps

    def place(self, step: Any) -> Any:
        """First element of a step of a run."""
        if self.slack or self.steps * self.depth == self.run:
            return step * self.depth
        return emit.minimum(step * self.depth, self.run - self.depth)


def pack_panels(weights: np.ndarray, reduction: Reduction, registers: Registers) -> np.ndarray:
    """(groups, runs, run, columns) -> panels as `panel_shape` says, float32 in parts, if there are several.

    Other types are packed as one part, so that what becomes of each element can be followed.
    """
    groups, runs, _, columns = weights.shape
    panels = blocks(columns, registers.block)
    wide = np.zeros((groups, runs, reduction.steps, reduction.depth, panels * registers.block), weights.dtype)
    for step in range(reduction.steps):
        first, known = int(reduction.place(step)), step * reduction.depth
        own = weights[:, :, known : first + reduction.depth]
        wide[:, :, step, known - first : known - first + own.shape[2], :columns] = own
    word = registers.format.word
    split = wide.reshape(
        groups,
        runs * reduction.steps,
        reduction.depth // word,
        word,
        panels,
        registers.across,
        LANES,
    )
    packed = np.ascontiguousarray(split.transpose(0, 4, 1, 5, 2, 6, 3))
    if registers.format.parts > 1:
        if packed.dtype != np.float32:
            return packed.reshape(groups * panels, reduction.total, registers.across, -1, LANES, word)
        packed = np.stack(split_float32(packed, registers.format.parts), axis=4)
    return packed.reshape(panel_shape(groups, panels, reduction, registers))


def panel_shape(groups: int, panels: int, reduction: Reduction, registers: Registers) -> tuple[int, ...]:
    """Shape of packed panels: (groups * panels, steps, across, parts * depth / word, 16, word)."""
    form = registers.format
    words = form.parts * registers.depth // form.word
    return (groups * panels, reduction.total, registers.across, words, LANES, form.word)
