"""A schedule for any function of tensor expressions on CPUs: parallel outside, vectors inside."""

from __future__ import annotations

from typing import Any

_LANES = 16
_PARALLEL_MIN = 1 << 13


def schedule_cpu(func: Any) -> Any:
    """The function with every block scheduled as far as its form allows; the meaning never changes."""
    import tvm
    from tvm.s_tir import SBlockRealize, Schedule, ScheduleError

    if not isinstance(func.body, SBlockRealize) or func.body.block.name_hint != "root":
        return func
    schedule = Schedule(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}))
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        snapshot = schedule.copy()
        try:
            _schedule_block(schedule, block)
        except (ScheduleError, tvm.error.InternalError):
            # The schedule API refuses blocks whose form it does not cover; they stay plain loops.
            schedule = snapshot
    return schedule.mod["main"]


def _schedule_block(schedule: Any, block: Any) -> None:
    loops = schedule.get_loops(block)
    kinds = [str(each.iter_type) for each in schedule.get(block).iter_vars]
    if not loops or len(kinds) != len(loops) or any(_extent(schedule, loop) is None for loop in loops):
        return
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == "0"]
    reduced = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == "2"]
    if len(spatial) + len(reduced) != len(loops) or not spatial:
        return
    inner = spatial[-1]
    extent = _extent(schedule, inner)
    work = 1
    for loop in loops:
        work *= _extent(schedule, loop)
    outer = spatial[:-1]
    if extent > _LANES:
        split, inner = schedule.split(inner, [None, _LANES])
        outer = [*outer, split]
    schedule.reorder(*outer, *reduced, inner)
    if extent > 1:
        schedule.vectorize(inner)
    if outer:
        fused = schedule.fuse(*outer) if len(outer) > 1 else outer[0]
        if work >= _PARALLEL_MIN:
            schedule.parallel(fused)
    if reduced:
        schedule.decompose_reduction(block, reduced[0])


def _extent(schedule: Any, loop: Any) -> Any:
    """The extent of a loop as a number, None where it is only known at run time."""
    from tvm import tirx

    extent = schedule.get(loop).extent
    return int(extent) if isinstance(extent, tirx.IntImm) else None
