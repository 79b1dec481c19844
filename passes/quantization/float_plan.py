"""Which nodes can compute in half precision, and why others cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ...ir.bodies import bodies_of
from ...ir.constants import constant_array, constant_tensor
from ...ir.opset import CANONICAL_OPSET
from ...ir.schemas import Parameter, op_spec
from .operators import DEFAULT_DOMAINS

Range = tuple[float, float]

# They only move numbers: worth converting where what they move is converted.
_MOVERS = frozenset(
    {
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Expand", "Tile"),
        *("Identity", "DepthToSpace", "SpaceToDepth", "Dropout"),
    }
)
# Their results are typed by an attribute, or their float operands are scales.
_TYPED_OTHERWISE = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Constant", "EyeLike", "CastLike"),
        *(
            "RandomNormal",
            "RandomNormalLike",
            "RandomUniform",
            "RandomUniformLike",
            "Multinomial",
            "Bernoulli",
        ),
        *("SequenceEmpty", "Optional", "OptionalGetElement", "OptionalHasElement", "Range"),
    }
)
# Two quantized operands make an integer kernel whatever reads the result.
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_TAILS = ("Add", "Relu", "Clip")
_INTEGERS = frozenset(
    {
        *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
        *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
    }
)
# Numbers this large stand for infinity (attention masks): they may be cut to the largest of the type.
_STANDS_FOR_INFINITY = 1e30
# Relative error of a constant (all of it, in the Euclidean norm) at which its node stays in float32.
_CONSTANT_ERROR = 0.01


@dataclass
class FloatPlan:
    """What is converted.

    Attributes:
        operands: per node, the inputs and the outputs (by index) that take the new type.
        values: computed values, and graph inputs, that have the new type.
        from_integers: float values computed from integers alone: positions, lengths, masks.
        left: nodes that stay, with the reason.
    """

    operands: dict[ir.Node, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    values: set[ir.Value] = field(default_factory=set)
    from_integers: set[ir.Value] = field(default_factory=set)
    left: list[tuple[ir.Node, str]] = field(default_factory=list)


def plan_conversion(
    graph: ir.Graph,
    to: ir.DataType,
    selects: Callable[[ir.Node], bool],
    keeps: Callable[[ir.Node], bool],
    ranges: Mapping[str, Range],
) -> FloatPlan:
    """Decides for the nodes of a graph, producers first.

    Args:
        graph: the main graph; bodies stay in float32.
        to: FLOAT16 or BFLOAT16.
        selects: the pass's selectors.
        keeps: operators that are to stay in float32 for precision.
        ranges: measured ranges by value name; values without one are taken to fit.
    """
    plan = FloatPlan()
    integer = _integer_nodes(graph)
    for node in graph:
        inputs = [value for value in node.inputs if value is not None and value.dtype == ir.DataType.FLOAT]
        outputs = [value for value in node.outputs if value.dtype == ir.DataType.FLOAT]
        if not (inputs or outputs) or node.op_type == "Constant":
            continue
        if _is_from_integers(node, plan.from_integers):
            plan.from_integers.update(outputs)
            continue
        if not selects(node):
            continue
        found = _operands(node, to)
        problem = found if isinstance(found, str) else None
        if problem is None and node in integer:
            problem = "it computes on integers: what it reads is quantized"
        if problem is None and keeps(node):
            problem = "it is kept in float32 for precision"
        problem = problem or _constant_problem(node, to) or _range_problem(node, to, ranges)
        if problem is not None:
            plan.left.append((node, problem))
            continue
        assert not isinstance(found, str)
        # Moving numbers, or asking something about them, is no reason to convert them.
        is_follower = node.op_type in (*_MOVERS, "Cast") or not found[1]
        if is_follower and not _follows(node, plan.values):
            continue
        plan.operands[node] = found
        plan.values.update(node.outputs[index] for index in found[1])
    return plan


def largest(to: ir.DataType) -> float:
    """The largest finite number of a type."""
    return float(ml_dtypes.finfo(to.numpy()).max)


def rounded(array: np.ndarray, to: ir.DataType) -> np.ndarray:
    """A constant in the new type; what stands for infinity becomes the largest number."""
    limit = np.float32(largest(to))
    finite = np.where(np.isfinite(array), np.clip(array, -limit, limit), array)
    return finite.astype(to.numpy())


def _integer_nodes(graph: ir.Graph) -> set[ir.Node]:
    """What runtimes compute on integers: operators between pairs, and what is fused behind them.

    Half precision in between would hide the pairs from them.
    """
    found: set[ir.Node] = set()
    for node in graph:
        if node.domain not in DEFAULT_DOMAINS or node.op_type in _TYPED_OTHERWISE:
            continue
        makers = [value.producer() for value in node.inputs if value is not None and not _is_plain(value)]
        restored = [maker is not None and maker.op_type == "DequantizeLinear" for maker in makers]
        if any(restored) and all(restored) and (node.op_type in _PRODUCTS or _is_quantized(node)):
            found.add(node)
        # A bias that is stored as integers belongs to the product, whatever reads the sum.
        is_tail = node.op_type in _TAILS and (any(restored) or _is_quantized(node))
        if is_tail and any(maker in found for maker in makers):
            found.add(node)
    return found


def _is_plain(value: ir.Value) -> bool:
    """Whether an operand is no number that is computed with: a constant, a shape."""
    return value.dtype != ir.DataType.FLOAT or constant_tensor(value) is not None


def _is_quantized(node: ir.Node) -> bool:
    """Whether nobody reads results but a QuantizeLinear, or what is fused in front of it."""
    users = [user for value in node.outputs for user in value.consumers()]
    if not users or any(value.is_graph_output() for value in node.outputs):
        return False
    if len(users) == 1 and users[0].op_type in _TAILS:
        return _is_quantized(users[0])
    return all(user.op_type == "QuantizeLinear" for user in users)


def _operands(node: ir.Node, to: ir.DataType) -> tuple[tuple[int, ...], tuple[int, ...]] | str:
    """Indices of the inputs and outputs that take the new type, or why there is none."""
    if bodies_of(node):
        return "its subgraphs stay in float32"
    if node.domain not in DEFAULT_DOMAINS:
        return f"nothing is known about the types of {node.domain}::{node.op_type}"
    if node.op_type in _TYPED_OTHERWISE:
        return "its type is fixed"
    spec = op_spec("", node.op_type, CANONICAL_OPSET)
    if spec is None:
        return "it is no operator of the canonical opset"
    inputs = _convertible(node.inputs, spec.inputs, to)
    outputs = _convertible(node.outputs, spec.outputs, to)
    if not (inputs or outputs):
        return f"the operator does not take {to.name.lower()}"
    if _float_count(node.outputs) > len(outputs):
        return f"the operator does not give {to.name.lower()}"
    if not inputs and node.op_type not in ("Cast", "ConstantOfShape"):
        return "its type does not follow from its operands"
    return inputs, outputs


def _convertible(
    values: Sequence[ir.Value | None], formals: tuple[Parameter, ...], to: ir.DataType
) -> tuple[int, ...]:
    found = []
    for index, value in enumerate(values):
        if value is None or value.dtype != ir.DataType.FLOAT or not formals:
            continue
        allowed = formals[min(index, len(formals) - 1)].allowed
        if allowed is not None and to in allowed:
            found.append(index)
    return tuple(found)


def _float_count(values: Sequence[ir.Value]) -> int:
    return sum(value.dtype == ir.DataType.FLOAT for value in values)


def _is_from_integers(node: ir.Node, known: set[ir.Value]) -> bool:
    """Whether a float result is made of integers and constants alone: half precision counts to 2048 only."""
    if node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype in _INTEGERS:
        return True
    if node.op_type in ("Range", "ConstantOfShape"):
        return node.op_type == "Range"
    computed = [
        value
        for value in node.inputs
        if value is not None and value.dtype == ir.DataType.FLOAT and constant_tensor(value) is None
    ]
    return bool(computed) and all(value in known for value in computed)


def _follows(node: ir.Node, converted: set[ir.Value]) -> bool:
    """Whether what a node moves is converted, or could be as soon as it comes in."""
    first = node.inputs[0]
    if first in converted or first is None:
        return first is not None
    if node.op_type == "Cast":
        return first.dtype == ir.DataType.BOOL
    return first.producer() is None and node.op_type in _MOVERS


def _constant_problem(node: ir.Node, to: ir.DataType) -> str | None:
    """Why a constant operand cannot be stored in the new type."""
    limit = largest(to)
    for value in node.inputs:
        if value is None or value.dtype != ir.DataType.FLOAT or constant_tensor(value) is None:
            continue
        array = constant_array(value)
        if array is None or not array.size:
            continue
        finite = array[np.isfinite(array)]
        magnitude = float(np.abs(finite).max(initial=0.0))
        if limit < magnitude < _STANDS_FOR_INFINITY:
            return f"its constant '{value.name}' reaches {magnitude:.4g}, beyond {to.name.lower()}"
        kept = finite[np.abs(finite) <= limit].astype(np.float64)
        norm = float(np.linalg.norm(kept))
        error = float(np.linalg.norm(kept.astype(np.float32).astype(to.numpy()).astype(np.float64) - kept))
        if norm > 0.0 and error > _CONSTANT_ERROR * norm:
            return (
                f"its constant '{value.name}' of magnitude {magnitude:.4g} gets lost below {to.name.lower()}"
            )
    return None


def _range_problem(node: ir.Node, to: ir.DataType, ranges: Mapping[str, Range]) -> str | None:
    """Why measured activations do not fit; half of the range is left as a margin."""
    limit = largest(to) / 2
    for value in (*node.inputs, *node.outputs):
        low, high = ranges.get(str(value.name), (0.0, 0.0)) if value is not None else (0.0, 0.0)
        magnitude = max(-low, high)
        if np.isfinite(magnitude) and limit < magnitude < _STANDS_FOR_INFINITY:
            assert value is not None
            return f"'{value.name}' reaches {magnitude:.4g} on the calibration data"
    return None
