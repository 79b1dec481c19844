"""The operator set that every graph inside the house is written in."""

from __future__ import annotations

CANONICAL_OPSET = 23
