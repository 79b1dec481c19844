"""Calibration data, calibrators and measured ranges."""

import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.errors import PassError
from graphwright.ir.reference import Reference
from graphwright.passes.optimize import optimize
from graphwright.passes.quantization.calibration import Calibration, as_calibration
from graphwright.passes.quantization.calibrators import CALIBRATORS, Percentile
from graphwright.passes.quantization.ranges import measure_ranges

HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'


def model_of(text: str) -> ir.Model:
    return ir.from_onnx_text(HEADER + text)


@pytest.fixture
def model():
    return model_of("g (float[N,3] x) => (float[N,3] y) { a = Tanh(x) b = Mul(a, x) y = Relu(b) }")


@pytest.fixture
def samples():
    return np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32) * 3


def batches_of(calibration, model):
    return list(calibration.batches(model))


def test_npz_is_cut_into_batches(tmp_path, model, samples):
    np.savez(tmp_path / "data.npz", x=samples)
    batches = batches_of(Calibration.from_npz(tmp_path / "data.npz", batch=8), model)
    assert [len(feeds["x"]) for feeds in batches] == [8, 8, 4]
    np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in batches]), samples)


def test_arrays_without_names_go_by_position(tmp_path, samples):
    np.savez(tmp_path / "data.npz", samples, samples + 1)
    model = model_of("g (float[N,3] p, float[N,3] q) => (float[N,3] y) { y = Add(p, q) }")
    (feeds,) = batches_of(Calibration.load(tmp_path / "data.npz", batch=64), model)
    np.testing.assert_array_equal(feeds["q"], samples + 1)


def test_a_folder_is_read_file_by_file(tmp_path, model, samples):
    np.savez(tmp_path / "b.npz", x=samples[:3])
    np.save(tmp_path / "a.npy", samples[3:8])
    (tmp_path / "notes.txt").write_text("not data")
    batches = batches_of(Calibration.load(tmp_path), model)
    assert [len(feeds["x"]) for feeds in batches] == [5, 3]
    np.testing.assert_array_equal(batches[1]["x"], samples[:3])


def test_a_fixed_batch_size_is_filled_up(samples):
    model = model_of("g (float[8,3] x) => (float[8,3] y) { y = Relu(x) }")
    batches = batches_of(Calibration.from_arrays({"x": samples}), model)
    assert [feeds["x"].shape for feeds in batches] == [(8, 3)] * 3
    np.testing.assert_array_equal(batches[-1]["x"], samples[12:])


def test_inputs_without_a_batch_axis(samples):
    model = model_of("g (float[3] x, float k) => (float[3] y) { y = Mul(x, k) }")
    arrays = {"x": samples, "k": np.arange(20, dtype=np.float32)}
    batches = batches_of(Calibration.from_arrays(arrays), model)
    assert len(batches) == 20
    assert batches[7]["x"].shape == (3,) and batches[7]["k"] == 7


def test_iterables_of_feeds_tuples_and_arrays(model, samples):
    for given in ({"x": samples}, (samples,), samples):
        (feeds,) = batches_of(Calibration.from_iterable([given]), model)
        np.testing.assert_array_equal(feeds["x"], samples)
    assert Calibration.from_iterable([samples, samples]).count(model) == 2
    assert not Calibration.from_iterable(iter([])).repeatable


def test_batches_of_a_loader_are_cut_to_a_fixed_batch():
    import torch

    model = model_of("g (float[2,3] x, float[2,1] z) => (float[2,3] y) { y = Add(x, z) }")
    x, z = np.arange(24, dtype=np.float32).reshape(8, 3), np.arange(8, dtype=np.float32)[:, None]
    for batch in ((torch.tensor(x), torch.tensor(z)), {"z": z, "x": x}, [x, z]):
        assert as_calibration([batch, batch]).count(model) == 8
        given = batches_of(as_calibration([batch, batch]), model)
        assert len(given) == 8 and [each["x"].shape for each in given] == [(2, 3)] * 8
        np.testing.assert_array_equal(np.concatenate([each["x"] for each in given]), np.concatenate([x, x]))
        np.testing.assert_array_equal(np.concatenate([each["z"] for each in given[4:]]), z)
    with pytest.raises(PassError, match=r"has shape \[7, 3\], but the model wants \[2, 3\]"):
        batches_of(as_calibration([(x[:7], z[:7])]), model)


