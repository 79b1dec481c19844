"""Batches that a user's own code makes: iterators are read once, and what goes wrong in them is one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ...ir.errors import GraphwrightError, PassError, one_line


class Once:
    """An iterator that knows whether it has been begun, so that nobody gets what is left of it."""

    def __init__(self, batches: Iterator[Any]):
        self._batches = batches
        self._begun = False

    def __iter__(self) -> Iterator[Any]:
        """The batches.

        Raises:
            PassError: They have been asked for before.
        """
        if self._begun:
            raise PassError(
                "calibration data can be read once only where it is an iterator, and was read already; give "
                "a list, or a function that returns a new iterator"
            )
        self._begun = True
        return self._batches


def once_at_most(data: Any) -> Any:
    """Data that several passes may ask for: an iterator comes back as a `Once`, all else as it is."""
    return Once(data) if isinstance(data, Iterator) else data


def in_turn(make: Callable[[], Iterable[Any]], where: str) -> Iterator[Any]:
    """The batches that an iterable of the user gives.

    Args:
        make: Gives the iterable.
        where: How messages begin.

    Raises:
        PassError: The user's code raised something; the line names the batch.
    """
    batches: Iterator[Any] | None = None
    count = 1
    while True:
        try:
            if batches is None:
                batches = iter(make())
            batch = next(batches)
        except StopIteration:
            return
        except GraphwrightError:
            raise
        except Exception as error:
            raise PassError(f"{where}: batch {count} could not be made: {one_line(error)}") from error
        count += 1
        yield batch
