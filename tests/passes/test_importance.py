"""Importance of channels against impulses through the layers, and ranges that take it into account."""

import numpy as np
import pytest
from graphwright.ir.reference import Reference
from graphwright.passes.optimize import optimize
from graphwright.passes.quantization.calibration import Calibration, as_calibration
from graphwright.passes.quantization.calibrators import Method
from graphwright.passes.quantization.importance import Importance, importance_of
from graphwright.passes.quantization.ranges import measure_ranges

from .quantization_models import model_of

LAYERS = {
    "conv": ("float[N,4,5,5] x, float[6,4,3,3] w", "Conv(x, w)", (4, 5, 5)),
    "grouped": ("float[N,6,5,5] x, float[4,3,3,3] w", "Conv<group=2>(x, w)", (6, 5, 5)),
    "depthwise": ("float[N,4,5,5] x, float[8,1,3,3] w", "Conv<group=4>(x, w)", (4, 5, 5)),
    "transposed": ("float[N,4,5,5] x, float[4,3,2,2] w", "ConvTranspose(x, w)", (4, 5, 5)),
    "gemm": ("float[N,5] x, float[5,7] w", "Gemm(x, w)", (5,)),
    "gemm, turned": ("float[N,5] x, float[7,5] w", "Gemm<transB=1>(x, w)", (5,)),
    "matmul": ("float[N,3,5] x, float[5,7] w", "MatMul(x, w)", (3, 5)),
}


def known(importance):
    return lambda name: importance


def of(model, name="x"):
    return importance_of(next(value for value in model.graph.inputs if value.name == name))


@pytest.mark.parametrize("kind", LAYERS)
def test_it_is_what_an_impulse_in_a_channel_does(kind):
    inputs, call, shape = LAYERS[kind]
    model = model_of(f"g ({inputs}) => (float y) {{ y = {call} }}")
    model.graph.outputs[0].shape = None
    found = of(model)
    channels = shape[found.axis - 1]
    impulses = np.zeros((channels, *shape), np.float32)
    for channel in range(channels):
        place = [each // 2 for each in shape]
        place[found.axis - 1] = channel
        impulses[channel][tuple(place)] = 1.0
    outputs = next(iter(Reference(model).run({"x": impulses}).values()))
    energy = np.square(outputs).reshape(channels, -1).sum(axis=1)
    np.testing.assert_allclose(found.channels, energy / energy.mean(), rtol=1e-4)
    assert found.spread.shape == tuple(channels if i == found.axis else 1 for i in range(len(shape) + 1))


def test_several_readers_count_alike_and_unlike_ones_not_at_all():
    text = "g (float[N,5] x, float[5,7] w, float[5,2] v) => (float[N,7] y, float[N,2] z) { y = Gemm(x, w)  z = MatMul(x, v) }"
    model = model_of(text, v=100 * np.ones((5, 2)))
    one = of(model_of("g (float[N,5] x, float[5,7] w) => (float[N,7] y) { y = Gemm(x, w) }"))
    both = of(model)
    np.testing.assert_allclose(both.channels, (one.channels + 1) / 2, rtol=1e-5)
    text = "g (float[5,5] x, float[5,7] w, float[5,2] v) => (float[5,7] y, float[5,2] z) { y = Gemm(x, w)  z = Gemm<transA=1>(x, v) }"
    assert of(model_of(text)) is None
    assert of(model_of(text.replace("<transA=1>", ""), w=np.zeros((5, 7)))) is None
    assert of(model_of("g (float[N,5] x) => (float[N,5] y) { y = Relu(x) }")) is None


def uneven(rng, count=4000):
    """Half of the channels are small and matter, the others large with rare outliers and hardly read."""
    large = rng.standard_t(3, size=(count, 8)) * 4.0
    small = rng.normal(size=(count, 8)) * 0.5
    weight = np.concatenate([rng.normal(size=(8, 6)) * 0.01, rng.normal(size=(8, 6)) * 10.0])
    return np.concatenate([large, small], axis=1).astype(np.float32), weight.astype(np.float32)


def test_ranges_of_least_error_behind_the_layer():
    samples, weight = uneven(np.random.default_rng(3))
    model = model_of("g (float[N,16] x, float[16,6] w) => (float[N,6] y) { y = MatMul(x, w) }", w=weight)
    batches = as_calibration([{"x": part} for part in np.array_split(samples, 5)])
    importance = known(of(model))

    def error(levels, method):
        ((low, high),) = measure_ranges(model, ["x"], batches, method)[0].values()
        scale = (high - low) / levels
        zero = np.clip(np.rint(-low / scale), 0, levels)
        restored = (np.clip(np.rint(samples / scale) + zero, 0, levels) - zero) * scale
        return float(np.square((restored - samples).astype(np.float64) @ weight).sum())

    for levels, share in ((15, 0.75), (255, 0.5)):
        plain = error(levels, Method("mse", levels=levels))
        aware = error(levels, Method("mse", levels=levels, importance=importance))
        assert aware < share * plain, aware / plain
        # Where every channel matters alike nothing changes.
        alike = known(Importance(1, 2, np.ones(16, np.float32)))
        assert error(levels, Method("mse", levels=levels, importance=alike)) == pytest.approx(plain, rel=1e-3)


def test_insert_qdq_uses_it_and_the_model_errs_less():
    samples, weight = uneven(np.random.default_rng(4))
    model = model_of("g (float[N,16] x, float[16,6] w) => (float[N,6] y) { y = MatMul(x, w) }", w=weight)
    expected = Reference(model).run({"x": samples})["y"]

    def noise(method):
        made = optimize(
            model, f"insert-qdq{{target=tvm calibration={method}}}", calibration={"x": samples}
        ).model
        return float(np.square(Reference(made).run({"x": samples})["y"] - expected, dtype=np.float64).mean())

    assert noise("mse") < 0.5 * noise("minmax")


def test_a_killed_measurement_goes_on_with_weighted_counts(tmp_path, monkeypatch):
    from graphwright.passes.quantization import range_cache

    monkeypatch.setattr(range_cache, "_SECONDS_BETWEEN_SAVES", 0.0)
    samples, weight = uneven(np.random.default_rng(5), 400)
    model = model_of("g (float[N,16] x, float[16,6] w) => (float[N,6] y) { y = MatMul(x, w) }", w=weight)
    method = Method("mse", importance=known(of(model)))
    parts = np.array_split(samples, 8)
    left = [11]

    def batches():
        for part in parts:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            yield {"x": part}

    data = Calibration.from_iterable(batches, identity="parts").with_cache(tmp_path / "ranges.json")
    with pytest.raises(KeyboardInterrupt):
        measure_ranges(model, ["x"], data, method)
    left[0] = 8
    resumed, _ = measure_ranges(model, ["x"], data, method)
    whole, _ = measure_ranges(model, ["x"], as_calibration([{"x": part} for part in parts]), method)
    assert resumed["x"] == pytest.approx(whole["x"])


def test_its_ranges_are_not_taken_for_those_without(tmp_path):
    samples, weight = uneven(np.random.default_rng(6), 400)
    model = model_of("g (float[N,16] x, float[16,6] w) => (float[N,6] y) { y = MatMul(x, w) }", w=weight)
    data = Calibration.from_arrays({"x": samples}).with_cache(tmp_path / "ranges.json")
    importance = known(of(model))
    found = [
        measure_ranges(model, ["x"], data, Method("mse", importance=each))[0] for each in (importance, None)
    ]
    assert found[0] != found[1]
    assert Method("mse", importance=importance).key != Method("mse").key
