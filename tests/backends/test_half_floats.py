"""float16 models on CPUs: float32 between operators, float16 at conversions, inputs, outputs and in files."""

from __future__ import annotations

import graphwright as gw
import numpy as np
import onnx_ir as ir
from graphwright.backends.target import resolve_target
from graphwright.backends.tvm.lower import lower
from graphwright.ir.compare import compare

HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'


def halved(model: ir.Model) -> ir.Model:
    return gw.optimize(model, "convert-float{to=float16 io=converted}").model


def test_a_network_runs_in_float32_and_speaks_float16(through_tvm, cnn):
    model = halved(cnn)
    outputs, expected, lowered = through_tvm(model)
    assert outputs["y"].dtype == np.float16
    assert compare(expected["y"], outputs["y"]).max_rel <= 5e-3
    served = {kernel.kind: kernel.note for kernel in lowered.kernels if kernel.flops}
    assert {"conv", "gemm"} <= served.keys() and all(served.values())
    # Every weight is a float16 number, which is how the file keeps those that are large.
    assert all(
        np.array_equal(each, each.astype(np.float16).astype(each.dtype))
        for each in lowered.weights
        if each.dtype == np.float32 and each.ndim > 4
    )


def test_it_is_closer_to_exact_arithmetic_than_float16_is(through_tvm, mlp):
    model = halved(mlp)
    feeds = {"x": np.random.default_rng(1).standard_normal((4, 24)).astype(np.float16)}
    outputs, expected, _ = through_tvm(model, feeds)
    exact = gw.ir.reference.run_reference(mlp, {"x": feeds["x"].astype(np.float32)})["y"]
    ours, theirs = (np.abs(each["y"].astype(np.float64) - exact).max() for each in (outputs, expected))
    assert ours <= theirs * 1.05 + 2.0**-12


def test_conversions_round_and_overflow(through_tvm):
    model = ir.from_onnx_text(
        HEADER
        + """g (float[6] x, float16[6] h) => (float[6] back, float16[6] twice, int32[6] whole, float16[6] like, bool[6] same) {
          low = Cast<to = 10>(x) back = Cast<to = 1>(low) twice = Add(low, h) sum = Add(h, h) whole = Cast<to = 6>(sum)
          like = CastLike(x, h) same = Equal(low, h) }"""
    )
    x = np.array([1.0, 1.0 + 2.0**-12, 70000.0, -70000.0, 2.0**-26, 0.1], np.float32)
    feeds = {"x": x, "h": np.array([1, 1, np.inf, 3, 0, 0.1], np.float16)}
    outputs, expected, _ = through_tvm(model, feeds)
    for name, wanted in expected.items():
        assert outputs[name].dtype == wanted.dtype and np.array_equal(outputs[name], wanted), name


def test_outputs_that_are_inputs_constants_or_read_again(through_tvm):
    model = ir.from_onnx_text(
        HEADER
        + """g (float16[4] x) => (float16[4] same, float16[2] fixed, float16[4] middle, float16[4] last, float16[3] filled)
        <float16[2] c = {1, 2}, int64[1] three = {3}> {
          same = Identity(x) fixed = Neg(c) middle = Relu(x) last = Mul(middle, middle)
          filled = ConstantOfShape<value = float16[1] {2}>(three) }"""
    )
    outputs, expected, _ = through_tvm(model)
    for name, wanted in expected.items():
        assert outputs[name].dtype == np.float16 and np.array_equal(outputs[name], wanted), name


def test_gpus_keep_float16(mlp):
    kept = lower(halved(mlp), resolve_target("cuda"))
    assert {str(each.dtype) for each in kept.weights} == {"float16"}
