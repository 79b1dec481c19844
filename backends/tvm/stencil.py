"""Operators that read a neighbourhood of their input for every element."""

from __future__ import annotations

from typing import Any

from .lazy import Index, Lazy, bound, choose, immediate
from .op import Op
from .resize import resize


def local_response_norm(op: Op, x: Lazy) -> list[Lazy]:
    """X / (bias + alpha / size * sum of squares over neighbouring channels) ^ beta."""
    size, channels = op.attr("size"), x.shape[1]
    alpha, beta, bias = op.attr("alpha", 1e-4), op.attr("beta", 0.75), op.attr("bias", 1.0)
    before, after = (size - 1) // 2, size // 2

    def neighbour(index: Index, step: int) -> Any:
        at = index[1] + step

        def square() -> Any:
            value = x.read((index[0], at, *index[2:]))
            return value * value

        nothing = immediate(0, x.dtype)
        if step < 0:
            return choose(at >= 0, square, lambda: nothing)
        return choose(at < channels, square, lambda: nothing) if step > 0 else square()

    def read(index: Index) -> Any:
        total = None
        for step in range(-before, after + 1):
            term = neighbour(index, step)
            total = term if total is None else total + term
        base = total * immediate(alpha / size, x.dtype) + immediate(bias, x.dtype)
        return x.read(index) / _power(bound(base), beta)

    cuts = [x.cuts_of(axis) for axis in range(len(x.shape))]
    seams = {before, channels - after, *cuts[1]}
    cuts[1] = tuple(sorted(seam for seam in seams if 0 < seam < channels))
    return [Lazy(x.shape, x.dtype, read, tuple(cuts))]


def _power(base: Any, exponent: float) -> Any:
    """A positive base to a power; quarters cost square roots only."""
    from tvm import tirx

    if exponent == 0.75:
        root = bound(tirx.sqrt(base))
        return root * tirx.sqrt(root)
    if exponent == 0.5:
        return tirx.sqrt(base)
    if exponent == 1.0:
        return base
    return tirx.power(base, immediate(exponent, str(base.ty.dtype)))


STENCIL = {"LRN": local_response_norm, "Resize": resize, "Upsample": resize}
