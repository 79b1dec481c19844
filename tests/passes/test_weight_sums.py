"""Rounding that lets errors of one output cancel: never worse in its own measure, better for one-sided inputs."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.reference import Reference, run_reference
from graphwright.passes.optimize import optimize
from graphwright.passes.quantization.one_sided import never_negative
from graphwright.passes.quantization.weight_forms import WEIGHT_FORMS, encode
from graphwright.passes.quantization.weight_sums import keep_sums
from hypothesis import given, settings
from hypothesis import strategies as st

from .quantization_models import model_of, samples_for

CONVOLUTIONS = """g (float[N,8,10,10] x, float[32,8,3,3] w1, float[32,32,3,3] w2, float[8,32,3,3] w3)
    => (float[N,8,10,10] y) {
  z = Relu(x)  a = Conv<pads=[1,1,1,1]>(z, w1)  b = Relu(a)  c = Conv<pads=[1,1,1,1]>(b, w2)  d = Relu(c)
  y = Conv<pads=[1,1,1,1]>(d, w3)
}"""
LINEAR = "g (float[N,256] x, float[256,128] w, float[128,64] v) => (float[N,64] y) { a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, v) }"  # fmt: skip


def expected_error(encoded, matrix, window):
    error = encoded.decode().astype(np.float64) - matrix
    by_window = error.reshape(len(error), -1, window).sum(axis=-1)
    # A row of one window has one sum.
    rows = np.square(error.sum(axis=1)) * (window != matrix.shape[1])
    return np.square(error).sum(axis=1), np.square(by_window).sum(axis=1), rows


def test_groups_of_transposed_convolutions_are_sums_of_their_own():
    rng = np.random.default_rng(0)
    weight = rng.standard_t(4, size=(12, 5, 3, 3)).astype(np.float32)
    text = """g (float[N,12,6,6] x, float[12,5,3,3] w) => (float[N,15,8,8] y) {
      r = Relu(x)  y = ConvTranspose<group=3>(r, w) }"""
    model = model_of(text, w=weight)
    made = optimize(model, "quantize-weights{form=int4 block=0 min_size=1}").model
    stored = next(node for node in made.graph if node.op_type == "ConvTranspose").inputs[1].name
    probe = {"x": np.zeros((1, 12, 6, 6), np.float32)}
    found = Reference(made).run_values(probe, [stored])[stored]
    matrix = np.moveaxis(weight, 0, -1).reshape(-1, 12)
    plain = encode(matrix, WEIGHT_FORMS["int4"], block=0, rule="absmax")
    parts = [
        keep_sums(dataclasses.replace(plain, codes=plain.codes[:, at : at + 4]), matrix[:, at : at + 4], 1)
        for at in (0, 4, 8)
    ]
    wanted = np.concatenate([part.decode() for part in parts], axis=1)
    np.testing.assert_array_equal(np.moveaxis(found, 0, -1).reshape(-1, 12), wanted)
    assert (wanted != keep_sums(plain, matrix, 1).decode()).any()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_sum_of_all_three_errors_is_least_among_single_moves(data):
    form = data.draw(st.sampled_from(["int4", "int8", "nf4", "ternary", "int2", "fp4", "power-of-two"]))
    window, channels = data.draw(st.sampled_from([(1, 12), (4, 3), (9, 2), (9, 1)]))
    symmetric = form not in ("int4", "int8") or data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    matrix = rng.standard_t(4, size=(3, window * channels)).astype(np.float32)
    before = encode(matrix, WEIGHT_FORMS[form], block=data.draw(st.sampled_from([0, 4])), symmetric=symmetric)
    after = keep_sums(before, matrix, window)
    least = sum(expected_error(after, matrix, window))
    assert (least <= sum(expected_error(before, matrix, window)) * (1 + 1e-5)).all()
    assert after.codes.dtype == before.codes.dtype and after.scales is before.scales
    low, high = _ends(after)
    for column in range(matrix.shape[1]):
        for step in (-1, 1):
            codes = after.codes.astype(np.int32)
            codes[:, column] = np.clip(codes[:, column] + step, low, high)
            moved = encode_like(after, codes)
            assert (sum(expected_error(moved, matrix, window)) >= least * (1 - 1e-4) - 1e-6).all()


def _ends(encoded):
    if encoded.levels is not None:
        return 0, len(encoded.levels) - 1
    return {"int4": (-7, 7), "uint4": (0, 15), "int8": (-127, 127), "uint8": (0, 255)}[
        encoded.codes.dtype.name
    ]


def encode_like(encoded, codes):
    kind = type(encoded)
    stored = codes.astype(np.int8 if codes.min() < 0 else np.uint8).astype(encoded.codes.dtype)
    return kind(stored, encoded.scales, encoded.zero_points, encoded.levels, encoded.block)


def test_weights_in_any_memory_order_and_forms_without_codes():
    matrix = np.asfortranarray(np.random.default_rng(0).normal(size=(6, 20)).astype(np.float32))
    encoded = encode(matrix, WEIGHT_FORMS["int4"], block=0)
    turned = keep_sums(encoded, matrix, 5)
    straight = keep_sums(encode(matrix.copy("C"), WEIGHT_FORMS["int4"], block=0), matrix.copy("C"), 5)
    np.testing.assert_array_equal(turned.codes, straight.codes)
    assert (turned.codes != encoded.codes).any()
    for name in ("float16", "fp8-e4m3"):
        encoded = encode(matrix, WEIGHT_FORMS[name])
        assert keep_sums(encoded, matrix, 5) is encoded


def sqnr(model, pipeline):
    feeds = samples_for(model, 16, seed=5)
    return compare(run_reference(model, feeds), run_reference(optimize(model, pipeline).model, feeds)).sqnr_db


@pytest.mark.parametrize("form", ["int4", "int4 symmetric=false", "int8", "nf4"])
@pytest.mark.parametrize(("text", "gain"), [(CONVOLUTIONS, 0.7), (LINEAR, 0.4)])
def test_layers_behind_a_relu_gain(form, text, gain):
    model = model_of(text)
    plain = sqnr(model, f"quantize-weights{{form={form} sums=false}}")
    assert sqnr(model, f"quantize-weights{{form={form}}}") > plain + gain


def test_the_default_is_not_behind_the_largest_magnitude():
    model = model_of(CONVOLUTIONS)
    for form in ("int4", "int4 symmetric=false", "int4 block=32"):
        plain = sqnr(model, f"quantize-weights{{form={form} scale=absmax sums=false}}")
        assert sqnr(model, f"quantize-weights{{form={form}}}") > plain


SIGNS = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[2,4] x, float low) => (float[2,4] y) <float zero = {0.0}, float[4] b = {1, 0, 2, 3}> {
  r = Relu(x)  s = Sigmoid(x)  a = Add(r, s)  t = Transpose(a)  c = Clip(x, zero)  d = Clip(x, low)
  m = Mul(r, x)  p = Add(s, b)  u = Neg(r)  v = Sub(r, s)  y = Add(x, r)
}
"""


