import json

import graphwright as gw
import numpy as np
import pytest
from graphwright.backends import choice as choosing
from graphwright.backends.artifact import read_manifest
from graphwright.backends.runner.build import build_runner
from graphwright.backends.runner.run import run_artifact
from graphwright.backends.target import resolve_target
from graphwright.backends.timing import Timing
from graphwright.ir.errors import CompileError, ShapeError, ToolError

ALL = ["tvm", "onnxruntime"]


@pytest.fixture(scope="module")
def model(build_model):
    return build_model(
        """net (float[1,8] x, float[8,4] w) => (float[1,4] y)
        {
          a = MatMul(x, w)
          y = Relu(a)
        }""",
        w=(8, 4),
    )


@pytest.fixture
def times(monkeypatch):
    """Pretend that the backends take so long; holds what was asked to be measured."""
    asked = {}

    def pretend(**milliseconds):
        def measure(contenders, feeds, *, threads, seconds):
            asked.update(threads=threads, names=list(contenders), feeds=feeds)
            return {name: Timing.of([milliseconds[name]] * 3, threads) for name in contenders}

        monkeypatch.setattr(choosing, "measure_interleaved", measure)
        return asked

    return pretend


def _x():
    return np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32)


@pytest.mark.parametrize("fast", ALL)
def test_the_faster_one_is_shipped_and_says_so(model, times, tmp_path, fast):
    asked = times(**{name: 1.0 if name == fast else 2.0 for name in ALL})
    executable = gw.compile(model, "x86", backend="auto", threads=2)
    assert asked["threads"] == 2 and sorted(asked["names"]) == sorted(ALL)
    assert executable.backend == executable.report.backend == fast
    assert executable.report.check.checked
    folder = executable.save(tmp_path / "net")
    manifest = read_manifest(folder)
    assert manifest["backend"] == fast and manifest["choice"]["chosen"] == fast
    assert {name: timing["median_ms"] for name, timing in manifest["choice"]["timings"].items()} == {
        name: 1.0 if name == fast else 2.0 for name in ALL
    }
    assert json.loads((folder / "report.json").read_text())["choice"] == manifest["choice"]
    assert (
        "is the faster one here: 1.000 ms (1.000-1.000) against 2.000 ms"
        in (folder / "report.md").read_text()
    )
    assert (folder / "model.so").exists() == (fast == "tvm")
    loaded = gw.load_executable(folder, threads=1)
    np.testing.assert_allclose(loaded(_x()), executable(_x()), rtol=1e-5)
    assert read_manifest(loaded.save(tmp_path / "again"))["choice"] == manifest["choice"]


def test_both_are_really_timed(model):
    executable = gw.compile(model, "x86", backend="auto")
    timings = executable.report.choice.timings
    assert sorted(timings) == sorted(ALL)
    assert all(timing.samples >= 16 and timing.threads == 1 for timing in timings.values())
    assert timings[executable.backend].median_ms == min(timing.median_ms for timing in timings.values())
    assert executable.report.steps["time both backends"] > 0


def test_the_report_of_a_shipped_onnxruntime_has_no_kernels(model, times):
    times(tvm=2.0, onnxruntime=1.0)
    report = gw.compile(model, "x86", backend="auto").report
    assert report.kernels == [] and report.library_bytes == 0 and report.weight_bytes == 8 * 4 * 4


def test_a_target_that_does_not_run_here_gets_tvm_with_a_note(model):
    executable = gw.compile(model, "cortex-a76", backend="auto", check=False)
    assert executable.backend == "tvm"
    assert "cannot be timed here" in str(executable.report.choice)
    assert "cannot be timed here" in executable.report.to_markdown()


def test_what_one_backend_cannot_do_the_other_does(build_model):
    model = build_model(
        """net (float[4] x) => (float[4] y)
        {
          total = ReduceSum<keepdims = 0>(x)
          zero = Constant<value_float = 0.0>()
          positive = Greater(total, zero)
          y = If(positive) <
            then_branch = yes () => (float[4] a) { a = Relu(x) },
            else_branch = no () => (float[4] b) { b = Neg(x) }
          >
        }"""
    )
    with pytest.raises(CompileError, match="body that depends on data"):
        gw.compile(model, "x86")
    executable = gw.compile(model, "x86", backend="auto")
    assert executable.backend == "onnxruntime"
    assert "TVM failed: " in str(executable.report.choice)


def test_sizes_that_depend_on_the_data_go_to_onnx_runtime(build_model):
    model = build_model("g (float[2,3] x) => (int64[2,n] where) { where = NonZero(x) }")
    with pytest.raises(CompileError, match=r"only known at run time \(n\).*use --backend onnxruntime"):
        gw.compile(model, "x86")
    exe = gw.compile(model, "x86", backend="auto")
    assert exe.backend == "onnxruntime" and "only known at run time" in str(exe.report.choice)
    x = np.array([[0, 1, 0], [2, 0, 3]], np.float32)
    np.testing.assert_array_equal(exe(x), np.nonzero(x))
    open_batch = build_model("g (float[N,3] x) => (float[N,3] y) { y = Exp(x) }")
    with pytest.raises(ShapeError, match="--dim N=1"):
        gw.compile(open_batch, "x86", backend="auto")


def test_bad_requests_fail_before_work(model):
    with pytest.raises(CompileError, match="tvm, onnxruntime, auto"):
        gw.compile(model, "x86", backend="both")
    with pytest.raises(CompileError, match="at least one thread"):
        gw.compile(model, "x86", backend="auto", threads=0)


def test_an_artifact_without_its_graph_is_refused(model, tmp_path):
    folder = gw.compile(model, "x86", backend="onnxruntime").save(tmp_path / "net")
    (folder / "model.onnx").unlink()
    with pytest.raises(ToolError, match=r"model\.onnx is missing"):
        gw.load_executable(folder)


def test_the_runner_refuses_an_artifact_without_library(model, tmp_path):
    folder = gw.compile(model, "x86", backend="onnxruntime").save(tmp_path / "net")
    target = resolve_target("host")
    build_runner(target)
    with pytest.raises(CompileError, match="compiled for ONNX Runtime and holds no library"):
        run_artifact(folder, target, [_x()])
