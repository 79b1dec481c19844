"""The tensors of a program in one piece of memory, each at an offset of its own.

TVM's `StaticPlanBlockMemory` lets tensors take turns in storages, in the order of the program: a small tensor
blocks a large storage, a large one opens another storage, and element types share none. Here the largest
tensor chooses its place first, in the smallest gap between those that are needed at the same time (Pisarchyk
and Lee, "Efficient Memory Management for Deep Neural Net Inference", MLSys 2020: greedy by size for offsets).

Kernels must look at the `byte_offset` of tensors for this; see `byte_offsets.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

ALIGNMENT = 64
_ALLOC_STORAGE, _ALLOC_TENSOR = "relax.memory.alloc_storage", "relax.memory.alloc_tensor"
_RESHAPE = "relax.reshape"


@dataclass(frozen=True)
class Lifetime:
    """A tensor of `bytes` bytes that is made by one instruction and last read by another."""

    bytes: int
    first: int
    last: int

    def meets(self, other: Lifetime) -> bool:
        """Whether both are needed at some instruction."""
        return self.first <= other.last and other.first <= self.last


def place(lifetimes: Sequence[Lifetime]) -> list[int]:
    """Offsets in bytes, in order, multiples of `ALIGNMENT`; tensors that meet lie apart."""
    offsets: dict[int, int] = {}
    for position in sorted(range(len(lifetimes)), key=lambda each: (-lifetimes[each].bytes, each)):
        own = lifetimes[position]
        taken = sorted(
            (offset, offset + _aligned(lifetimes[other].bytes))
            for other, offset in offsets.items()
            if own.meets(lifetimes[other])
        )
        offsets[position] = _gap(taken, _aligned(own.bytes))
    return [offsets[position] for position in range(len(lifetimes))]


def _gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    """Where the smallest gap that is large enough begins; the end where there is none."""
    best, end = None, 0
    for start, stop in taken:
        if start - end >= size and (best is None or start - end < best[0]):
            best = (start - end, end)
        end = max(end, stop)
    return end if best is None else best[1]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def plan_arena() -> Any:
    """A pass behind `StaticPlanBlockMemory`; what lowers kernels must contain `add_byte_offsets`."""
    from tvm import relax
    from tvm.ir.transform import module_pass

    @module_pass(opt_level=0, name="PlanArena")
    def run(module: Any, _: Any) -> Any:
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                module[variable] = _planned(function, module)
        return module

    return run


def _planned(function: Any, module: Any) -> Any:
    """The function with tensors in one storage; itself where that would not need less memory."""
    from tvm import relax

    bindings = [binding for block in function.body.blocks for binding in block.bindings]
    if any(isinstance(binding.value, relax.If) for binding in bindings):
        return function
    storages = {
        binding.var: int(size)
        for binding in bindings
        if _calls(binding, _ALLOC_STORAGE) and (size := _integer(binding.value.args[0].values[0])) is not None
    }
    lifetimes = _lifetimes(bindings, function.body.body, storages.keys(), module)
    offsets = dict(zip(lifetimes, place(list(lifetimes.values())), strict=True))
    # What other tensors take turns in stays.
    kept = {
        each.value.args[0] for each in bindings if _calls(each, _ALLOC_TENSOR) and each.var not in offsets
    }
    before = sum(size for variable, size in storages.items() if variable not in kept)
    size = max((offset + _aligned(lifetimes[each].bytes) for each, offset in offsets.items()), default=0)
    if size >= before:
        return function
    return _rewritten(function, storages.keys() - kept, offsets, size)


def _calls(binding: Any, name: str) -> bool:
    from tvm import ir

    operator = getattr(binding.value, "op", None)
    return isinstance(operator, ir.Op) and operator.name == name


def _integer(size: Any) -> int | None:
    from tvm import tirx

    return int(size) if isinstance(size, tirx.IntImm) else None


def _bytes(tensor: Any) -> int | None:
    """Of a binding that makes a tensor; None where a dimension is open."""
    sizes = [_integer(size) for size in tensor.value.args[2].values]
    kind = tensor.value.args[3].value
    known = [size for size in sizes if size is not None]
    return -(-math.prod(known) * kind.bits * kind.lanes // 8) if len(known) == len(sizes) else None


def _lifetimes(bindings: Sequence[Any], result: Any, storages: Set[Any], module: Any) -> dict[Any, Lifetime]:
    """Of the tensors in `storages` that only kernels see, by variable."""
    from tvm.relax.analysis import free_vars

    sizes: dict[Any, int] = {}
    first: dict[Any, int] = {}
    last: dict[Any, int] = {}
    origins: dict[Any, Set[Any]] = {}
    for index, binding in enumerate(bindings):
        read: set[Any] = set().union(*(origins.get(each, ()) for each in free_vars(binding.value)))
        last |= dict.fromkeys(read, index)
        if _calls(binding, _ALLOC_TENSOR) and binding.value.args[0] in storages:
            size = _bytes(binding)
            if size is not None:
                sizes[binding.var], first[binding.var], last[binding.var] = size, index, index
                origins[binding.var] = {binding.var}
        elif read and not _is_kernel(binding.value, module):
            origins[binding.var] = read
            if not _is_view(binding):
                for each in read:
                    sizes.pop(each, None)
    for each in free_vars(result):
        for origin in origins.get(each, ()):
            sizes.pop(origin, None)
    return {each: Lifetime(size, first[each], last[each]) for each, size in sizes.items()}


def _is_kernel(value: Any, module: Any) -> bool:
    """Whether it calls a function of the module's own, which returns nothing and keeps nothing."""
    from tvm import ir, tirx

    return (
        isinstance(value, ir.Call)
        and isinstance(value.op, ir.GlobalVar)
        and isinstance(module[value.op], tirx.PrimFunc)
    )


def _is_view(binding: Any) -> bool:
    from tvm import relax

    return isinstance(binding.value, relax.Var) or _calls(binding, _RESHAPE)


def _rewritten(function: Any, old: Set[Any], offsets: Mapping[Any, int], size: int) -> Any:
    """The function with a storage of `size` bytes that holds the tensors at their offsets."""
    from tvm import relax

    builder = relax.BlockBuilder()
    storage = builder.normalize(relax.op.memory.alloc_storage(relax.ShapeExpr([size]), 0, "global", "uint8"))
    arena = relax.Var("arena", storage.ty)

    def changed(binding: Any) -> Any:
        if binding.var not in offsets:
            return binding
        _, _, *others = binding.value.args
        offset = relax.prim_value(offsets[binding.var])
        made = relax.Call(binding.value.op, [arena, offset, *others])
        return relax.VarBinding(binding.var, builder.normalize(made))

    def blocks() -> Iterator[Any]:
        allocation = [relax.VarBinding(arena, storage)]
        for block in function.body.blocks:
            yield type(block)(
                [*allocation, *(changed(each) for each in block.bindings if each.var not in old)]
            )
            allocation = []

    body = relax.SeqExpr(list(blocks()), function.body.body)
    return relax.Function(
        function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span
    )