def test_values_that_are_never_negative():
    model = ir.from_onnx_text(SIGNS)
    found = {value.name for node in model.graph for value in node.outputs if never_negative(value)}
    assert found == {"r", "s", "a", "t", "c", "p"}
    assert not never_negative(None)


@pytest.mark.parametrize("seed", range(3))
def test_scales_of_either_sign_err_less_and_run(seed):
    rng = np.random.default_rng(seed)
    weight = rng.standard_gamma(2.0, size=(256, 128)) - 1.5
    model = model_of(
        "g (float[N,256] x, float[256,128] w) => (float[N,128] y) { y = MatMul(x, w) }", w=weight
    )
    encoded = encode(weight.T.astype(np.float32), WEIGHT_FORMS["int4"])
    assert (encoded.scales < 0).any() and encoded.codes.astype(int).min() == -8
    plain = encode(weight.T.astype(np.float32), WEIGHT_FORMS["int4"], rule="absmax")
    assert (plain.scales > 0).all() and plain.codes.astype(int).min() >= -7
    error, most = (np.square(each.decode() - weight.T).sum() for each in (encoded, plain))
    assert error < 0.8 * most
    feeds = samples_for(model, 16)
    found = run_reference(optimize(model, "quantize-weights{form=int4}").model, feeds)
    np.testing.assert_allclose(found["y"], feeds["x"] @ encoded.decode().T, rtol=1e-4, atol=1e-4)
    positive = optimize(model, "quantize-weights{form=int4 signed_scales=false}").model
    assert (positive.graph.initializers["w_scale"].const_value.numpy() > 0).all()
    fair = compare(run_reference(model, feeds), run_reference(positive, feeds)).sqnr_db
    assert fair < compare(run_reference(model, feeds), found).sqnr_db
    for repair in ("gptq", "hqq", "ada-round{iterations=50}"):
        repaired = optimize(model, f"quantize-weights{{form=int4}},{repair}", calibration=[feeds]).model
        assert compare(run_reference(model, feeds), run_reference(repaired, feeds)).sqnr_db > (
            compare(run_reference(model, feeds), found).sqnr_db - 0.1
        )
