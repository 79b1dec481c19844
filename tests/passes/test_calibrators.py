"""Calibrators against numpy on distributions whose best range is known, and ranges that are saved and reused."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from graphwright.ir.errors import PassError
from graphwright.passes.optimize import optimize
from graphwright.passes.quantization.calibration import Calibration, as_calibration
from graphwright.passes.quantization.calibrators import CALIBRATORS, Method
from graphwright.passes.quantization.range_cache import fingerprint_of
from graphwright.passes.quantization.ranges import measure_ranges
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from .quantization_models import model_of

IDENTITY = "g (float[N,M] x) => (float[N,M] y, float[N,M] r) { y = Identity(x)  r = Relu(x) }"


def ranges_of(method: Method, samples: np.ndarray, names=("y", "r")) -> dict[str, tuple[float, float]]:
    data = as_calibration([each[None] for each in np.array_split(samples.astype(np.float32), 4)])
    return measure_ranges(model_of(IDENTITY), names, data, method)[0]


def error_of(samples: np.ndarray, low: float, high: float, levels: int = 255) -> float:
    scale = (high - low) / levels
    zero = np.clip(np.rint(-low / scale), 0, levels)
    restored = (np.clip(np.rint(samples / scale) + zero, 0, levels) - zero) * scale
    return float(np.square(restored - samples, dtype=np.float64).mean())


@pytest.mark.parametrize("shape", ["normal", "laplace", "outlier", "uniform"])
def test_mse_finds_nearly_the_least_error(shape):
    rng = np.random.default_rng(0)
    samples = {
        "normal": rng.normal(size=40000),
        "laplace": rng.laplace(size=40000),
        "outlier": np.concatenate([rng.normal(size=39996), [60.0, 70.0, -5.0, 8.0]]),
        "uniform": rng.uniform(-1, 2, size=40000),
    }[shape]
    found = ranges_of(Method("mse", levels=15), samples)["y"]
    ends = np.linspace(0.05, 1.0, 24)
    best = min(error_of(samples, samples.min() * a, samples.max() * b, 15) for a in ends for b in ends)
    assert error_of(samples, *found, 15) <= 1.05 * best
    relu = ranges_of(Method("mse", levels=15), samples)["r"]
    best = min(
        error_of(np.maximum(samples, 0), 0.0, samples.max() * b, 15) for b in np.linspace(0.02, 1, 200)
    )
    assert relu[0] == 0.0 and error_of(np.maximum(samples, 0), *relu, 15) <= 1.05 * best


def test_entropy_cuts_outliers_and_keeps_the_rest():
    rng = np.random.default_rng(0)
    samples = np.concatenate([rng.normal(size=100000), [40.0, -30.0]])
    low, high = ranges_of(Method("entropy"), samples)["y"]
    assert -12 < low < -3 and 3 < high < 12
    even = rng.uniform(-1, 1, size=100000)
    low, high = ranges_of(Method("entropy"), even)["y"]
    assert low < -0.95 and high > 0.95
    low, high = ranges_of(Method("entropy"), samples)["r"]
    assert low == 0.0 and 3 < high < 12


def test_clipped_equals_numpy():
    samples = np.random.default_rng(0).gamma(0.3, 2.0, size=20000)
    low, high = ranges_of(Method("clipped", deviations=3.0), samples)["y"]
    assert low == pytest.approx(samples.astype(np.float32).min())
    assert high == pytest.approx(samples.mean() + 3.0 * samples.std(), rel=1e-5)
    assert ranges_of(Method("clipped", deviations=1e6), samples)["y"][1] == pytest.approx(samples.max())


def test_more_levels_cut_less():
    samples = np.random.default_rng(0).laplace(size=40000)
    widths = [np.ptp(ranges_of(Method("mse", levels=n), samples)["y"]) for n in (15, 255, 65535)]
    assert widths[0] < widths[1] < widths[2] <= np.ptp(samples) * 1.0001
    assert np.ptp(ranges_of(Method("entropy", levels=65535), samples)["y"]) == pytest.approx(np.ptp(samples))


@pytest.mark.parametrize("name", CALIBRATORS)
@given(
    samples=hnp.arrays(
        np.float32,
        st.integers(4, 40),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
        | st.sampled_from([0.0, -1.0, 1.0]),
    )
)
@settings(max_examples=12, deadline=None)
def test_any_numbers_give_a_range_inside_the_extremes_or_none(name, samples):
    low, high = ranges_of(Method(name), samples, ("y",))["y"]
    if not np.isfinite(np.abs(samples).sum()):
        # The alarm that finds NaN and infinity overflows itself: such a value stays in float.
        assert np.isnan([low, high]).all() or np.isfinite([low, high]).all()
        return
    slack = 1e-5 * max(abs(float(samples.min())), abs(float(samples.max())))
    assert min(samples.min(), 0.0) - slack <= low <= high <= max(samples.max(), 0.0) + slack


CNN = "g (float[N,3,8,8] x, float[8,3,3,3] w, float[8] b) => (float[N,8,6,6] y) { c = Conv(x, w, b)  y = Relu(c) }"


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_saved_ranges_are_reused(name, images, tmp_path):
    model = model_of(CNN)
    cache = tmp_path / "ranges.json"
    options = f"insert-qdq{{calibration={name} calibration_cache={cache}}}"
    first = optimize(model, options, calibration={"x": images})
    told = []
    again = optimize(model, options, calibration={"x": images}, progress=lambda *what: told.append(what[2]))
    assert "calibrating" not in told
    without = optimize(model, options)
    for other in (again, without):
        assert other.report.records[0].details["values"] == first.report.records[0].details["values"]
    # Other data is measured, and another model or method has nothing here.
    changed = optimize(model, options, calibration={"x": 2 * images})
    assert changed.report.records[0].details["values"] != first.report.records[0].details["values"]
    with pytest.raises(PassError, match="holds no ranges for this model and method"):
        optimize(model_of(CNN, seed=5), options)
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob("*.partial.npz"))


def test_fingerprints_see_weights_attributes_and_bodies():
    model = model_of(CNN)
    assert fingerprint_of(model) == fingerprint_of(model_of(CNN))
    assert fingerprint_of(model) != fingerprint_of(model_of(CNN, seed=1))
    assert fingerprint_of(model) != fingerprint_of(model_of(CNN.replace("Conv(", "Conv<dilations=[1,1]>(")))
    body = "g (float[N] x, bool c) => (float[N] y) { y = If(c)<then_branch = t () => (float[N] a) { a = OP(x) }, else_branch = e () => (float[N] b) { b = Abs(x) }> }"
    one, two = (model_of(body.replace("OP", op), keep="x c") for op in ("Relu", "Tanh"))
    assert fingerprint_of(one) != fingerprint_of(two)


@pytest.mark.parametrize("content", ["not json", "{}", '{"graphwright ranges": 99}', "[1]"])
def test_files_that_are_no_cache_are_one_line(content, images, tmp_path):
    cache = tmp_path / "ranges.json"
    cache.write_text(content)
    with pytest.raises(PassError, match="calibration cache") as error:
        optimize(model_of(CNN), f"insert-qdq{{calibration_cache={cache}}}", calibration={"x": images})
    assert "\n" not in str(error.value) and cache.read_text() == content


SLOW = """
import sys, time
import numpy as np
import onnx_ir as ir
from graphwright.passes.quantization import range_cache
from graphwright.passes.quantization.calibration import Calibration
from graphwright.passes.quantization.calibrators import Method
from graphwright.passes.quantization.ranges import measure_ranges

