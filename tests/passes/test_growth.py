"""Cost grows with the graph, not with its square. Calls are counted: that is exact where clocks are not."""

import math
import sys

import pytest
from graphwright.passes.manager import PassManager
from graphwright.tools.zoo.synthetic import build_synthetic

PASSES = [
    "fold-constants",
    "eliminate-identity",
    "merge-transposes",
    "merge-reshapes",
    "merge-slices",
    "fold-batch-norm",
    "eliminate-common-subexpressions",
    "eliminate-dead",
]


def calls(pipeline: str, nodes: int, *, idle: bool) -> int:
    model = build_synthetic(nodes, idle=idle)
    manager = PassManager(pipeline)
    count = 0

    def tick(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(tick)
    try:
        manager.run(model)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("idle", [False, True], ids=["rewriting", "idle"])
def test_work_grows_linearly(idle):
    pipeline = ",".join(PASSES)
    calls(pipeline, 60, idle=idle)  # imports and caches
    small, large = calls(pipeline, 300, idle=idle), calls(pipeline, 2400, idle=idle)
    assert math.log(large / small, 8) <= 1.1


def test_synthetic_graphs_compute_the_same_after_each_pass():
    result, records = PassManager(",".join(PASSES), check_each=True).run(build_synthetic(120))
    assert {node.op_type for node in result.graph} == {"Conv", "Relu", "Mul", "Sigmoid", "Add"}
    assert all(record.check is None or record.check.passed for record in records)
