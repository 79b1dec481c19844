"""Labels on axes of open size: those of one period.

Attention in torch joins the batch and the heads to one axis of size `4*batch`. Its index is b 4 + h: labels
of heads repeat with a period of 4, whatever the batch. Such an axis carries the labels of one period;
operators outside of `ANY_SIZE`, and those that sum or look along it, keep it as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .elementwise import BROADCASTING, UNARY
from .tracer import Dim, Tracer

ANY_SIZE = frozenset(
    {
        *UNARY,
        *BROADCASTING,
        "Concat",
        "Dropout",
        "LayerNormalization",
        "LogSoftmax",
        "MatMul",
        "RMSNormalization",
        "Reshape",
        "Softmax",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators that treat all indices of an axis alike, unless they sum or look along it."""


def keep_open_sizes(node: ir.Node, tracer: Tracer) -> None:
    """Pin the axes of open size that reach an operator which may tell their indices apart."""
    if node.domain in ("", "ai.onnx") and node.op_type in ANY_SIZE:
        return
    for value in dict.fromkeys(node.inputs):
        if value is None:
            continue
        for index in tracer.periodic(value):
            tracer.axes[value][index] = tracer.keep(
                value, index, node, f"{node.op_type} meets an axis of open size"
            )


def one_period(labels: np.ndarray, inner: Sequence[Dim], after: Sequence[Dim]) -> np.ndarray | None:
    """Labels of an input axis of a reshape over one period of the output axes.

    Args:
        labels: Of one axis; where its size is open, of one period.
        inner: Sizes of the axes inside of it.
        after: Sizes of the output axes.

    Returns:
        A grid of labels with the output axes, each of size 1 where labels do not vary along it, and of one
        period where its size is open. None where there is no such period.
    """
    if not all(isinstance(dim, int) for dim in inner):
        return None
    flat = np.repeat(labels, int(np.prod([dim for dim in inner if isinstance(dim, int)], dtype=np.int64)))
    sizes: list[int] = []
    volume = 1
    for outside, dim in zip(reversed(range(len(after))), reversed(after), strict=True):
        size = 1 if volume % len(flat) == 0 else dim
        if not isinstance(size, int):
            if len(flat) % volume:
                return None
            size = len(flat) // volume
            if outside and coefficient(dim) % size:
                return None
        sizes.append(size)
        volume *= size
    if volume % len(flat):
        return None
    return np.tile(flat, volume // len(flat)).reshape(sizes[::-1])


def coefficient(dim: Dim) -> int:
    """The number that a size is known to be a multiple of."""
    if isinstance(dim, int):
        return dim
    match = re.match(r"(\d+)\*", dim or "")
    # Of `4*a + b` and `4*a/3` nothing is known.
    return int(match[1]) if match and dim is not None and "/" not in dim and not _is_sum(dim) else 1


def scaled(dim: Dim, period: int, kept: int) -> Dim:
    """An open size of which `kept` of every `period` indices stay: `4*batch` becomes `2*batch`, or None."""
    times = coefficient(dim)
    if not isinstance(dim, str) or times % period or times < 2:
        return None
    rest, left = dim.partition("*")[2], times // period * kept
    return rest if left == 1 else f"{left}*{rest}"


def _is_sum(text: str) -> bool:
    """Whether an expression has a sum outside of parentheses."""
    depth = 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and letter in "+-":
            return True
    return False
