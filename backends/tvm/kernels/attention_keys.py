"""Operands of the attention kernel in memory, and keys packed so that vectors run over them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from . import emit
from .attention_spec import AttentionSpec, stored_heads
from .emit import Statements
from .product import SERIAL_FLOPS
from .tile import Tile, blocks
from .transpose import transpose


@dataclass(frozen=True)
class StoredHeads:
    """A stored operand seen as one axis."""

    buffer: Any
    flat: Any
    declaration: Any
    batch_stride: int
    head_stride: int
    row_stride: int

    @classmethod
    def of(cls, name: str, batch: int, heads: int, length: int, size: int, inner: bool) -> StoredHeads:
        """The operand as a parameter of the kernel."""
        shape = stored_heads(batch, heads, length, size, inner)
        source = emit.buffer(name, shape)
        flat, declaration = emit.flat_view(source, prod(shape))
        head, row = (size, heads * size) if inner else (length * size, size)
        return cls(source, flat, declaration, heads * length * size, head, row)

    def start(self, batch: Any, head: Any) -> Any:
        """Where a head begins."""
        return batch * self.batch_stride + head * self.head_stride


def pack_keys(spec: AttentionSpec, keys: StoredHeads, tile: Tile) -> tuple[Any, Statements]:
    """Keys as (batch * heads, blocks, size, block), flat, with zeros beyond the last key."""
    block, lanes = tile.block, tile.lanes
    count = blocks(spec.columns, block)
    shape = (spec.batch * spec.kv_heads, count, spec.size, block)
    packed, allocation = emit.allocate("packed", (prod(shape),), scope="global")

    def fill(t: Any) -> Any:
        n, h, b = emit.unravel(t, (spec.batch, spec.kv_heads, count))
        base = ((n * spec.kv_heads + h) * count + b) * (spec.size * block)
        source = keys.start(n, h)

        def group(v: Any) -> Any:
            """The keys of one vector: a square at a time where all of them exist."""
            first = b * block + v * lanes
            start = source + first * keys.row_stride
            whole, rest = divmod(spec.size, lanes) if _is_power(lanes) else (0, spec.size)

            def put(d: Any, value: Any, lane: Any, width: int) -> Any:
                return emit.store(packed, value, [base + d * block + v * lanes + lane], width)

            def square(number: Any) -> Statements:
                loaded = []
                statements: Statements = []
                for row in range(lanes):
                    at = start + row * keys.row_stride + number * lanes
                    name, bound = emit.hold(f"k{row}", emit.load(keys.flat, [at], lanes), lanes)
                    loaded.append(name)
                    statements.append(bound)
                columns, made = transpose(loaded)
                stored = [put(number * lanes + d, each, 0, lanes) for d, each in enumerate(columns)]
                return [*statements, *made, *stored]

            def single(lane: Any, begin: int, length: int) -> Any:
                inside = first + lane < spec.columns if spec.columns % block else True
                place = start + lane * keys.row_stride
                return emit.when(
                    inside,
                    emit.loop(
                        "d",
                        length,
                        lambda d: put(d, emit.load(keys.flat, [place + d]), lane, 1),
                        start=begin,
                    ),
                    emit.loop("d", length, lambda d: put(d, emit.constant(0.0), lane, 1), start=begin),
                )

            def singles(begin: int, length: int) -> Any:
                return emit.loop("lane", lanes, lambda lane: single(lane, begin, length))

            squares = [emit.loop("square", whole, square), singles(whole * lanes, rest) if rest else []]
            fits = first + lanes <= spec.columns if spec.columns % block else True
            return emit.when(fits, squares, singles(0, spec.size))

        return emit.loop("v", tile.vectors, group)

    tasks = spec.batch * spec.kv_heads * count
    return packed, [allocation, emit.parallel("pack", tasks, fill, spec.flops > SERIAL_FLOPS)]


def _is_power(number: int) -> bool:
    return number & (number - 1) == 0
