"""Groups as functions for CPUs: our anchor kernels, row kernels and loop nests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import loops
from .anchor_kernels import anchor_kernel
from .anchor_views import AnchorKernel
from .emission import Argument, Emitted, Packed, Parameters, tir_parameters
from .expressions import cast
from .layout import CANONICAL, Layout
from .lazy import Index, Lazy, element, from_buffer, shared
from .loops import Machine
from .op import Derived
from .plain_groups import emit_plain
from .recurrent import RECURRENCE, emit_recurrence
from .reduce import Scratch, accumulator_dtype, norm_rows, reduce_rows, softmax_rows
from .relayout import emit_transpose
from .roles import REDUCTIONS
from .spec import GroupSpec, Ref, aligned_runs, evaluate

if TYPE_CHECKING:
    from ..target import Target


def emit_injective(spec: GroupSpec, machine: Machine) -> Emitted:
    """A group without an anchor: one loop nest over its output, or squares of vectors where axes turn."""
    turned = emit_transpose(spec, machine)
    if turned is not None:
        return turned
    parameters = tir_parameters(spec)
    (lazy,) = evaluate(spec, parameters.bind, parameters.derive)
    target = loops.buffer(spec.layout.stored_shape(lazy.shape), spec.out_type.dtype, "out")
    body = loops.fill(lazy, spec.layout, target, machine, aligned_runs(spec))
    func = loops.function([*parameters.buffers, target], body)
    kind = "elementwise" if spec.is_elementwise else "movement"
    return Emitted(func, tuple(parameters.arguments), kind)


def emit_rows(spec: GroupSpec, machine: Machine) -> Emitted:
    """A reduction, softmax or normalization with what precedes and follows it."""
    op, member = spec.anchor_op, spec.members[spec.anchor]
    parameters = tir_parameters(spec)
    anchor_inputs = [ref for ref in member.inputs if ref is not None]
    if op.type in REDUCTIONS:
        anchor_inputs = anchor_inputs[:1]
    x, *rest = evaluate(spec, parameters.bind, parameters.derive, wanted=anchor_inputs)
    layout = _layout_of(spec, anchor_inputs[0])
    current: list[Any] = [None]
    value = shared(Lazy(op.outputs[0].shape, op.outputs[0].dtype, lambda index: current[0]))
    (finished,) = evaluate(spec, parameters.bind, parameters.derive, given={spec.anchor: [value]})
    target = loops.buffer(spec.layout.stored_shape(finished.shape), spec.out_type.dtype, "out")

    def emit(index: Index, result: Any) -> Any:
        current[0] = cast(result, op.outputs[0].dtype)
        return loops.store(target, element(finished, index), spec.layout.to_stored(index))

    direct = anchor_inputs[0].is_external
    if op.type in REDUCTIONS:
        body = reduce_rows(op, x, layout, emit, machine, flatten=direct)
    else:
        dtype = accumulator_dtype(x.dtype)
        fits = spec.out_type.dtype == dtype
        scratch = Scratch(x, spec.layout, target)
        if op.type in {"Softmax", "LogSoftmax"}:
            if not fits:
                return emit_plain(spec)
            body = softmax_rows(op, x, layout, emit, scratch, machine)
        else:
            if direct or not fits:
                scratch = Scratch(x, layout)
            body = norm_rows(
                op, x, rest[0], rest[1] if len(rest) > 1 else None, layout, emit, scratch, machine
            )
    func = loops.function([*parameters.buffers, target], body)
    return Emitted(func, tuple(parameters.arguments), op.type.lower())


def _layout_of(spec: GroupSpec, ref: Ref) -> Layout:
    """How the tensor behind an input is stored, found through what is computed in front of it."""
    pending, rank = [ref], None
    while pending:
        each = pending.pop(0)
        if each.is_external:
            external = spec.externals[each.external]
            if rank is None or len(external.type.shape) == rank:
                return external.layout
            continue
        member = spec.members[each.member]
        rank = len(member.op.outputs[each.output].shape)
        if member.op.type in {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}:
            return CANONICAL
        pending.extend(each for each in member.inputs if each is not None)
    return CANONICAL


def emit_anchor(spec: GroupSpec, target: Target) -> Emitted | None:
    """A convolution, product or pooling by a kernel of ours; None where none covers it."""
    if spec.anchor_op.type == RECURRENCE:
        return emit_recurrence(spec, target)
    plan = anchor_kernel(spec)
    if plan is None:
        return None
    epilogue = _EpilogueBuilder(spec, plan)
    kernel = plan.build(epilogue.build(), target)
    # A kernel may read several parts of one weight, each in an order of its own.
    weights = plan.weights * len(kernel.pack) if len(plan.weights) == 1 else plan.weights
    arguments: list[Argument] = [*plan.data]
    arguments += [Packed(each, pack) for each, pack in zip(weights, kernel.pack, strict=True)]
    func = kernel.func
    return Emitted(
        func,
        (*arguments, *epilogue.arguments),
        spec.anchor_op.type.lower().replace("::", " "),
        kernel.flops,
        kernel.note,
    )


class _EpilogueBuilder:
    """Describes what follows an anchor as an expression over its value, its index and further tensors."""

    def __init__(self, spec: GroupSpec, plan: AnchorKernel):
        self.spec, self.plan = spec, plan
        self.arguments: list[Argument] = []
        self._samples: list[tuple[tuple[int, ...], str]] = []

    def build(self) -> Any:
        """The epilogue; which further tensors it reads is found by writing it down once."""
        from .kernels.interface import Epilogue, ExtraInput

        probe = tir_parameters(self.spec)
        shape = self.plan.kernel_shape
        index = tuple(_variable(f"i{axis}") for axis in range(len(shape)))
        self._write(_variable("value", self.plan.value_dtype), index, probe)
        self.arguments = probe.arguments
        extras = tuple(
            ExtraInput(tuple(int(s) for s in each.shape), str(each.dtype)) for each in probe.buffers
        )

        def apply(value: Any, at: Index, buffers: Sequence[Any]) -> Any:
            return self._write(value, at, _Replayed(self.spec, probe, list(buffers)))

        return Epilogue(
            extra=extras,
            key=self.spec.key,
            apply=apply,
            out_dtype=self.spec.out_type.dtype,
            out_shape=self.plan.out_shape,
            out_index=self.plan.out_index,
        )

    def _write(self, value: Any, index: Index, parameters: Any) -> Any:
        op = self.spec.anchor_op
        name = _variable("a", self.plan.value_dtype)
        own = self.plan.finish(name, parameters)
        anchor = Lazy(op.outputs[0].shape, op.outputs[0].dtype, own)
        (finished,) = evaluate(
            self.spec, parameters.bind, parameters.derive, given={self.spec.anchor: [anchor]}
        )
        from tvm import tirx

        return tirx.Let(name, value, element(finished, self.plan.logical(index)))


class _Replayed:
    """Parameters that were collected before, bound to the buffers of a kernel."""

    def __init__(self, spec: GroupSpec, probe: Parameters, buffers: list[Any]):
        self._spec, self._buffers = spec, buffers
        self._positions = {a: i for i, a in enumerate(probe.arguments) if isinstance(a, int)}
        self._derived = [i for i, a in enumerate(probe.arguments) if isinstance(a, Derived)]
        self._shapes = [tuple(int(size) for size in each.shape) for each in probe.buffers]
        self._dtypes = [str(each.dtype) for each in probe.buffers]
        self._next = 0

    def bind(self, external: int) -> Lazy:
        given = self._spec.externals[external]

        def read(index: Index) -> Any:
            # Only what was read when the parameters were collected became one.
            buffer = self._buffers[self._positions[external]]
            return from_buffer(buffer, given.type.shape, given.type.dtype, given.layout).read(index)

        return Lazy(given.type.shape, given.type.dtype, read)

    def derive(self, derived: Derived) -> Lazy:
        position = self._derived[self._next]
        self._next += 1
        return from_buffer(self._buffers[position], self._shapes[position], self._dtypes[position])


def _variable(name: str, dtype: str = "int32") -> Any:
    from tvm import tirx

    return tirx.Var(name, dtype)
