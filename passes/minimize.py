"""Delta debugging (Zeller and Hildebrandt, 2002): the smallest part of a list that still fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def minimize(items: list[T], fails: Callable[[list[T]], bool]) -> list[T]:
    """Leave out ever smaller chunks of `items` for as long as `fails` holds for the rest.

    Args:
        items: A list for which `fails` holds.
        fails: Whether a part of the list, in order, still fails.

    Returns:
        A part of which nothing single can be left out; a single item costs about 2 log2(n) trials.
    """
    chunks = 2
    while len(items) > 1:
        size = -(-len(items) // chunks)
        parts = [items[start : start + size] for start in range(0, len(items), size)]
        alone = next((part for part in parts if len(part) < len(items) and fails(part)), None)
        if alone is not None:
            items, chunks = alone, 2
            continue
        for start in range(0, len(items), size) if len(parts) > 2 else ():
            rest = items[:start] + items[start + size :]
            if rest and fails(rest):
                items, chunks = rest, max(chunks - 1, 2)
                break
        else:
            if size == 1:
                return items
            chunks = min(2 * chunks, len(items))
    return items