range_cache._SECONDS_BETWEEN_SAVES = 0.0
model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]> g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }')
seen = []

def batches():
    for i in range(12):
        yield {"x": np.full((1, 4), i + 0.5, np.float32)}

def tell(done, total, text):
    print("batch", done, flush=True)
    if len(sys.argv) > 2:
        time.sleep(0.2)

data = Calibration.from_iterable(batches, identity="twelve").with_cache(sys.argv[1])
print(measure_ranges(model, ["y"], data, Method("percentile", percentile=100.0), tell), flush=True)
"""


def test_a_kill_loses_nothing_that_was_seen(tmp_path):
    cache = str(tmp_path / "ranges.json")
    command = [sys.executable, "-c", SLOW, cache]
    with subprocess.Popen([*command, "slowly"], stdout=subprocess.PIPE, text=True) as process:
        for _ in range(15):
            line = process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    assert line == "batch 15\n"
    rest = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    # 24 batches in two rounds, the first 14 or 15 of which are not run again.
    assert rest[0] in ("batch 15", "batch 16") and rest[-2] == "batch 24"
    assert rest[-1] == "({'y': (0.5, 11.5)}, 12)"
    assert len(json.loads((tmp_path / "ranges.json").read_text())["entries"]) == 1
    assert not list(tmp_path.glob("*.partial.npz"))


def test_a_damaged_checkpoint_is_no_reason_to_stop(tmp_path):
    cache = tmp_path / "ranges.json"
    cache.with_name("ranges.json.partial.npz").write_bytes(b"half a file")
    done = subprocess.run(
        [sys.executable, "-c", SLOW, str(cache)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == "batch 1"


MEMORY = """
import resource, sys, time
import numpy as np
from graphwright.ir.reference import Reference
from graphwright.passes.optimize import optimize
from graphwright.passes.quantization.calibration import Calibration
from graphwright.tools.zoo import zoo_model

