"""Static int8 quantization: pairs of QuantizeLinear and DequantizeLinear where the target runs integers.

    x -> Conv(w, b) -> Relu -> ...
    x -> Q -> DQ -> Conv(DQ(w8), DQ(b32)) -> Relu -> Q -> DQ -> ...

The graph stays an ordinary ONNX graph that any runtime executes in float; a backend with integer kernels
reads the pairs around an operator as its operand types. What the target can do stands in
`quantization/tables.py`, where the pairs go in `placement.py`, the arithmetic in `arithmetic.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import onnx_ir as ir

from ..ir.errors import PassError
from .base import Pass, PassContext
from .functions import flatten_functions
from .quantization.arithmetic import Grid, range_problem
from .quantization.calibration import Calibration, as_calibration
from .quantization.calibrators import Method
from .quantization.emit import emit
from .quantization.original import remember_original
from .quantization.placement import Plan, plan_quantization
from .quantization.ranges import measure_ranges
from .quantization.scales import Scale, assign_scales
from .quantization.tables import Table, find_table
from .registry import register

_NO_DATA = (
    "it needs calibration data to measure activation ranges: give `--calibration FILE.npz|FOLDER` "
    "(in Python: `calibration=`), or `--calibrate-random` if only speed matters"
)


@register
@dataclass(frozen=True)
class InsertQdq(Pass):
    """Quantize to int8 with Q/DQ pairs where the target has integer kernels (static, calibrated).

    Weights become int8, symmetric, one scale per output channel; activations 8 bits, one scale per tensor,
    ranges measured on the calibration data and always containing zero; biases int32. Graph inputs and outputs
    keep their types. Nodes stay in float, and are reported, where weights or bias are not constant, a range
    is not finite, the table has no integer kernel, or the node is already quantized; subgraphs are not
    entered. Running the pass twice changes nothing the second time. Lossy.
    """

    name: ClassVar[str] = "insert-qdq"
    lossless: ClassVar[bool] = False

    target: str | None = None
    """Quantization table: x86, x86-vnni, arm, arm-dotprod, cuda, generic, or a .json file; by default the one
    for the target being compiled for."""
    calibration: Literal[
        "minmax", "mean", "moving-average", "percentile", "entropy", "mse", "clipped"
    ] = "minmax"  # fmt: skip
    """How activation ranges are estimated from the batches; percentile, entropy and mse go through the data
    twice."""
    percentile: float = 99.99
    """With `calibration=percentile`: the share of numbers, in percent, that neither end of a range cuts."""
    deviations: float = 6.0
    """With `calibration=clipped`: standard deviations from the mean beyond which numbers are cut."""
    calibration_cache: str | None = None
    """File that measured ranges are saved to and reused from; without data, all there is."""
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

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Plan, measure, drop what cannot be quantized, and insert the pairs.

        Raises:
            PassError: There is no calibration data, it does not suit the model, or the table is unknown.
        """
        data = self._data(context)
        flatten_functions(model, context)
        table = find_table(self.target, context.target)
        plan = plan_quantization(model.graph, table, self.selects, {})
        names = [str(value.name) for value in plan.values]
        method = self._method(table.activations.grid)
        ranges, batches = measure_ranges(model, names, data, method, context.progress)
        problems = {value: range_problem(*ranges[str(value.name)]) for value in plan.values}
        forbidden = {value: problem for value, problem in problems.items() if problem is not None}
        if forbidden:
            plan = plan_quantization(model.graph, table, self.selects, forbidden)
        scales = assign_scales(plan, ranges, table.activations.grid)
        _report(plan, scales, table, data, batches, context)
        remember_original(model)
        emit(model, plan, scales, table, self.reduce_range, context)

    def _data(self, context: PassContext) -> Calibration:
        if context.calibration is not None:
            data = as_calibration(context.calibration)
            return data.with_cache(self.calibration_cache) if self.calibration_cache else data
        if self.calibration_cache is not None:
            return Calibration.saved(self.calibration_cache)
        raise PassError(_NO_DATA)

    def _method(self, grid: Grid) -> Method:
        return Method(
            self.calibration, self.percentile, self.deviations, grid.high - grid.low, grid.symmetric
        )


def _report(
    plan: Plan,
    scales: dict[ir.Value, Scale],
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
            }
            for value, scale in scales.items()
        },
    }
    context.details.update(details)
