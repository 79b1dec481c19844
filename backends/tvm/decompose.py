"""Composite operators in terms of simpler ones, before anything else looks at the graph."""

from __future__ import annotations

import onnx_ir as ir


def decompose(model: ir.Model) -> None:
    """Replace composite operators in place."""
