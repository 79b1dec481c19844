"""Local buffers stay on the stack, where LLVM keeps what is indexed by constants in registers.

TVM 0.27 takes memory for buffers of the scope "local" from the heap. LLVM then stores a tile of sums whenever
something in its loop might look at memory, as a prefetch does, and clears it with a call.
"""

from __future__ import annotations

from math import prod
from typing import Any

from .byte_offsets import add_byte_offsets

PIPELINE = "graphwright"
"""Name of TVM's usual lowering with these passes behind it, once `lowering` was called."""
_KEEP = "disable_lower_builtin"
"""Annotation of allocations that TVM leaves alone."""
_UNREAD = "pragma_scope"
"""TVM's scatters carry it, and its code generator for CPUs warns that it does not know it."""
_MOST_BYTES = 1 << 14
"""Larger local buffers go to the heap: threads of some systems have small stacks."""


def lowering() -> str:
    """The name of the lowering pipeline, registered if it was not before."""
    from tvm import transform
    from tvm.tirx import compilation_pipeline as pipelines

    def make() -> Any:
        lower, host, device = pipelines.get_tir_pipeline("s_tir")
        return transform.Sequential([lower, _keep_on_stack(), add_byte_offsets()]), host, device

    pipelines.register_tir_pipeline(PIPELINE, make)
    return PIPELINE


def _keep_on_stack() -> Any:
    from tvm import tirx, transform

    @transform.module_pass(opt_level=0, name="KeepLocalsOnStack")
    def keep(module: Any, _context: Any) -> Any:
        for variable, function in module.functions.items():
            body = _kept(function.body) if isinstance(function, tirx.PrimFunc) else None
            if body is not None:
                module.update_func(variable, function.with_body(body))
        return module

    return keep


def _kept(statement: Any) -> Any:
    """The statement with small local allocations annotated, None where it holds none."""
    from tvm import tirx

    if isinstance(statement, tirx.SeqStmt):
        parts = list(statement.seq)
        kept = [_kept(part) for part in parts]
        if all(each is None for each in kept):
            return None
        return tirx.SeqStmt([part if new is None else new for part, new in zip(parts, kept, strict=True)])
    if isinstance(statement, tirx.AllocBuffer):
        return _annotated(statement)
    if isinstance(statement, tirx.For):
        body = _kept(statement.body)
        return None if body is None else _with_body(statement, body)
    if isinstance(statement, tirx.AttrStmt):
        body = _kept(statement.body)
        if statement.attr_key == _UNREAD:
            return statement.body if body is None else body
        if body is None:
            return None
        return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, body)
    if isinstance(statement, tirx.IfThenElse):
        return _kept_branches(statement)
    return None


def _annotated(allocation: Any) -> Any:
    from tvm import tirx

    buffer = allocation.buffer
    if buffer.scope() != "local" or not all(isinstance(size, tirx.IntImm) for size in buffer.shape):
        return None
    elements = prod(int(size) for size in buffer.shape)
    if elements * buffer.dtype.itemsize > _MOST_BYTES:
        return None
    return tirx.AllocBuffer(buffer, {**allocation.annotations, _KEEP: tirx.const(1, "int32")})


def _with_body(loop: Any, body: Any) -> Any:
    from tvm import tirx

    return tirx.For(
        loop.loop_var,
        loop.min,
        loop.extent,
        loop.kind,
        body,
        loop.thread_binding,
        loop.annotations,
        loop.step,
    )


def _kept_branches(branch: Any) -> Any:
    from tvm import tirx

    then, other = branch.then_case, branch.else_case
    kept_then, kept_other = _kept(then), _kept(other)
    if kept_then is None and kept_other is None:
        return None
    return tirx.IfThenElse(
        branch.condition,
        then if kept_then is None else kept_then,
        other if kept_other is None else kept_other,
    )
