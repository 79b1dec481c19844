"""Recurrent weights of few bits: stored as they are, restored by every step that reads them.

`recurrence::Recurrence` then takes codes in the place of its weights and three more operands behind the
others: scale, offset (or nothing) and levels (or nothing), with attributes `bits`, `group` and `zero`, all as
`integer::WeightMatMul` has them (see `integer_weights`) for weights that lie as (N, K), N being the gates of
all directions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ...ir.static import static_shape
from ...passes.rewriter import Rewriter
from .integer_weights import Stored, dequantized, tabulated
from .op import Op, attributes_of
from .recurrent_activations import by_direction

if TYPE_CHECKING:
    from ..target import Target
    from .kernels.weight_form import WeightForm

DOMAIN = "recurrence"
WEIGHTS, SCALE, OFFSET, LEVELS = 1, 7, 8, 9
OPERANDS = {"weights": WEIGHTS, "scale": SCALE, "offset": OFFSET, "levels": LEVELS}
"""Where the operands of stored weights are."""


def keep_recurrent_weights_small(model: ir.Model, target: Target) -> None:
    """Let recurrent layers read their weights as they are stored.

    Weights stay floats where steps are estimated to be faster so: where a cache holds them as floats, and
    they would be decoded, or serve several sequences at once.

    Args:
        model: the model about to be lowered, recurrent operators decomposed; changed in place.
        target: decides whether places in small tables can be looked up.
    """
    from .kernels.tables import has_look_up

    rewriter, looks_up = Rewriter(model, origin="lowering"), has_look_up(target)
    for node in list(model.graph):
        if node.domain != DOMAIN or "bits" in node.attributes:
            continue
        weights = node.inputs[WEIGHTS]
        shape = static_shape(weights)
        if weights is None or shape is None or len(shape) != 3 or weights.dtype != ir.DataType.FLOAT:
            continue
        rows = (math.prod(shape[:-1]), shape[-1])
        stored = dequantized(weights, rows, True) or (tabulated(weights, rows, True) if looks_up else None)
        if stored is None:
            continue
        if _pays(node, stored, target):
            _replace(node, stored, shape, rewriter)


def _pays(node: ir.Node, stored: Stored, target: Target) -> bool:
    """Whether a step is estimated to be no slower with the weights as they are stored."""
    from .kernels.recurrence_plan import step_cycles
    from .kernels.recurrence_spec import RecurrenceSpec

    own, products = attributes_of(node), static_shape(node.inputs[0])
    assert products is not None
    batch, backwards = (
        products[0 if own["batch_first"] else 1],
        tuple(bool(each) for each in own["backwards"]),
    )
    shape = own["cell"], own["steps"], batch, stored.weights.shape[1], backwards, by_direction(own)
    form = _form(stored.bits, stored.group, stored.zero, stored.offset is not None, stored.levels is not None)
    costs = [step_cycles(RecurrenceSpec(*shape, weights=each), target) for each in (form, None)]
    return costs[0] <= costs[1]


def _replace(node: ir.Node, stored: Stored, shape: tuple[int, ...], rewriter: Rewriter) -> None:
    def constant(name: str, array: np.ndarray | None) -> ir.Value | None:
        return None if array is None else rewriter.initializer(f"{node.name}/{name}", array)

    weights, old = constant("weights", stored.weights.reshape(shape)), node.inputs[WEIGHTS]
    assert old is not None
    maker, output = old.producer(), node.outputs[0]
    inputs = [*node.inputs, *[None] * (SCALE - len(node.inputs))]
    inputs[WEIGHTS] = weights
    inputs += [constant(name, getattr(stored, name)) for name in ("scale", "offset", "levels")]
    # Every group begins with a byte of its own.
    several = len(stored.scale) > 1 and stored.group * stored.bits % 8 > 0
    own = {
        **node.attributes,
        "bits": 8 if several else stored.bits,
        "group": stored.group,
        "zero": float(stored.zero),
    }
    (made,) = rewriter.insert_before(node, node.op_type, inputs, own, domain=DOMAIN)
    made.type, made.shape = output.type, output.shape
    rewriter.replace(node, [made])
    rewriter.erase_unread(maker)


def weight_form(op: Op) -> WeightForm | None:
    """How the weights of the operator are stored; None for floats."""
    bits = op.attr("bits", 0)
    if not bits:
        return None
    return _form(bits, op.attr("group"), op.attr("zero"), op.has(OFFSET), op.has(LEVELS))


def _form(bits: int, group: int, zero: float, has_offset: bool, has_levels: bool) -> WeightForm:
    from .kernels.weight_form import WeightForm

    return WeightForm(bits, group, True, has_offset, zero, has_levels)
