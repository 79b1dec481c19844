"""Scales, zero points and rounding against numpy and against the reference's own QuantizeLinear."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.reference import run_reference
from graphwright.passes.quantization import arithmetic as q
from graphwright.passes.quantization.arithmetic import Grid
from hypothesis import assume, given, settings
from hypothesis import strategies as st

GRIDS = {
    "uint8": Grid.make("uint8", symmetric=False),
    "int8": Grid.make("int8", symmetric=False),
    "symmetric int8": Grid.make("int8", symmetric=True),
    "7 bits": Grid.make("int8", symmetric=True, bits=7),
    "symmetric uint8": Grid.make("uint8", symmetric=True),
}
numbers = st.floats(-1e6, 1e6, width=32)


def test_grids():
    assert (GRIDS["uint8"].low, GRIDS["uint8"].high) == (0, 255)
    assert (GRIDS["int8"].low, GRIDS["int8"].high) == (-128, 127)
    assert (GRIDS["symmetric int8"].low, GRIDS["symmetric int8"].high) == (-127, 127)
    assert (GRIDS["7 bits"].low, GRIDS["7 bits"].high) == (-64, 64)
    assert 2 * 255 * GRIDS["7 bits"].high < 2**15 <= 2 * 255 * 65
    assert GRIDS["symmetric uint8"].middle == 128
    with pytest.raises(ValueError, match="cannot hold 9 bits"):
        Grid.make("int8", symmetric=True, bits=9)
    with pytest.raises(ValueError, match="not symmetric"):
        Grid("int8", -128, 127, True)
    with pytest.raises(ValueError, match="is no range"):
        Grid("uint8", -1, 255, False)


@pytest.mark.parametrize(
    ("low", "high", "grid", "scale", "zero_point"),
    [
        (0.0, 255.0, "uint8", 1.0, 0),
        (-128.0, 127.0, "uint8", 1.0, 128),
        (2.0, 255.0, "uint8", 1.0, 0),
        (-255.0, -3.0, "uint8", 1.0, 255),
        (0.0, 6.0, "int8", 6 / 255, -128),
        (-1.0, 2.54, "symmetric int8", 0.02, 0),
        (-2.54, 1.0, "symmetric int8", 0.02, 0),
        (0.0, 0.0, "uint8", 1.0, 0),
        (0.0, 0.0, "symmetric uint8", 1.0, 128),
    ],
)
def test_known_parameters(low, high, grid, scale, zero_point):
    found_scale, found_zero = q.activation_parameters(low, high, GRIDS[grid])
    assert found_scale.dtype == np.float32
    assert found_scale == np.float32(scale)
    assert found_zero == zero_point


@settings(max_examples=300, deadline=None)
@given(a=numbers, b=numbers, name=st.sampled_from(sorted(GRIDS)))
def test_any_range_is_covered_and_zero_is_exact(a, b, name):
    grid, (low, high) = GRIDS[name], (min(a, b), max(a, b))
    assume(max(abs(low), abs(high)) == 0 or max(abs(low), abs(high)) >= q.SMALLEST_RANGE)
    scale, zero_point = q.activation_parameters(low, high, grid)
    assert np.isfinite(scale) and scale > 0
    assert grid.low <= zero_point <= grid.high
    array = np.array([low, high, 0.0, (low + high) / 2], np.float32)
    stored = q.quantize(array, scale, zero_point, grid)
    assert stored.dtype == grid.dtype
    restored = q.dequantize(stored, scale, zero_point)
    assert restored[2] == 0.0
    # Half a step from rounding, another half at the ends because the zero point is rounded too.
    assert np.abs(restored.astype(np.float64) - array).max() <= float(scale) * 1.0001


@pytest.mark.parametrize(
    ("low", "high", "reason"),
    [
        (np.nan, 1.0, "not finite"),
        (0.0, np.inf, "not finite"),
        (1.0, -1.0, "empty"),
        (0.0, 1e-30, "too small"),
        (-1e30, 0.0, "too large"),
    ],
)
def test_ranges_that_cannot_be_quantized(low, high, reason):
    assert reason in q.range_problem(low, high)
    with pytest.raises(ValueError, match=reason):
        q.activation_parameters(low, high, GRIDS["uint8"])


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), name=st.sampled_from(["uint8", "int8", "symmetric int8"]))
def test_rounding_equals_the_reference(seed, name):
    grid, rng = GRIDS[name], np.random.default_rng(seed)
    array = (rng.normal(size=(4, 6)) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
    scale, zero_point = q.activation_parameters(array.min(), array.max(), grid)
    dtype = {"uint8": "uint8", "int8": "int8"}[grid.dtype]
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 23]> g (float[4,6] x, float s, {dtype} z) '
        f"=> ({dtype}[4,6] i, float[4,6] y) {{ i = QuantizeLinear(x, s, z) y = DequantizeLinear(i, s, z) }}"
    )
    found = run_reference(model, {"x": array, "s": scale, "z": np.asarray(zero_point, grid.dtype)})
    stored = q.quantize(array, scale, zero_point, grid)
    # The kernel divides in float32: a number in the middle between two steps may go either way.
    assert np.abs(stored.astype(int) - found["i"].astype(int)).max() <= 1
    assert (stored != found["i"]).mean() < 0.1
    np.testing.assert_allclose(q.dequantize(found["i"], scale, zero_point), found["y"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("axis", [0, 1, -1, None])
def test_weight_scales(axis):
    weights = np.random.default_rng(0).normal(size=(4, 3, 2))
    scales = q.weight_scales(weights, axis, GRIDS["symmetric int8"])
    if axis is None:
        assert scales == np.abs(weights).max() / 127
        return
    expected = [np.abs(np.take(weights, i, axis)).max() / 127 for i in range(weights.shape[axis])]
    np.testing.assert_array_equal(scales, expected)
    stored = q.quantize(weights, scales, 0, GRIDS["symmetric int8"], axis)
    assert np.abs(stored).max() == 127
    step = np.expand_dims(scales, tuple(i for i in range(3) if i != axis % 3))
    assert (np.abs(stored * step - weights) <= step / 2 * (1 + 1e-9)).all()


def test_channels_of_zeros_take_the_scale_of_a_neighbour():
    weights = np.array([[0.0, 0.0], [1.27, 0.1], [-12.7, 0.0]])
    scales = q.weight_scales(weights, 0, GRIDS["symmetric int8"])
    np.testing.assert_allclose(scales, [0.01, 0.01, 0.1])
    assert (q.weight_scales(np.zeros((2, 3)), 0, GRIDS["symmetric int8"]) == 0).all()
    assert (q.fit_scales(np.zeros(2), 0.5, None) == 1.0).all()


def test_bias_decides_where_weights_are_zero():
    bias = np.array([0.3, -2.0])
    scales = q.fit_scales(np.zeros(2), 0.5, bias)
    products = np.asarray(scales * np.float32(0.5), np.float32)
    restored = q.dequantize(q.quantize_bias(bias, products), products, 0, 0)
    np.testing.assert_allclose(restored, bias, rtol=1e-6)


def test_huge_bias_raises_the_scale_of_its_channel_only():
    scales = np.array([1e-3, 1e-3])
    bias = np.array([1e9, 1.0])
    fitted = q.fit_scales(scales, 1e-3, bias)
    assert fitted[1] == np.float32(1e-3)
    assert fitted[0] > 1e-3
    stored = q.quantize_bias(bias, fitted * np.float32(1e-3))
    assert abs(int(stored[0])) <= q.BIAS_LIMIT * 1.0001
    with pytest.raises(ValueError, match="does not fit 32 bits"):
        q.quantize_bias(bias, np.asarray(scales * 1e-3, np.float32))


@settings(max_examples=200, deadline=None)
@given(
    weight=st.floats(0, 1e18),
    bias=st.floats(-1e18, 1e18),
    high=st.floats(1e-18, 1e18),
)
def test_products_of_scales_are_normal_numbers(weight, bias, high):
    grid = GRIDS["symmetric int8"]
    scale, _ = q.activation_parameters(0.0, high, GRIDS["uint8"])
    scales = q.weight_scales(np.array([[weight], [1.0]]), 0, grid)
    fitted = q.fit_scales(scales, float(scale), np.array([bias, 0.0]))
    products = np.asarray(fitted * scale, np.float32)
    assert (products >= np.finfo(np.float32).tiny).all() and np.isfinite(products).all()
    stored = q.quantize_bias(np.array([bias, 0.0]), products)
    assert abs(float(stored[0]) * float(products[0]) - bias) <= float(products[0]) * 0.5001


def test_constants_that_cannot_be_quantized():
    assert q.array_problem(np.array([1.0, np.nan]), "its weights") == "NaN or infinity in its weights"
    assert "beyond 1e+18" in q.array_problem(np.array([1e30]), "its bias")
    assert q.array_problem(np.zeros(0), "its bias") is None
