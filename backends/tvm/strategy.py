"""How groups become functions on a kind of target: the only place where targets differ.

A strategy names the layout it likes convolutions in, turns the structure of a group into a function, and
gives functions that come from TVM's own lowering a schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from . import approximations
from .emission import Emitted
from .layout import CANONICAL, CHANNELS_LAST, Layout
from .loops import Machine
from .plain_groups import emit_plain
from .roles import Role, role_of
from .spec import GroupSpec
from .workload import workload_key

if TYPE_CHECKING:
    from ..target import Target
    from .kernels.choices import Schedule

Schedules = Callable[[str], "Schedule | None"]
"""The schedule of the record for a workload, None where there is none."""


def no_schedules(_workload: str) -> Schedule | None:
    """No records: the analytic model decides everything."""
    return None


class Strategy(Protocol):
    """What a kind of target decides for itself."""

    convolution_layout: Layout

    def exact_layers(self, count: int) -> int:
        """How many of a program's layers, from its inputs on, are computed more exactly than the rest."""
        ...

    def emit(self, spec: GroupSpec, exact: bool = False) -> Emitted:
        """The function of a group; `exact` for one of those layers."""
        ...

    def schedule(self, module: Any) -> Any:
        """The module with a schedule for every function that has none."""
        ...


def strategy_for(target: Target, schedules: Schedules | None = None) -> Strategy:
    """The strategy for a target; `schedules` are those of measured records, where there are any."""
    return _STRATEGIES.get(target.kind, PlainStrategy)(target, schedules)


class CpuStrategy:
    """Our kernels and loop nests; values of convolutional regions are stored channels last."""

    convolution_layout = CHANNELS_LAST

    def __init__(self, target: Target, schedules: Schedules | None = None):
        self._target = target
        self._machine = Machine(target.vector_bits, target.cores)
        self._schedules = schedules or no_schedules

    def exact_layers(self, count: int) -> int:
        """A share of those whose float32 is multiplied in parts."""
        return -(-count * self._target.exact_share // 100)

    def emit(self, spec: GroupSpec, exact: bool = False) -> Emitted:
        """The function of a group, by the schedule of a record or by the analytic model."""
        workload = workload_key(spec)
        target = replace(self._target, float_parts=3) if exact else self._target
        if not workload:
            return self._emit(spec, target)
        from .kernels.choices import Choices, choosing

        with choosing(Choices(self._schedules(workload) or {})) as choices:
            emitted = self._emit(spec, target)
        if choices.is_stale:
            with choosing(Choices()) as choices:
                emitted = self._emit(spec, target)
        return replace(emitted, workload=workload, choices=choices)

    def _emit(self, spec: GroupSpec, target: Target) -> Emitted:
        from . import cpu

        if spec.anchor < 0:
            return cpu.emit_injective(spec, self._machine)
        if role_of(spec.anchor_op) is Role.ROWS:
            return cpu.emit_rows(spec, self._machine)
        return cpu.emit_anchor(spec, target) or emit_plain(spec)

    def schedule(self, module: Any) -> Any:
        """Default loops for functions that TVM made."""
        from tvm import tirx

        from .default_schedule import schedule_cpu

        for variable, func in module.functions.items():
            # Only functions made of schedulable blocks have no schedule yet.
            if isinstance(func, tirx.PrimFunc) and func.attrs and "s_tir" in func.attrs:
                done = schedule_cpu(func).with_attr("global_symbol", variable.name_hint)
                module.update_func(variable, done)
        return module


class PlainStrategy:
    """Plain tensor expressions, scheduled by TVM's DLight."""

    convolution_layout = CANONICAL

    def __init__(self, target: Target, schedules: Schedules | None = None):
        self._target = target

    def exact_layers(self, _count: int) -> int:
        """None: all are computed alike."""
        return 0

    def emit(self, spec: GroupSpec, exact: bool = False) -> Emitted:
        """The function of a group."""
        with approximations.exact():
            return emit_plain(spec, dots=self._target.kind == "cuda")

    def schedule(self, module: Any) -> Any:
        """DLight's default schedules; the plainest one where another stumbles over a function."""
        import tvm
        from tvm.s_tir import dlight

        rules = [
            *(dlight.gpu.Matmul(), dlight.gpu.GEMV(), dlight.gpu.Reduction(), dlight.gpu.GeneralReduction()),
            dlight.gpu.Fallback(),
        ]
        with tvm.target.Target(self._target.to_tvm()):
            try:
                return dlight.ApplyDefaultSchedule(*rules)(module)
            except AssertionError:
                pass
            for variable, func in list(module.functions.items()):
                if not isinstance(func, tvm.tirx.PrimFunc):
                    continue
                alone = tvm.IRModule({variable: func})
                try:
                    done = dlight.ApplyDefaultSchedule(*rules)(alone)
                except AssertionError:
                    done = dlight.ApplyDefaultSchedule(rules[-1])(alone)
                module.update_func(variable, done[variable])
            return module


_STRATEGIES: dict[str, type[CpuStrategy] | type[PlainStrategy]] = {"llvm": CpuStrategy, "cuda": PlainStrategy}