def test_one_array_holds_the_samples_of_the_only_input(model, samples):
    given = batches_of(as_calibration(samples), model)
    np.testing.assert_array_equal(np.concatenate([each["x"] for each in given]), samples)
    fixed = model_of("g (float[1,3] x) => (float[1,3] y) { y = Neg(x) }")
    assert len(batches_of(as_calibration(samples), fixed)) == len(samples)


def test_torch_tensors_are_taken(model, samples):
    import torch

    (feeds,) = batches_of(as_calibration([torch.from_numpy(samples)]), model)
    np.testing.assert_array_equal(feeds["x"], samples)


def test_widths_are_converted_kinds_are_not(model, samples):
    (feeds,) = batches_of(as_calibration([samples.astype(np.float64)]), model)
    assert feeds["x"].dtype == np.float32
    tokens = model_of("g (int64[N] x) => (int64[N] y) { y = Neg(x) }")
    (feeds,) = batches_of(as_calibration([np.arange(4, dtype=np.int32)]), tokens)
    assert feeds["x"].dtype == np.int64


@pytest.mark.parametrize(
    ("batch", "line"),
    [
        ({"z": 1}, r"batch 1 has 'z', but the model's inputs are 'x'; rename or remove it$"),
        ({}, r"batch 1 has no array for input 'x'; it has none$"),
        ((1, 2), r"has 2 arrays, but the model has 1 inputs; leave labels out: \(x for x, label in data\)$"),
        ({"x": np.zeros((2, 4), np.float32)}, r"input 'x' has shape \[2, 4\], but the model wants \[N, 3\]$"),
        ({"x": np.zeros(3, np.float32)}, r"input 'x' has shape \[3\], but the model wants \[N, 3\]$"),
        ({"x": np.zeros((2, 3), np.uint8)}, r"input 'x' is uint8, but the model wants float32; convert it$"),
        (
            {"x": np.full((2, 3), np.nan, np.float32)},
            r"batch 1: input 'x' holds NaN; leave such samples out$",
        ),
        (
            {"x": np.full((2, 3), np.inf, np.float32)},
            r"batch 1: input 'x' holds infinity; leave such samples out$",
        ),
    ],
)
def test_bad_batches_are_one_line(model, batch, line):
    with pytest.raises(PassError, match=line) as caught:
        batches_of(as_calibration([batch]), model)
    assert "\n" not in str(caught.value)


def test_integers_that_do_not_fit():
    model = model_of("g (int32[N] x) => (int32[N] y) { y = Neg(x) }")
    with pytest.raises(PassError, match="holds numbers that do not fit int32"):
        batches_of(as_calibration([np.array([2**40])]), model)


def test_bad_sources_are_one_line(tmp_path, model):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no archive")
    np.savez(tmp_path / "uneven.npz", x=np.zeros((2, 3)), z=np.zeros((3, 3)))
    np.savez(tmp_path / "none.npz", x=np.zeros((0, 3)))
    np.savez(tmp_path / "scalar.npz", x=np.float32(1))
    for path, line in [
        ("missing.npz", "cannot read calibration file"),
        ("broken.npz", "cannot read calibration file"),
        ("missing.npy", "cannot read calibration file"),
        ("empty", "holds no .npz or .npy file"),
        ("uneven.npz", "'x' has 2 samples, 'z' has 3"),
        ("none.npz", "'x' has no samples"),
        ("scalar.npz", "is a single number"),
    ]:
        with pytest.raises(PassError, match=line) as caught:
            Calibration.load(tmp_path / path)
        assert "\n" not in str(caught.value)
    with pytest.raises(PassError, match="holds no batch"):
        batches_of(as_calibration([]), model)
    with pytest.raises(PassError, match="must be a path, arrays or an iterable"):
        as_calibration(3)
    two = model_of("g (float[N] p, float[N] q) => (float[N] y) { y = Add(p, q) }")
    np.save(tmp_path / "empty" / "a.npy", np.zeros(4))
    with pytest.raises(PassError, match="'a.npy' names no input, but the model has 2 inputs"):
        batches_of(Calibration.load(tmp_path / "empty"), two)


