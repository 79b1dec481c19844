"""Operations as Torch-Pruning counts them, to compare figures with what it publishes.

Torch-Pruning 1.6.1 hangs counters on torch modules. Beside the products that `ir.macs` counts it adds

- the bias: once per position for convolutions, once in all for linear layers;
- 2 per input element of batch, group, instance and layer norms with a scale, 1 without;
- 1 per output element of ReLU, ReLU6, PReLU, ELU, LeakyReLU and GELU, 1 per input element of pooling;
- for torch's MultiheadAttention and timm's Attention: products of activations, softmax and scaling.

What is called as a function (`F.relu`, `F.linear`, products of activations in the attention of transformers
and torchvision's Swin) is not counted. Up to 1.2 layer norms were not counted either: its published
figures of BERT and Swin (from transformers) date from then. Where a graph was traced from torch its nodes say
which module they belong to; where not, all that look like such a module count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from ...ir.constants import constant_tensor
from ...ir.errors import PassError
from ...ir.macs import node_macs
from ...ir.provenance import module_classes
from ...ir.static import static_shape

Counting = Literal["torch-pruning", "torch-pruning-1.2"]
COUNTINGS: tuple[Counting, ...] = ("torch-pruning", "torch-pruning-1.2")

_NORMS = {
    "BatchNormalization": ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"),
    "InstanceNormalization": ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "GroupNorm"),
    "GroupNormalization": ("GroupNorm",),
    "LayerNormalization": ("LayerNorm",),
}
_ACTIVATIONS = {
    "Relu": ("ReLU",),
    "Clip": ("ReLU6",),
    "PRelu": ("PReLU",),
    "Elu": ("ELU",),
    "LeakyRelu": ("LeakyReLU",),
    "Gelu": ("GELU",),
}
_POOL_OPERATORS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean")
_POOLS = ("MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool")
_ATTENTION = ("MultiheadAttention", "Attention", "WindowAttention")
_LINEAR = ("Linear", "NonDynamicallyQuantizableLinear")


@dataclass(frozen=True)
class OperationCount:
    """Operations of one run for one sample.

    Attributes:
        total: Their sum, by the rules of `counting`.
        products: Multiply-accumulates by our own rules (`ir.account`), per sample too.
        by_kind: What the total is made of.
        counting: Whose rules.
    """

    total: int
    products: int
    by_kind: dict[str, int]
    counting: str

    @property
    def explanation(self) -> str:
        """One line on what makes the difference to our own count."""
        parts = ", ".join(f"{kind} {count:,}" for kind, count in self.by_kind.items() if kind != "products")
        missing = self.products - self.by_kind.get("products", 0)
        left_out = f"; products it does not see {missing:,}" if missing else ""
        return f"{self.counting} counts beside products: {parts or 'nothing'}{left_out}"


def count_operations(model: ir.Model, counting: str = "torch-pruning") -> OperationCount:
    """Count the main graph of a model by the rules of another tool.

    Args:
        model: Shapes inferred and static.
        counting: `torch-pruning` (1.6.1), or `torch-pruning-1.2`, which left layer norms out.

    Raises:
        PassError: A shape is not static.
    """
    by_kind: dict[str, int] = {}
    ours = 0
    for node in model.graph:
        products, _ = node_macs(node)
        if products is None or not isinstance(products, int):
            raise PassError(
                f"counting={counting} needs static shapes; '{node.name}' has none, fix them with --dim"
            )
        ours += products
        for kind, count in _counts(node, products, counting):
            by_kind[kind] = by_kind.get(kind, 0) + count
    batch = _batch(model)
    shares = {kind: count // batch for kind, count in by_kind.items() if count}
    return OperationCount(sum(by_kind.values()) // batch, ours // batch, shares, counting)


def _counts(node: ir.Node, products: int, counting: str) -> Iterator[tuple[str, int]]:
    """(kind, operations) of one node for the whole batch."""
    classes = [name.rsplit(".", 1)[-1] for name in module_classes(node)]
    innermost = classes[-1] if classes else None
    attention = next((name for name in classes if name in _ATTENTION), None)
    op = node.op_type
    if attention is not None:
        yield from _attention_counts(node, products)
        return
    if op in ("Conv", "ConvTranspose"):
        yield "products", products if op == "Conv" else _transposed(node)
        yield "biases", _elements(node.outputs[0]) if _has(node, 2) else 0
    elif op in ("Gemm", "MatMul") and _reads_weight(node) and _is(innermost, _LINEAR):
        yield "products", products
        bias = static_shape(node.inputs[2]) if op == "Gemm" and _has(node, 2) else None
        # Its hook adds the bias of a linear layer once, whatever the batch; we divide by the batch later.
        yield "biases", math.prod(bias) if bias is not None else 0
    elif op == "Add" and _is_bias(node) and innermost in _LINEAR:
        yield "biases", _bias_size(node)
    elif op in _NORMS and _is(innermost, _NORMS[op]):
        if op != "LayerNormalization" or counting == "torch-pruning":
            affine = 2 if op == "BatchNormalization" or _has(node, 1) else 1
            yield "normalizations", affine * _elements(node.inputs[0])
    elif op in _ACTIVATIONS and _is(innermost, _ACTIVATIONS[op]):
        yield "activations", _elements(node.outputs[0])
    elif op in _POOL_OPERATORS and (_is_pool(innermost) if innermost else op != "ReduceMean"):
        yield "pooling", _elements(node.inputs[0])


def _attention_counts(node: ir.Node, products: int) -> Iterator[tuple[str, int]]:
    """Inside an attention module: all products, all biases, softmax, and the scaling of queries."""
    op = node.op_type
    if op in ("Gemm", "MatMul") and _reads_weight(node):
        yield "products", products
        yield "biases", _elements(node.outputs[0]) if op == "Gemm" and _has(node, 2) else 0
    elif op == "Add" and _is_bias(node):
        yield "biases", _elements(node.outputs[0])
    elif op == "MatMul":
        yield "products", products
        # What softmax weighs is as large as the queries that were scaled.
        yield "attention", _elements(node.outputs[0]) if _comes_from_softmax(node.inputs[0]) else 0
    elif op == "Softmax":
        yield "attention", _elements(node.outputs[0])
    elif op == "Attention":
        yield "products", products
        query, key = static_shape(node.inputs[0]), static_shape(node.inputs[1])
        if query is not None and key is not None and len(query) == 4:
            yield "attention", math.prod(query[:3]) * key[2] + math.prod(query)


def _comes_from_softmax(value: ir.Value | None) -> bool:
    for _ in range(4):
        node = value.producer() if value is not None else None
        if node is None:
            return False
        if node.op_type == "Softmax":
            return True
        value = node.inputs[0] if node.inputs else None
    return False


def _is(innermost: str | None, names: tuple[str, ...]) -> bool:
    return innermost is None or innermost in names


def _is_pool(innermost: str) -> bool:
    return innermost.rstrip("123d") in _POOLS


def _has(node: ir.Node, index: int) -> bool:
    return len(node.inputs) > index and node.inputs[index] is not None


def _reads_weight(node: ir.Node) -> bool:
    """Whether a product has a stored operand, also one that is transposed or cast first."""
    for value in node.inputs[:2]:
        for _ in range(3):
            if constant_tensor(value) is not None:
                return True
            maker = value.producer() if value is not None else None
            if maker is None or maker.op_type not in ("Transpose", "Cast", "Identity", "Reshape"):
                break
            value = maker.inputs[0]
    return False


def _is_bias(node: ir.Node) -> bool:
    return any(value is not None and constant_tensor(value) is not None for value in node.inputs)


def _bias_size(node: ir.Node) -> int:
    return min(_elements(value) for value in node.inputs if constant_tensor(value) is not None)


def _transposed(node: ir.Node) -> int:
    """Its hook takes a transposed convolution for a plain one: every output position, all of the kernel."""
    weight = static_shape(node.inputs[1])
    result = static_shape(node.outputs[0])
    assert weight is not None and result is not None
    return result[0] * math.prod(result[2:]) * math.prod(weight)


def _elements(value: ir.Value | None) -> int:
    shape = static_shape(value)
    if shape is None:
        raise PassError(
            f"the shape of '{value.name if value is not None else '?'}' is not static; fix it with --dim"
        )
    return math.prod(shape)


def _batch(model: ir.Model) -> int:
    for value in model.graph.inputs:
        shape = static_shape(value)
        if shape and not value.is_initializer():
            return max(shape[0], 1)
    return 1
