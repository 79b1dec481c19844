"""Static int8 quantization: pairs of QuantizeLinear and DequantizeLinear where the target runs integers.

    x -> Conv(w, b) -> Relu -> ...
    x -> Q -> DQ -> Conv(DQ(w8), DQ(b32)) -> Relu -> Q -> DQ -> ...

The graph stays an ordinary ONNX graph that any runtime executes in float; a backend with integer kernels
reads the pairs around an operator as its operand types. What the target can do stands in
`quantization/tables.py`, where the pairs go in `placement.py`, the arithmetic in `arithmetic.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import onnx_ir as ir

from ..ir.errors import PassError
from .base import Pass, PassContext
from .functions import flatten_functions
from .quantization.arithmetic import range_problem
from .quantization.calibration import Calibration, NoRanges, as_calibration
from .quantization.calibrators import Method
from .quantization.embeddings import is_embedding, quantize_embeddings
from .quantization.emit import emit
from .quantization.extremes import Range
from .quantization.importance import importance_of
from .quantization.means import MeanToPool
from .quantization.mixing import grids_by_steps, mix
from .quantization.original import remember_original
from .quantization.placement import Plan, first_and_last_layers, plan_quantization
from .quantization.precisions import FLOAT, PRECISIONS, Formats, check_precisions, precision_selector
from .quantization.ranges import measure_ranges
from .quantization.scales import Scales, assign_scales
from .quantization.tables import Table, find_table
from .quantization.transposed import turn_weights
from .registry import register

_NO_DATA = (
    "it needs calibration data to measure activation ranges: give `--calibration FILE.npz|FOLDER` "
    "(in Python: `calibration=`), or `--calibrate-random` if only speed matters"
)


@register
@dataclass(frozen=True)
class InsertQdq(Pass):
    """Quantize with Q/DQ pairs where the target has integer kernels (static, calibrated).

    Weights become int8, symmetric, one scale per output channel; activations 8 bits, one scale per tensor,
    ranges measured on the calibration data and always containing zero; biases int32. Other precisions, for
    all layers or some: 16-bit activations, 4-bit weights, 8-bit floats. Graph inputs and outputs keep their
    types. Nodes stay in float, and are reported, where weights or bias are not constant, a range is not
    finite, the table has no integer kernel or too few channels, or the node is already quantized; subgraphs
    are not entered. Embedding tables (constants that Gather reads) become int8 and are restored row by row.
    Running the pass twice changes nothing the second time. Lossy.
    """

    name: ClassVar[str] = "insert-qdq"
    lossless: ClassVar[bool] = False

    target: str | None = None
    """Quantization table: x86, x86-vnni, arm, arm-dotprod, cuda, tvm, generic, or a .json file; by default
    the one for the target being compiled for."""
    precision: Literal["int8", "a16w8", "a16w16", "a8w4", "fp8-e4m3", "fp8-e5m2"] = "int8"
    """Bits of activations (a) and weights (w), or 8-bit floats; int8 is what the table says."""
    layers: str | None = None
    """Other precisions for some nodes: REGEX=PRECISION;..., the first that matches a node's name, module path
    or op type; `float` is a precision too."""
    symmetric_activations: bool | None = None
    """Whether activations have their zero point in the middle; by default the table says."""
    symmetric_weights: bool | None = None
    """Whether weights have zero point 0; by default the table says (they have)."""
    ends: Literal["table", "quantize", "float"] = "table"
    """Whether the first and the last layers are quantized or stay in float; `table` asks the table."""
    calibration: Literal[
        "auto", "minmax", "mean", "moving-average", "percentile", "entropy", "mse", "clipped"
    ] = "auto"  # fmt: skip
    """How activation ranges are estimated from the batches; percentile, entropy and mse go through the data
    twice. `auto` is mse, or minmax for data that can be read once only, random data, and 8-bit floats."""
    percentile: float = 99.99
    """With `calibration=percentile`: the share of numbers, in percent, that neither end of a range cuts."""
    deviations: float = 6.0
    """With `calibration=clipped`: standard deviations from the mean beyond which numbers are cut."""
    calibration_cache: str | None = None
    """File that measured ranges are saved to and reused from; without data, all there is."""
    embeddings: Literal["table", "quantize", "float"] = "table"
    """Whether constant tables that Gather reads (embeddings) become integers, with a scale per row or, where
    that is nearer, per column; `table` asks the target's table."""
    products: Literal["table", "quantize", "float"] = "table"
    """Whether both operands of a MatMul without constants (attention's scores and values) become integers of
    8 bits; `table` asks the target's table, all of which leave them in float: softmax's input is delicate."""
    reduce_range: bool | None = None
    """Use 7 bits for weights, against sums that saturate on x86 without VNNI; by default the table says."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 50.0 < self.percentile <= 100.0:
            raise PassError(
                f"{self.name}: option 'percentile' must be above 50 and at most 100, not {self.percentile}"
            )
        if not self.deviations > 0.0:
            raise PassError(f"{self.name}: option 'deviations' must be above 0, not {self.deviations}")
        precision_selector(self.precision, self.layers, self.name)

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Plan, measure, drop what cannot be quantized, and insert the pairs.

        Raises:
            PassError: There is no calibration data, it does not suit the model, or the table is unknown.
        """
        data = self._data(context)
        flatten_functions(model, context)
        remember_original(model)
        formats = self._formats(model, context)
        if "GlobalAveragePool" in formats.table.computed:
            context.rewrite(model, MeanToPool())
        turn_weights(
            model.graph,
            lambda node: self.selects(node) and formats.precision_of(node) != FLOAT,
            context.rewriter(model),
        )
        kept = self._kept_layers(model.graph, formats.table)

        def planned(forbidden: Mapping[ir.Value, str]) -> Plan:
            return plan_quantization(model.graph, formats.table, self.selects, forbidden, formats, kept)

        plan = planned({})
        ranges, batches = self._measure(model, plan, formats, data, context)
        problems = {value: range_problem(*ranges[str(value.name)]) for value in plan.values}
        forbidden = {value: problem for value, problem in problems.items() if problem is not None}
        if forbidden:
            plan = planned(forbidden)
        mixture = mix(plan, formats)
        scales = assign_scales(plan, ranges, mixture)
        _report(plan, scales, formats.table, data, batches, context)
        emit(model, plan, scales, mixture, formats, context, self.selects)
        self._quantize_embeddings(model, formats, context)

    def _quantize_embeddings(self, model: ir.Model, formats: Formats, context: PassContext) -> None:
        wanted = formats.table.embeddings if self.embeddings == "table" else self.embeddings
        if wanted == "float":
            for node in filter(is_embedding, model.graph):
                context.leave(node, "its table stays in float: embeddings=quantize stores it as integers")
            return

        def dtype_of(node: ir.Node) -> str | None:
            precision = formats.precision_of(node)
            if precision == FLOAT:
                return None
            return "int16" if PRECISIONS[precision].weights == "int16" else "int8"

        quantize_embeddings(model, dtype_of, self.selects, context)

    def _formats(self, model: ir.Model, context: PassContext) -> Formats:
        table = find_table(self.target, context.target)
        if self.products != "table":
            table = dataclasses.replace(table, products=self.products)
        precision_of = precision_selector(self.precision, self.layers, self.name)
        wanted = {precision_of(node) for node in model.graph if node.op_type in table.weighted}
        check_precisions(table, wanted | {self.precision})
        for part in [part.strip() for part in (self.layers or "").split(";") if part.strip()]:
            chosen = precision_selector("", part, self.name)
            if not any(chosen(node) for node in model.graph):
                context.note(f"option 'layers': '{part}' matches no node")
        return Formats(
            table, precision_of, self.reduce_range, self.symmetric_activations, self.symmetric_weights
        )

    def _kept_layers(self, graph: ir.Graph, table: Table) -> dict[ir.Node, str]:
        """First and last layers that stay in float."""
        first, last = first_and_last_layers(graph, table)
        policies = (table.first_layer, table.last_layer) if self.ends == "table" else (self.ends, self.ends)
        kept: dict[ir.Node, str] = {}
        for layers, policy, which in ((first, policies[0], "first"), (last, policies[1], "last")):
            if policy == "float":
                kept.update((node, f"it is a {which} layer") for node in layers if self.selects(node))
        return kept

    def _measure(
        self,
        model: ir.Model,
        plan: Plan,
        formats: Formats,
        data: Calibration,
        context: PassContext,
    ) -> tuple[dict[str, Range], int]:
        """Ranges of all values; calibrators that ask how fine a grid is run once for each kind of grid."""
        kinds: Mapping[tuple[int, bool, bool], list[str]] = grids_by_steps(mix(plan, formats))
        if self.calibration not in ("auto", "entropy", "mse") and kinds:
            kinds = {next(iter(kinds)): [str(value.name) for value in plan.values]}
        values = {str(value.name): value for value in plan.values}
        ranges: dict[str, Range] = {}
        batches = 0
        for (steps, symmetric, floats), names in kinds.items():
            for name in self._calibrators(data, floats):
                method = Method(
                    *(name, self.percentile, self.deviations, steps, symmetric),
                    importance=(lambda each: importance_of(values[each])) if name == "mse" else None,
                )
                try:
                    found, batches = measure_ranges(model, names, data, method, context.progress)
                except NoRanges:
                    if name == self._calibrators(data, floats)[-1]:
                        raise
                    continue
                ranges.update(found)
                break
        return ranges, batches

    def _calibrators(self, data: Calibration, floats: bool) -> tuple[str, ...]:
        """The calibrator, or several of which the first counts that saved ranges are of."""
        if self.calibration != "auto":
            return (self.calibration,)
        if not data.has_data:
            return ("mse", "minmax")
        return ("minmax",) if floats or data.random or not data.repeatable else ("mse",)

    def _data(self, context: PassContext) -> Calibration:
        if context.calibration is not None:
            data = as_calibration(context.calibration)
            return data.with_cache(self.calibration_cache) if self.calibration_cache else data
        if self.calibration_cache is not None:
            return Calibration.saved(self.calibration_cache)
        raise PassError(_NO_DATA)


def _report(
    plan: Plan,
    scales: Scales,
    table: Table,
    data: Calibration,
    batches: int,
    context: PassContext,
) -> None:
    for node, reason in plan.left:
        context.leave(node, reason)
    if data.random:
        context.note("calibrated on random numbers: speed is meaningful, accuracy is not")
    details: dict[str, Any] = {
        "table": table.name,
        "calibration": {"source": data.source, "batches": batches, "random": data.random},
        "values": {
            str(value.name): {
                "low": scale.low,
                "high": scale.high,
                "scale": float(scale.scale),
                "zero_point": scale.zero_point,
                "type": scale.grid.dtype,
            }
            for value, scale in scales.of.items()
        },
    }
    context.details.update(details)