def test_too_few_samples_for_the_batch(samples):
    model = model_of("g (float[32,3] x) => (float[32,3] y) { y = Relu(x) }")
    with pytest.raises(PassError, match="has 20 samples, but the model takes batches of 32"):
        batches_of(Calibration.from_arrays({"x": samples}), model)


def test_random_numbers_say_so(model):
    data = Calibration.random_data(batches=3, seed=1)
    first, second, _ = batches_of(data, model)
    assert data.random and data.total == 3
    assert not np.array_equal(first["x"], second["x"])


def test_minmax_equals_numpy(model, samples):
    names = ["x", "a", "b", "y"]
    ranges, batches = measure_ranges(
        model, names, Calibration.from_arrays({"x": samples}, batch=6), CALIBRATORS["minmax"]
    )
    values = Reference(model).run_values({"x": samples}, names)
    assert batches == 4
    assert ranges == {name: (float(array.min()), float(array.max())) for name, array in values.items()}


def test_averages_over_batches(model, samples):
    data = Calibration.from_arrays({"x": samples}, batch=5)
    lows, highs = samples.reshape(4, -1).min(axis=1), samples.reshape(4, -1).max(axis=1)
    mean, _ = measure_ranges(model, ["x"], data, CALIBRATORS["mean"])
    np.testing.assert_allclose(mean["x"], (lows.mean(), highs.mean()), rtol=1e-6)
    moving, _ = measure_ranges(model, ["x"], data, CALIBRATORS["moving-average"])
    expected = lows[0], highs[0]
    for low, high in zip(lows[1:], highs[1:], strict=True):
        expected = 0.9 * expected[0] + 0.1 * low, 0.9 * expected[1] + 0.1 * high
    np.testing.assert_allclose(moving["x"], expected, rtol=1e-6)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 100.0])
def test_percentile_equals_numpy_to_a_bin(model, percentile):
    samples = np.random.default_rng(3).normal(size=(4000, 3)).astype(np.float32)
    data = Calibration.from_arrays({"x": samples}, batch=1000)
    ranges, _ = measure_ranges(model, ["x", "y"], data, lambda: Percentile(percentile))
    values = Reference(model).run_values({"x": samples}, ["x", "y"])
    for name, array in values.items():
        bin_width = float(array.max() - array.min()) / Percentile.bins
        expected = np.percentile(array, [100 - percentile, percentile])
        np.testing.assert_allclose(ranges[name], expected, atol=1.5 * bin_width)


def test_percentile_needs_data_twice(model, samples):
    with pytest.raises(PassError, match="2 times, but an iterator can be read once only"):
        measure_ranges(model, ["x"], as_calibration(iter([samples])), Percentile)
    twice, _ = measure_ranges(model, ["x"], as_calibration(lambda: iter([samples])), Percentile)
    assert np.isfinite(twice["x"]).all()


@pytest.mark.parametrize("name", CALIBRATORS)
def test_values_that_are_not_finite_have_no_range(name):
    # 0 / 0 is NaN, 1 / 0 infinite, and only in some places of some batches.
    model = model_of("g (float[N,2] x) => (float[N,2] d, float[N,2] c) { d = Div(x, x) c = Reciprocal(x) }")
    batches = [np.ones((4, 2), np.float32), np.array([[1, 2], [0, 3]], np.float32)]
    ranges, _ = measure_ranges(model, ["x", "d", "c"], as_calibration(batches), CALIBRATORS[name])
    assert np.isfinite(ranges["x"]).all()
    assert np.isnan(ranges["d"]).all()
    assert np.isnan(ranges["c"]).all()


@pytest.mark.parametrize("name", CALIBRATORS)
def test_constant_and_tiny_values(name):
    model = model_of(
        "g (float[N,2] x) => (float[N,2] z, float[N,2] t) <float k = {1e-30}> { z = Sub(x, x) t = Mul(x, k) }"
    )
    ranges, _ = measure_ranges(model, ["z", "t"], as_calibration([np.ones((4, 2))]), CALIBRATORS[name])
    assert ranges["z"] == (0.0, 0.0)
    assert all(abs(end) < 1e-29 for end in ranges["t"])


