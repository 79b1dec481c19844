"""`inline-functions`: the bodies of model functions in place of their calls."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from ..ir.errors import PassError
from .base import Pass, PassContext
from .functions import inline_calls, why_not_inline
from .registry import register


@register
@dataclass(frozen=True)
class InlineFunctions(Pass):
    """Replace calls of model functions by the nodes of their bodies.

    f(x) = body of f with x for its parameter. Calls inside of bodies are inlined as well, functions without a
    call are removed. Inlined nodes are named `call/node` and remember their function in their metadata. It
    does not fire where the function is written in another opset than the model, or takes a graph.
    """

    name: ClassVar[str] = "inline-functions"

    functions: str | None = field(default=None)
    """Inline only functions whose `domain::name` this regular expression matches from the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.functions or "")
        except re.error as error:
            raise PassError(
                f"{self.name}: option 'functions' is not a regular expression ({error}): {self.functions!r}"
            ) from None

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Inline until only calls are left that are not wanted or cannot be inlined."""

        def wanted(node: ir.Node, function: ir.Function) -> bool:
            if not self.selects(node):
                return False
            if not re.match(self.functions or "", f"{function.domain}::{function.name}"):
                return False
            reason = why_not_inline(node, function, model)
            if reason:
                context.leave(node, reason)
            return not reason

        for name, count in inline_calls(context.rewriter(model), wanted).items():
            context.count(f"{name} inlined", count)
