"""Operators on integers that only the lowering knows: what quantized parts of a graph become.

`integer::Conv(x, w[, bias])` and `integer::MatMul(a, b[, bias])` give int32 sums of products of operands
as they are stored. Attribute `zero_point` of Conv is what padding holds; those of MatMul, `zero_point` and
`right_zero_point`, are taken off the operands. Other zero points are the business of the int32 `bias`, one
per output channel, and of weights, which are stored without theirs (int8, or int16 where that is too small).
`integer::ConvTranspose(x, w[, bias])` is the same with a bias per channel, or per phase of the output (its
position modulo the strides) and channel; what lies outside of the image holds `zero_point`.
`integer::AveragePool(x)` gives float32 means of `x - zero_point`, which are exact up to the division.
`integer::Table(x, table)` looks every 8-bit element up in 256 others, in the order of its bits.
`integer::Part(x)` and `integer::Join(high, low)` are element-wise: integer_bytes.py.
"""

from __future__ import annotations

DOMAIN = "integer"
CONV = f"{DOMAIN}::Conv"
CONV_TRANSPOSE = f"{DOMAIN}::ConvTranspose"
MATMUL = f"{DOMAIN}::MatMul"
AVERAGE = f"{DOMAIN}::AveragePool"
WEIGHT_MATMUL = f"{DOMAIN}::WeightMatMul"
TABLE = f"{DOMAIN}::Table"
PART = f"{DOMAIN}::Part"
JOIN = f"{DOMAIN}::Join"
INTEGER_ANCHORS = frozenset({CONV, CONV_TRANSPOSE, MATMUL, AVERAGE, WEIGHT_MATMUL, TABLE})

FLOAT_KEY = "graphwright.float"
"""Metadata of a node: why a quantized operator is computed in float, for reports."""
STORED = frozenset({"int8", "uint8", "int16", "uint16"})
"""Element types of activations."""
MOST_TERMS = (1 << 31) // (255 * 128)
"""Products of 8-bit numbers that int32 holds the sum of."""