def test_data_streams(model, samples):
    """One batch is alive at a time, and progress is told after each."""
    alive, seen = [], []

    def batches():
        for i in range(5):
            alive.append(i)
            assert len(seen) == i
            yield {"x": samples[i : i + 1]}

    _, count = measure_ranges(
        model, ["y"], as_calibration(batches()), CALIBRATORS["minmax"], lambda *args: seen.append(args)
    )
    assert count == 5
    assert seen == [(i, None, "calibrating") for i in range(1, 6)]
    seen.clear()
    measure_ranges(model, ["y"], as_calibration([samples] * 2), Percentile, lambda *args: seen.append(args))
    assert [entry[:2] for entry in seen] == [(i, 4) for i in range(1, 5)]


DEEP = """
import resource, sys
import numpy as np
import onnx_ir as ir
from graphwright.passes.quantization.calibration import Calibration
from graphwright.passes.quantization.calibrators import MinMax
from graphwright.passes.quantization.ranges import measure_ranges

body = " ".join(f"v{i} = Tanh(v{i - 1})" for i in range(1, 101))
model = ir.from_onnx_text(
    f'<ir_version: 10, opset_import: ["" : 23]> g (float[N,1024] v0) => (float[N,1024] v100) {{ {body} }}'
)
names = [f"v{i}" for i in range(101)]

def peak(rows):
    data = Calibration.from_arrays({"v0": np.ones((rows, 1024), np.float32)}, batch=rows)
    measure_ranges(model, names, data, MinMax)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

small = peak(1)
print((peak(1024) - small) / (1024 * 1024 * 4))
"""


def test_activations_are_reduced_and_freed_one_by_one():
    """The peak for 101 activations is a few of them, not all."""
    result = subprocess.run([sys.executable, "-c", DEEP], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 12


def test_the_model_is_not_touched(model, samples):
    before = ir.to_proto(model).SerializeToString()
    measure_ranges(model, ["a", "y"], as_calibration([samples]), Percentile)
    assert ir.to_proto(model).SerializeToString() == before
    assert measure_ranges(model, [], as_calibration([samples]), Percentile) == ({}, 0)


def raises_midway(x):
    yield x
    raise OSError("disk on\nfire")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda x: raises_midway(x), "batch 2 could not be made: OSError: disk on fire"),
        (lambda x: lambda: raises_midway(x), "batch 2 could not be made: OSError: disk on fire"),
        (lambda x: lambda: 1 // 0, "batch 1 could not be made: ZeroDivisionError"),
        (lambda x: lambda wanted: [x], "batch 1 could not be made: TypeError.*wanted"),
        (lambda x: lambda: 5, "batch 1 could not be made: TypeError"),
        (lambda x: [[[1.0, 2.0], [3.0]]], "batch 1 has 2 arrays"),
        (lambda x: [{"x": [[1.0, 2.0], [3.0]]}], "no array of numbers"),
    ],
)
def test_what_the_users_code_raises_is_one_line(model, samples, make, match):
    with pytest.raises(PassError, match=match) as caught:
        list(as_calibration(make(samples)).batches(model))
    assert "\n" not in str(caught.value)


def test_an_iterator_is_not_read_by_two_passes(network):
    net = network()
    model = net.model(net.linear(net.input(4, 6), 5))
    batches = [np.random.default_rng(i).normal(size=(4, 6)).astype(np.float32) for i in range(3)]
    with pytest.raises(PassError, match="bias-correction': .* was read already; give a list, or a function"):
        optimize(model, "insert-qdq,bias-correction", calibration=iter(batches))
    held = Calibration.from_iterable(iter(batches))
    assert len(list(held.batches(model))) == 3
    with pytest.raises(PassError, match="was read already"):
        list(held.batches(model))
    for again in (batches, lambda: iter(batches)):
        optimize(model, "insert-qdq,bias-correction", calibration=again)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_torch_tensors_of_every_kind(model, samples, dtype):
    import torch

    tensor = torch.tensor(samples).to(getattr(torch, dtype)).requires_grad_()
    for data in (tensor, {"x": tensor}, [tensor], [{"x": tensor}]):
        found = np.concatenate([feeds["x"] for feeds in as_calibration(data).batches(model)])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, samples, atol=0.04)
