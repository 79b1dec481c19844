"""How attention is spelled, read off a graph: scores, masks, heads and the shapes they need.

`scores` walks from a softmax down to the product of queries and keys, `masks` says what is added to the
scores and what is known about it, `operands` finds queries, keys and values behind scales, transposes and
repeated heads, `dimensions` writes shapes that are known only when the model runs, `emit` the operator.
"""

from __future__ import annotations
