"""Half precision: float16 or bfloat16 in the place of float32, where it does no harm.

    MatMul(x, W) in float32   ->   Cast(MatMul(Cast(x, 16), W16), 32)

Only where types meet there are casts; what lies between stays in 16 bits. ONNX Runtime has no bfloat16
kernels on CPUs: with `compute=float32` every operator reads its bfloat16 operands through casts and rounds
its result back, which gives bfloat16 accuracy and file size on any machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array, constant_tensor
from ..ir.errors import PassError
from ..ir.provenance import module_path
from .base import Pass, PassContext
from .fold_constants import STORAGE_KEY
from .functions import flatten_functions
from .leftovers import drop_unread
from .quantization.calibration import as_calibration
from .quantization.calibrators import MinMax
from .quantization.emit import keep_only_the_module
from .quantization.float_plan import FloatPlan, Range, largest, plan_conversion, rounded
from .quantization.ranges import measure_ranges
from .registry import register
from .rewriter import Rewriter

_DELICATE = (
    "Exp|Log|Pow|CumSum|CumProd|ReduceProd|ReduceSumSquare|ReduceL2|ReduceLogSum|ReduceLogSumExp|LogSoftmax|"
    "Range|TopK|NonMaxSuppression|RoiAlign"
)
_FLOAT = ir.DataType.FLOAT


@register
@dataclass(frozen=True)
class ConvertFloat(Pass):
    """Compute in float16 or bfloat16; what would overflow, vanish or lose count stays in float32.

    Stays in float32, and is reported: operators that do not take the type, those matched by `keep`, nodes
    with constants that the type cannot hold, subgraphs, and, where calibration data is given, nodes whose
    values come near the largest number of the type. What is computed from integers alone (positions,
    lengths, masks) stays too. Constants that stand for infinity (attention masks) become the largest number.
    Lossy.
    """

    name: ClassVar[str] = "convert-float"
    lossless: ClassVar[bool] = False

    to: Literal["float16", "bfloat16"] = "float16"
    """The type."""
    io: Literal["float32", "converted"] = "float32"
    """Whether graph inputs and outputs keep float32, or take the type as well."""
    keep: str = _DELICATE
    """Operators that stay in float32: a regular expression on op type, node name or module path."""
    compute: Literal["auto", "float32", "native"] = "auto"
    """`native`: operators run in the type; `float32`: they read and write it through casts; `auto`: native
    for float16, float32 for bfloat16, which ONNX Runtime has no CPU kernels for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.keep)
        except re.error as error:
            raise PassError(
                f"{self.name}: option 'keep' is not a regular expression ({error}): {self.keep!r}"
            ) from None

    @property
    def dtype(self) -> ir.DataType:
        """The type as the graph names it."""
        return ir.DataType.FLOAT16 if self.to == "float16" else ir.DataType.BFLOAT16

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Plan, measure if there is data, and convert.

        Raises:
            PassError: the calibration data does not suit the model.
        """
        flatten_functions(model, context)
        graph = model.graph
        plan = plan_conversion(graph, self.dtype, self.selects, self._keeps, {})
        ranges = self._measured(model, plan, context)
        if ranges:
            plan = plan_conversion(graph, self.dtype, self.selects, self._keeps, ranges)
        for node, reason in plan.left:
            context.leave(node, reason)
        for node in plan.operands:
            context.count(f"converted {node.op_type}")
        through_casts = self.compute == "float32" or (self.compute == "auto" and self.to == "bfloat16")
        writer = _Writer(context.rewriter(model), plan, self.dtype, through_casts)
        if self.io == "converted" and plan.operands:
            writer.convert_inputs(graph)
        for node in list(plan.operands):
            writer.convert(node)
        writer.finish(graph, keep_outputs=self.io == "float32")

    def _keeps(self, node: ir.Node) -> bool:
        faces = (node.op_type, node.name, module_path(node))
        return any(re.fullmatch(self.keep, face) for face in faces if face)

    def _measured(self, model: ir.Model, plan: FloatPlan, context: PassContext) -> dict[str, Range]:
        if context.calibration is None:
            if self.to == "float16" and plan.operands:
                context.note(
                    f"no calibration data: activations beyond {largest(self.dtype):.0f} would overflow unseen"
                )
            return {}
        touched = {value for node in plan.operands for value in (*node.inputs, *node.outputs)}
        names = [
            str(value.name)
            for value in touched
            if value is not None and value.dtype == _FLOAT and constant_tensor(value) is None
        ]
        data = as_calibration(context.calibration)
        return measure_ranges(model, sorted(names), data, MinMax, context.progress)[0]


class _Writer:
    """Changes types and puts casts where they meet."""

    def __init__(self, rewriter: Rewriter, plan: FloatPlan, to: ir.DataType, through_casts: bool):
        self._rewriter = rewriter
        self._plan = plan
        self._to = to
        self._through_casts = through_casts
        self._converted: dict[ir.Value, ir.Value] = {}
        self._restored: dict[ir.Value, ir.Value] = {}
        self._originals: list[ir.Value] = []
        self._casts: set[ir.Node] = set()

    def convert_inputs(self, graph: ir.Graph) -> None:
        """Gives float32 graph inputs the new type."""
        for value in graph.inputs:
            if value.dtype == _FLOAT and not value.is_initializer():
                value.type = ir.TensorType(self._to)
                self._plan.values.add(value)

    def convert(self, node: ir.Node) -> None:
        """Lets a node compute in the new type."""
        inputs, outputs = self._plan.operands[node]
        for index in inputs:
            value = node.inputs[index]
            assert value is not None
            narrow = value if value in self._plan.values else self._narrow(value, node)
            self._rewriter.set_input(node, index, self._wide(narrow) if self._through_casts else narrow)
        if self._through_casts:
            self._round_results(node, outputs)
            return
        if node.op_type == "Cast":
            self._rewriter.set_attribute(node, "to", int(self._to))
        if node.op_type == "ConstantOfShape":
            tensor = node.attributes.get("value")
            array = np.zeros(1, np.float32) if tensor is None else tensor.as_tensor().numpy()
            self._rewriter.set_attribute(node, "value", ir.tensor(rounded(array, self._to)))
        for index in outputs:
            node.outputs[index].type = ir.TensorType(self._to)

    def finish(self, graph: ir.Graph, *, keep_outputs: bool) -> None:
        """Widens converted values for those who read float32, and drops constants that nobody reads."""
        converted = self._plan.operands
        for value in list(self._plan.values):
            if value.dtype != self._to:
                continue
            for user, index in list(value.uses()):
                if user in self._casts or index in converted.get(user, ((), ()))[0]:
                    continue
                self._rewriter.set_input(user, index, self._wide(value))
            if value.is_graph_output() and keep_outputs and not value.is_graph_input():
                self._widen_output(value)
        for value in [] if keep_outputs else list(graph.outputs):
            if value.dtype == _FLOAT and converted:
                self._narrow_output(value)
        drop_unread(self._rewriter, self._originals)

    def _widen_output(self, value: ir.Value) -> None:
        """Lets a float32 copy of a converted value be the graph output."""
        self._take_over(value, self._wide(value))

    def _narrow_output(self, value: ir.Value) -> None:
        """Lets a converted copy of a float32 value be the graph output."""
        producer = value.producer()
        if producer is not None:
            self._take_over(value, self._cast(value, producer, self._to, after=True))

    def _take_over(self, value: ir.Value, copy: ir.Value) -> None:
        """Makes `copy` the graph output that `value` was; everybody else goes on reading `value`."""
        users = list(value.uses())
        already = list(copy.uses())
        self._rewriter.replace_uses(value, copy)
        for user, index in users:
            self._rewriter.set_input(user, index, value)
        assert all(user.inputs[index] is copy for user, index in already)

    def _round_results(self, node: ir.Node, outputs: tuple[int, ...]) -> None:
        """Behind a node that computes in float32: its results in the new type, for all who read them."""
        for index in outputs:
            value = node.outputs[index]
            self._plan.values.discard(value)
            if not (value.uses() or value.is_graph_output()):
                continue
            narrow = self._cast(value, node, self._to, after=True)
            wide = self._cast(narrow, narrow.producer(), _FLOAT, after=True)  # type: ignore[arg-type]
            self._rewriter.replace_uses(value, wide)
            self._rewriter.set_input(narrow.producer(), 0, value)  # type: ignore[arg-type]
            self._converted[wide] = narrow
            self._restored[narrow] = wide

    def _narrow(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """A float32 value in the new type, made once."""
        if value in self._converted:
            return self._converted[value]
        array = constant_array(value)
        if array is not None:
            narrow = self._rewriter.initializer(
                f"{value.name}_{self._to.name.lower()}", rounded(array, self._to)
            )
            self._originals.append(value)
        else:
            source = self._saturated(value) if value in self._plan.from_integers else value
            producer = source.producer()
            anchor = before.graph[0] if producer is None else producer  # type: ignore[index]
            narrow = self._cast(source, anchor, self._to, after=producer is not None)
        self._converted[value] = narrow
        return narrow

    def _saturated(self, value: ir.Value) -> ir.Value:
        """Masks hold numbers that stand for infinity; as infinity they would make NaN of a row of nothing."""
        producer = value.producer()
        assert producer is not None
        limit = largest(self._to)
        bounds = [
            self._rewriter.initializer(name, np.asarray(bound, np.float32))
            for name, bound in (("lowest", -limit), ("highest", limit))
        ]
        (clipped,) = self._rewriter.insert_after(producer, "Clip", [value, *bounds])
        clipped.type, clipped.shape = value.type, value.shape
        return clipped

    def _wide(self, value: ir.Value) -> ir.Value:
        """A converted value in float32, made once."""
        if value not in self._restored:
            producer = value.producer()
            if producer is None:
                self._restored[value] = self._cast(value, self._rewriter.model.graph[0], _FLOAT, after=False)
            else:
                self._restored[value] = self._cast(value, producer, _FLOAT, after=True)
        return self._restored[value]

    def _cast(self, value: ir.Value, anchor: ir.Node, to: ir.DataType, *, after: bool) -> ir.Value:
        insert = self._rewriter.insert_after if after else self._rewriter.insert_before
        name = f"{value.name}_{to.name.lower()}"
        (result,) = insert(anchor, "Cast", [value], {"to": int(to)}, name=name)
        result.type, result.shape = ir.TensorType(to), value.shape
        node = result.producer()
        assert node is not None
        keep_only_the_module(node)
        self._casts.add(node)
        if to == _FLOAT and value.producer() is None:
            node.metadata_props[STORAGE_KEY] = "restores"
        return result
