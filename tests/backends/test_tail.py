"""Operators that TVM's converters lower, and those that nothing lowers."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.backends.tvm import tail


def test_converters_serve_what_has_no_definition_of_ours(through_tvm):
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[3,8] x, float[3,4,5] y, float[2,2] updates) => (float[3,3] best, int64[3,3] places, int64[3,1] largest,
            float[3,8] running, float[3,8] scattered, float[3,5,4] product, float[3,8] hard)
        <int64[1] k = {3}, int64 axis = {1}, int64[2,2] where = {0, 1, 2, 5}> {
          a = Relu(x) best, places = TopK(a, k) largest = ArgMax<axis = 1>(x) running = CumSum(x, axis)
          row = Constant<value = int64[2,1] {0, 2}>() u = Constant<value = float[2,8] {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}>()
          scattered = ScatterND(x, row, u) product = Einsum<equation = "bij->bji">(y) hard = Hardmax(x) }"""
    )
    generator = np.random.default_rng(0)
    feeds = {
        "x": generator.permutation(24).reshape(3, 8).astype(np.float32) - 5,
        "y": generator.standard_normal((3, 4, 5)).astype(np.float32),
        "updates": np.zeros((2, 2), np.float32),
    }
    outputs, expected, _ = through_tvm(model, feeds)
    for name, wanted in expected.items():
        if name == "best" or name == "places":
            # Equal values may come in another order.
            continue
        assert np.allclose(outputs[name], wanted, atol=1e-6), name
    assert np.array_equal(outputs["best"], expected["best"])


def test_outputs_that_nobody_reads(through_tvm):
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[3,8] x) => (int64[3,2] i, float[3,2] s) <int64[1] k = {2}>
        { v, i = TopK(x, k) w, j = TopK <largest = 0> (x, k) s = Neg(w) }"""
    )
    outputs, expected, _ = through_tvm(model)
    assert all(np.array_equal(outputs[name], wanted) for name, wanted in expected.items())


def test_the_largest_in_any_order(through_tvm):
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[3,8] x) => (float[3] total, float[3,2] v, int64[3,2] i) <int64[1] k = {2}, int64[1] axis = {1}>
        { v, i = TopK<sorted = 0>(x, k) total = ReduceSum<keepdims = 0>(v, axis) }"""
    )
    outputs, expected, _ = through_tvm(model)
    assert np.allclose(outputs["total"], expected["total"])
    for name in ("v", "i"):
        assert np.array_equal(np.sort(outputs[name], axis=1), np.sort(expected[name], axis=1))


def test_known_silent_mismatches_are_not_used():
    assert tail.converts("TopK")
    for wrong in ("Resize", "ConvTranspose", "SpaceToDepth", "IsInf", "Attention", "BatchNormalization"):
        assert not tail.converts(wrong)


@pytest.mark.parametrize("op", ["Loop", "LSTM", "QLinearConv", "DeformConv"])
def test_operators_without_a_converter(op):
    assert not tail.converts(op)
