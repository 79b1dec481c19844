"""Equations of Einsum, read once for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Equation:
    """What an Einsum does.

    Attributes:
        operands: The label of each dimension of each operand; those of an ellipsis are '...0', '...1', from
            the last dimension it stands for backwards.
        result: The label of each dimension of the result.
    """

    operands: tuple[tuple[str, ...], ...]
    result: tuple[str, ...]


def parse_equation(text: str, ranks: Sequence[int | None]) -> Equation | str:
    """Read an equation; returns why where it cannot be.

    Args:
        text: The attribute `equation`, say "bqhd,bkhd->bhqk"; without an arrow the result has the labels that
            occur once, sorted, after those of an ellipsis.
        ranks: The ranks of the operands, None where unknown.
    """
    left, arrow, right = text.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        return f"its equation '{text}' is not one for {len(ranks)} operands"
    operands = []
    for term, rank in zip(terms, ranks, strict=True):
        labels = _expanded(term, rank)
        if isinstance(labels, str):
            return labels
        if len(set(labels)) != len(labels):
            return "a label stands twice in one operand"
        operands.append(labels)
    spread = max((labels for labels in map(_of_ellipsis, operands)), key=len)
    if any(_of_ellipsis(labels) not in ((), spread) for labels in operands):
        return "its operands have ellipses of different ranks"
    if arrow:
        before, dots, after = right.partition("...")
        result = (*before, *spread, *after) if dots else tuple(right)
    else:
        plain = [label for labels in operands for label in labels if label not in spread]
        result = (*spread, *sorted(label for label in plain if plain.count(label) == 1))
    if len(set(result)) != len(result) or not set(result) <= {label for each in operands for label in each}:
        return f"its equation '{text}' has a result that no operand gives"
    return Equation(tuple(operands), result)


def _of_ellipsis(labels: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(label for label in labels if label.startswith("..."))


def _expanded(term: str, rank: int | None) -> tuple[str, ...] | str:
    before, dots, after = term.partition("...")
    if rank is None:
        return "the rank of an operand is not known"
    hidden = rank - len(before) - len(after)
    if hidden < 0 or (hidden and not dots):
        return f"the rank of an operand is {rank}, which '{term}' does not fit"
    return (*before, *(f"...{index}" for index in reversed(range(hidden))), *after)
