"""Where a node came from: torch module, source line, torch operator."""

from __future__ import annotations

import ast
import functools
import re

import onnx_ir as ir

NAME_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
CLASS_HIERARCHY_KEY = "pkg.torch.onnx.class_hierarchy"
STACK_TRACE_KEY = "pkg.torch.onnx.stack_trace"

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in')


def module_path(node: ir.Node) -> str | None:
    """Return the path of the torch module a node was traced from, such as `layer1.0.conv1`.

    None where the model did not come from torch; "" for a node of the outermost module.
    """
    scopes = _parsed(node.metadata_props.get(NAME_SCOPES_KEY))
    if scopes is None:
        return None
    # The last entry names the FX node itself.
    return scopes[-2] if len(scopes) > 1 else ""


def module_classes(node: ir.Node) -> tuple[str, ...]:
    """Classes of the torch modules around a node, outermost first; empty if it did not come from torch."""
    classes = _parsed(node.metadata_props.get(CLASS_HIERARCHY_KEY))
    return classes[:-1] if classes else ()


def source_line(node: ir.Node) -> str | None:
    """The innermost line of Python that made a node, as `path/model.py:17`.

    Known only while the traced model is in memory: saved files leave local paths out unless asked for.
    """
    frames = _FRAME.findall(node.metadata_props.get(STACK_TRACE_KEY, ""))
    return ":".join(frames[-1]) if frames else None


@functools.lru_cache(maxsize=65536)
def _parsed(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    try:
        parsed = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return tuple(map(str, parsed)) if isinstance(parsed, list) else None
