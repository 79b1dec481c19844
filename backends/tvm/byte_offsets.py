"""Kernels that find a tensor at an offset in its memory.

TVM asserts that the `byte_offset` of a kernel's tensors is zero, or relies on it where assertions are off.
"""

from __future__ import annotations

from typing import Any

_DATA, _BYTE_OFFSET = 1, 8
"""Fields of a tensor's description as `tvm_struct_get` counts them."""


def add_byte_offsets() -> Any:
    """A pass to run behind `MakePackedAPI`: functions read their tensors from where `byte_offset` says."""
    from tvm import tirx, transform

    @transform.module_pass(opt_level=0, name="AddByteOffsets")
    def run(module: Any, _: Any) -> Any:
        for variable, function in module.functions.items():
            if isinstance(function, tirx.PrimFunc):
                module.update_func(variable, function.with_body(_with_offsets(function.body)))
        return module

    return run


def _with_offsets(statement: Any) -> Any:
    """With every pointer to a parameter's elements moved; they are all taken before the first loop."""
    from tvm import tirx

    if isinstance(statement, tirx.SeqStmt):
        return tirx.SeqStmt([_with_offsets(part) for part in statement.seq])
    if isinstance(statement, tirx.AttrStmt):
        body = _with_offsets(statement.body)
        return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, body)
    if isinstance(statement, tirx.DeclBuffer):
        # What TVM's own definitions read at a variable offset has looked at `byte_offset` already.
        is_plain = isinstance(statement.buffer.elem_offset, tirx.IntImm)
        data = _moved(statement.data) if is_plain else None
        return statement if data is None else tirx.DeclBuffer(statement.buffer, data=data)
    return statement


def _moved(data: Any) -> Any:
    """The pointer plus the offset, None where `data` is something else than a parameter's pointer."""
    from tvm import tirx

    if not _is_intrinsic(data, "reinterpret") or not _is_intrinsic(data.args[-1], "tvm_struct_get"):
        return None
    pointer = data.args[-1]
    handle, index, field = pointer.args
    if int(field) != _DATA:
        return None
    offset = tirx.call_intrin("uint64", "tirx.tvm_struct_get", handle, index, _BYTE_OFFSET)
    return tirx.reinterpret(data.ty, tirx.handle_add_byte_offset(pointer, offset))


def _is_intrinsic(value: Any, name: str) -> bool:
    from tvm import ir

    return (
        isinstance(value, ir.Call)
        and isinstance(value.op, ir.Op)
        and value.op.name.rpartition(".")[2] == name
    )
