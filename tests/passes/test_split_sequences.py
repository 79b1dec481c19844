"""SplitToSequence and SequenceAt become Split, with equal results; otherwise the reason is reported."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import run_reference
from graphwright.passes.optimize import optimize


def sequence_model(sizes, picks, *, keepdims=1, dim="7", axis=1, out="float[2,?] y0, float[2,?] y1"):
    lines = [f"i{k} = Constant<value = int64 {{{pick}}}>()" for k, pick in enumerate(picks)]
    split = "" if sizes is None else ", sizes"
    if sizes is not None:
        lines.append(f"sizes = Constant<value = {sizes}>()")
    lines.append(f"s = SplitToSequence<axis={axis}, keepdims={keepdims}>(x{split})")
    lines += [f"y{k} = SequenceAt(s, i{k})" for k in range(len(picks))]
    body = "\n".join(lines)
    return ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 23]> g (float[2,{dim}] x) => ({out}) {{ {body} }}'
    )


@pytest.mark.parametrize(
    ("sizes", "picks"),
    [("int64[3] {2, 4, 1}", (0, 2)), ("int64 {3}", (2, 0)), ("int64 {4}", (-1, 0)), (None, (5, -7))],
)
def test_split_equals_the_sequence(sizes, picks):
    model = sequence_model(sizes, picks)
    result = optimize(model, "simplify")
    assert [node.op_type for node in result.model.graph] == ["Split"]
    feeds = random_inputs(model)
    assert compare(run_reference(model, feeds), run_reference(result.model, feeds)).equal


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (sequence_model("int64 {2}", (0, 1), dim="N"), "symbolic"),
        (sequence_model(None, (0, 1), keepdims=0, out="float[2] y0, float[2] y1"), "lose their axis"),
    ],
)
def test_reasons_to_leave_a_sequence(model, reason):
    result = optimize(model, "fold-constants,split-sequences")
    assert "SplitToSequence" in [node.op_type for node in result.model.graph]
    assert any(reason in entry.reason for entry in result.report.records[-1].left_alone)


def test_channels_are_pruned_through_a_sequence(network, assert_exact):
    net = network()
    x = net.conv(net.input(1, 3, 4, 4), 8)
    parts = net.op("SplitToSequence", x, net.constant(np.array(4, np.int64)), axis=1)
    picked = [net.op("SequenceAt", parts, net.constant(np.array(k, np.int64))) for k in (0, 1)]
    model = net.model(net.conv(net.op("Mul", *picked), 2))
    record = optimize(model, "prune-channels").report.records[0]
    (group,) = record.details["groups"]
    assert (group["before"], group["after"]) == (4, 2)
    assert record.details["proof"]["error"] <= 1e-5


def test_parts_that_nobody_picks_do_not_stop_channels(network):
    net = network()
    x = net.conv(net.input(1, 3, 4, 4), 8)
    parts = net.op("SplitToSequence", x, net.constant(np.array(4, np.int64)), axis=1)
    taken = net.op("SequenceAt", parts, net.constant(np.array(1, np.int64)))
    record = optimize(net.model(net.conv(taken, 2)), "prune-channels").report.records[0]
    assert [(group["before"], group["after"]) for group in record.details["groups"]] == [(8, 4)]
