"""Bounds on how far two models may be apart: `max_rel<=1e-4`, `sqnr>=30`, `cosine>=0.999`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..ir.compare import Comparison
from ..ir.errors import PipelineError

_FIELDS = {"max_rel": "max_rel", "max_abs": "max_abs", "sqnr": "sqnr_db", "cosine": "cosine"}
_TEXT = re.compile(r"\s*(max_rel|max_abs|sqnr|cosine)\s*(<=|>=)\s*([-+0-9.eE]+)\s*(dB)?\s*")


@dataclass(frozen=True)
class Bound:
    """One inequality on a `Comparison`.

    Attributes:
        metric: `max_rel`, `max_abs`, `sqnr` (dB) or `cosine`.
        limit: The number it is compared with.
    """

    metric: str = "max_rel"
    limit: float = 1e-4

    @property
    def is_upper(self) -> bool:
        """Whether the metric must stay below the limit (errors) rather than above it (similarities)."""
        return self.metric in ("max_rel", "max_abs")

    def of(self, comparison: Comparison) -> float:
        """Return the metric's value in `comparison`."""
        return float(getattr(comparison, _FIELDS[self.metric]))

    def holds(self, comparison: Comparison) -> bool:
        """Whether the comparison keeps the bound; NaN does not."""
        value = self.of(comparison)
        if math.isnan(value):
            return False
        return value <= self.limit if self.is_upper else value >= self.limit

    def is_worse(self, one: Comparison, other: Comparison) -> bool:
        """Whether `one` is further off than `other`; NaN is worse than any number."""
        a, b = self.of(one), self.of(other)
        if math.isnan(a) or math.isnan(b):
            return math.isnan(a) and not math.isnan(b)
        return a > b if self.is_upper else a < b

    def __str__(self) -> str:
        return f"{self.metric}{'<=' if self.is_upper else '>='}{self.limit:g}"


def parse_bound(text: str) -> Bound:
    """Parse a bound.

    Raises:
        PipelineError: The text is no bound; the message says what one looks like.
    """
    found = _TEXT.fullmatch(text)
    example = "write max_rel<=1e-4, max_abs<=0.01, sqnr>=30 or cosine>=0.999"
    if found is None:
        raise PipelineError(f"'{text}' is not a bound; {example}")
    metric, relation, number, _ = found.groups()
    try:
        bound = Bound(metric, float(number))
    except ValueError:
        raise PipelineError(f"'{number}' in bound '{text}' is not a number") from None
    if (relation == "<=") != bound.is_upper:
        raise PipelineError(f"bound '{text}' points the wrong way; {example}")
    return bound
