"""Operators that ONNX Runtime has in every opset of the default domain, before the standard had them.

Its own optimizer writes them into models of any opset, so such files are about.
"""

from __future__ import annotations

import onnx_ir as ir

from .bodies import all_graphs
from .schemas import UNBOUNDED
from .sweep import nodes_in

# By the name in such files: the opset that has it, and its name there.
_EARLY = {
    "LayerNormalization": (17, "LayerNormalization"),
    "SimplifiedLayerNormalization": (UNBOUNDED, "RMSNormalization"),
}
_LENT_DOMAIN = "graphwright.early"


def lend_domain(model: ir.Model) -> bool:
    """Moves such operators to a domain of their own, in which they pass checks and conversions untouched.

    Returns:
        Whether there are any; then `restore_domain` must follow once the model is in a later opset.
    """
    version = model.opset_imports.get("")
    if version is None:
        return False
    found = False
    for graph in all_graphs(model):
        for node in nodes_in(graph):
            if node._op_type in _EARLY and node.domain == "" and version < _EARLY[node.op_type][0]:
                node.domain, node.op_type = _LENT_DOMAIN, _EARLY[node.op_type][1]
                found = True
    if found:
        model.opset_imports[_LENT_DOMAIN] = 1
    return found


def restore_domain(model: ir.Model) -> None:
    """Moves them to where the standard has them now."""
    for graph in all_graphs(model):
        for node in graph:
            if node.domain == _LENT_DOMAIN:
                node.domain = ""
    model.opset_imports.pop(_LENT_DOMAIN, None)
