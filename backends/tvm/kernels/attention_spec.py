"""What the attention kernel computes, by shapes alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionSpec:
    """softmax(cap(scale q k^T) + bias) v per head; `heads / kv_heads` heads of queries share keys and values.

    Operands are stored (batch, heads, length, size), or (batch, length, heads, size) where `*_inner` is set.
    """

    batch: int
    heads: int
    kv_heads: int
    rows: int
    columns: int
    size: int
    value_size: int
    scale: float
    softcap: float = 0.0
    causal: bool = False
    offset: int = 0
    """Keys that precede the first query, where causal."""
    bias: tuple[int, int, int, int] | None = None
    """Shape of what is added to the scores, broadcast against (batch, heads, rows, columns)."""
    q_inner: bool = False
    k_inner: bool = False
    v_inner: bool = False
    out_inner: bool = False

    @property
    def flops(self) -> int:
        """Additions and multiplications of both products, masked ones included."""
        return 2 * self.batch * self.heads * self.rows * self.columns * (self.size + self.value_size)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the stored output."""
        return stored_heads(self.batch, self.heads, self.rows, self.value_size, self.out_inner)

    @property
    def may_be_empty(self) -> bool:
        """Whether every key of a query may be masked; its result is zero then."""
        return self.bias is not None or (self.causal and self.offset < 0)


def stored_heads(batch: int, heads: int, length: int, size: int, inner: bool) -> tuple[int, int, int, int]:
    """Shape of (batch, heads, length, size), heads and length turned where `inner` is set."""
    return (batch, length, heads, size) if inner else (batch, heads, length, size)