model = optimize(zoo_model("resnet50"), "simplify,fold-batch-norm").model
name = model.graph.inputs[0].name
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
Reference(model).run({name: np.zeros((1, 3, 224, 224), np.float32)})
before, told = peak(), []

def batches():
    rng = np.random.default_rng(0)
    for _ in range(int(sys.argv[2])):
        yield {name: rng.normal(size=(1, 3, 224, 224)).astype(np.float32)}

started = time.time()
optimize(model, f"insert-qdq{{calibration={sys.argv[1]}}}", calibration=batches, progress=lambda *what: told.append(what))
print(peak() - before, len(told), time.time() - started)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minmax", "entropy"])
def test_resnet50_on_256_images_stays_under_a_gigabyte(name):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, name, "256"], capture_output=True, text=True, check=True
    )
    gigabytes, told, seconds = map(float, done.stdout.split())
    print(f"{name}: {gigabytes:.2f} GB above the model, {seconds:.0f} s")
    assert gigabytes < 1.0
    assert told >= 256 * (1 if name == "minmax" else 2)


def methods_of(calibration, text="insert-qdq", **options):
    seen = []

    class Spy(Method):
        def of(self, value):
            seen.append(self.name)
            return super().of(value)

    from graphwright.passes import insert_qdq

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(insert_qdq, "Method", Spy)
        optimize(model_of(CNN), text, calibration=calibration, **options)
    return set(seen)


def test_the_default_is_mse_where_data_can_be_read_twice(images):
    batches = [{"x": images[:12]}, {"x": images[12:]}]
    assert methods_of({"x": images}) == methods_of(batches) == methods_of(lambda: iter(batches)) == {"mse"}
    assert methods_of(iter(batches)) == {"minmax"}
    assert methods_of(Calibration.random_data(2)) == {"minmax"}
    assert methods_of({"x": images}, "insert-qdq{target=generic precision=fp8-e4m3}") == {"minmax"}
    assert methods_of({"x": images}, "insert-qdq{calibration=minmax}") == {"minmax"}
    model, same = model_of(CNN), "insert-qdq{calibration=mse}"
    values = [
        optimize(model, text, calibration=batches).report.records[0].details["values"]
        for text in ("insert-qdq", same)
    ]
    assert values[0] == values[1]


@pytest.mark.parametrize("name", ["mse", "minmax"])
def test_saved_ranges_of_either_default_are_found_without_data(name, images, tmp_path):
    cache = tmp_path / "ranges.json"
    text = f"insert-qdq{{calibration={name} calibration_cache={cache}}}"
    first = optimize(model_of(CNN), text, calibration={"x": images})
    again = optimize(model_of(CNN), f"insert-qdq{{calibration_cache={cache}}}")
    assert again.report.records[0].details["values"] == first.report.records[0].details["values"]
    with pytest.raises(PassError, match="holds no ranges for this model and method"):
        optimize(model_of(CNN, seed=5), f"insert-qdq{{calibration_cache={cache}}}")
