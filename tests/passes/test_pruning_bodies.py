"""Budgets, calibrated criteria and recovery on models whose layers lie in bodies of If and Loop."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.account import account
from graphwright.ir.reference import Reference
from graphwright.ir.shapes import infer_shapes
from graphwright.ir.verify import verify
from graphwright.passes.optimize import optimize

TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
network (float[1,3,8,8] x, bool which) => (float[1,2,8,8] y) {
  a = Conv<pads=[1,1,1,1]>(x, w0)
  b = Relu(a)
  c = If(which) <
    then_branch = one () => (float[1,6,8,8] p) { p = Conv<pads=[1,1,1,1]>(b, w1) },
    else_branch = two () => (float[1,6,8,8] q) { q = Conv<pads=[1,1,1,1]>(b, w2) }
  >
  d = Relu(c)
  y = Conv<pads=[1,1,1,1]>(d, w3)
}
"""
SHAPES = {"w0": (8, 3, 3, 3), "w1": (6, 8, 3, 3), "w2": (6, 8, 3, 3), "w3": (2, 6, 3, 3)}


@pytest.fixture
def model():
    built = ir.from_onnx_text(TEXT)
    generator = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        array = generator.standard_normal(shape).astype(np.float32)
        value = ir.Value(
            name=name,
            shape=ir.Shape(shape),
            type=ir.TensorType(ir.DataType.FLOAT),
            const_value=ir.tensor(array, name=name),
        )
        built.graph.register_initializer(value)
        for node in built.graph.all_nodes():
            for index, read in enumerate(node.inputs):
                if read is not None and read.name == name and read is not value:
                    node.replace_input_with(index, value)
    infer_shapes(built)
    verify(built)
    return built


def data(count=4):
    generator = np.random.default_rng(1)
    return [
        {"x": generator.standard_normal((1, 3, 8, 8)).astype(np.float32), "which": np.array(index % 2 == 0)}
        for index in range(count)
    ]


@pytest.mark.parametrize(
    "options", ["macs=0.5", "params=0.5 importance=wanda", "ratio=0.5 recover=weights importance=apoz"]
)
def test_bodies_are_pruned_or_reported_but_never_in_the_way(model, options):
    result = optimize(model, f"prune-channels{{{options}}}", calibration=data())
    verify(result.model)
    before, after = account(model), account(result.model)
    if "macs" in options:
        assert after.macs <= 0.5 * before.macs
    if "params" in options:
        assert after.parameters <= 0.5 * before.parameters
    assert after.parameters < before.parameters
    assert Reference(result.model).run(data()[0])["y"].shape == (1, 2, 8, 8)
    assert result.report.records[0].details["proof"]["error"] <= 1e-4
