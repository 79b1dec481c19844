import numpy as np
import onnx_ir as ir
import pytest
from graphwright.backends.executable import Executable, TensorSpec, check_inputs
from graphwright.backends.onnxruntime import OnnxRuntimeExecutable
from graphwright.backends.target import host_target
from graphwright.backends.timing import Timing
from graphwright.ir.errors import CompileError, ModelError

X = TensorSpec("x", (2, 3), "float32")
Y = TensorSpec("y", (2, 3), "float32")
IDS = TensorSpec("ids", ("batch", 4), "int64")
MASK = TensorSpec("mask", ("batch",), "bool")


class Doubler(Executable):
    backend = "test"

    def __init__(self, inputs=(X,), outputs=(Y,)):
        super().__init__(inputs, outputs, host_target())
        self.calls = 0

    def set_threads(self, threads):
        self.threads = threads

    def _run(self, arrays):
        self.calls += 1
        return [array * 2 for array in arrays]


def test_arrays_tensors_and_lists_by_position_or_name():
    import torch

    exe = Doubler()
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for result in (
        exe(x),
        exe(x=x),
        exe({"x": x}),
        exe(torch.from_numpy(x)),
        exe(torch.from_numpy(x).requires_grad_()),
        exe(x.tolist()),
        exe(np.asfortranarray(x)),
    ):
        np.testing.assert_array_equal(result, 2 * x)
    assert list(exe.run({"x": x})) == ["y"]


def test_several_outputs_come_as_a_tuple_in_order():
    exe = Doubler((X, IDS), (TensorSpec("a", (2, 3), "float32"), TensorSpec("b", ("batch", 4), "int64")))
    a, b = exe(np.ones((2, 3), np.float32), ids=np.full((5, 4), 7))
    assert a.dtype == np.float32
    np.testing.assert_array_equal(b, np.full((5, 4), 14))


def test_bfloat16_tensors_keep_their_bits():
    import ml_dtypes
    import torch

    exe = Doubler((TensorSpec("x", (2,), "bfloat16"),), (TensorSpec("y", (2,), "bfloat16"),))
    result = exe(torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
    assert result.dtype == ml_dtypes.bfloat16
    assert result.tolist() == [3.0, -4.0]


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, "input 'x' is missing; the model takes x: float32[2,3]"),
        ({"x": np.zeros((2, 3), np.float32), "z": 1}, "no input 'z'"),
        ({"x": np.zeros((2, 3))}, "input 'x' is float64, the model takes x: float32[2,3]"),
        ({"x": np.zeros((3, 2), np.float32)}, "has shape [3, 2]"),
        ({"x": np.zeros(6, np.float32)}, "has shape [6]"),
        ({"x": [[1, 2], [3]]}, "cannot be made an array of float32"),
        ({"x": "text"}, "cannot be made an array of float32"),
    ],
)
def test_wrong_inputs_end_in_one_line(feeds, said):
    with pytest.raises(ModelError) as caught:
        Doubler().run(feeds)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_many_and_doubled_inputs_are_refused():
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ModelError, match=r"takes 1 input\(s\), 2 were given"):
        Doubler()(x, x)
    with pytest.raises(ModelError, match="given twice"):
        Doubler()(x, x=x)


def test_a_symbolic_dimension_has_one_size_per_call():
    ids, mask = np.zeros((5, 4), np.int64), np.zeros(5, bool)
    assert [array.shape for array in check_inputs([IDS, MASK], {"mask": mask, "ids": ids})] == [(5, 4), (5,)]
    with pytest.raises(ModelError, match="'mask' has shape"):
        check_inputs([IDS, MASK], {"ids": ids, "mask": np.zeros(4, bool)})


def test_scalars_stay_scalars():
    spec = TensorSpec("s", (), "float32")
    assert check_inputs([spec], {"s": np.float32(3)})[0].shape == ()
    assert check_inputs([spec], {"s": 3.0})[0].dtype == np.float32


def test_timing_summarizes_the_samples():
    timing = Timing.of([5.0, 1.0, 2.0, 3.0, 4.0], threads=2)
    assert (timing.median_ms, timing.min, timing.samples, timing.threads) == (3.0, 1.0, 5, 2)
    assert (timing.p10, timing.p90) == (pytest.approx(1.4), pytest.approx(4.6))
    assert timing.to_json()["p90_ms"] == timing.p90


def test_benchmark_warms_up_and_runs_as_often_as_asked():
    exe = Doubler()
    timing = exe.benchmark(threads=2, repeats=7, warmup=2)
    assert (timing.samples, timing.threads, exe.threads, exe.calls) == (7, 2, 2, 9)
    assert 5 <= exe.benchmark(seconds=0.001).samples <= 200
    with pytest.raises(ModelError):
        exe.benchmark(threads=0)
    with pytest.raises(ModelError):
        exe.benchmark(repeats=0)


def test_specs_survive_json_and_know_their_size():
    for spec in (X, IDS, MASK, TensorSpec("h", (2, 2), "bfloat16")):
        assert TensorSpec.from_json(spec.to_json()) == spec
    assert (X.bytes, TensorSpec("h", (2, 2), "bfloat16").bytes) == (24, 8)


def _model(text: str) -> ir.Model:
    return ir.from_onnx_text(text)


MLP = """<ir_version: 10, opset_import: ["" : 23]>
mlp (float[N,8] x) => (float[N,4] y, float[N,8] r)
<float[8,4] w = {0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6}>
{ r = Relu(x)  y = MatMul(r, w) }"""


def test_onnxruntime_executable_computes_and_takes_threads():
    model = _model(MLP)
    exe = OnnxRuntimeExecutable(model)
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    y, r = exe(x)
    np.testing.assert_array_equal(r, np.maximum(x, 0))
    np.testing.assert_allclose(y, r @ model.graph.initializers["w"].const_value.numpy(), rtol=1e-6)
    for threads in (2, 1):
        exe.set_threads(threads)
        assert exe._session.get_session_options().intra_op_num_threads == threads
        np.testing.assert_allclose(exe(x)[0], y, rtol=1e-6)
    assert exe.benchmark(repeats=3, threads=2).threads == 2
    with pytest.raises(ModelError, match="at least one thread"):
        exe.set_threads(0)


def test_onnxruntime_optimizations_are_at_their_default_unless_switched_off():
    import onnxruntime

    level = onnxruntime.GraphOptimizationLevel
    for optimize, expected in ((True, level.ORT_ENABLE_ALL), (False, level.ORT_DISABLE_ALL)):
        exe = OnnxRuntimeExecutable(_model(MLP), optimize=optimize)
        assert exe._session.get_session_options().graph_optimization_level == expected


def test_a_model_that_onnxruntime_refuses_ends_in_one_line():
    text = """<ir_version: 10, opset_import: ["" : 23, "nowhere" : 1]>
    g (float[2] x) => (float[2] y) { y = nowhere.Frobnicate(x) }"""
    with pytest.raises(CompileError) as caught:
        OnnxRuntimeExecutable(_model(text))
    assert "Frobnicate" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_large_models_are_lent_instead_of_copied(monkeypatch):
    from graphwright.backends import onnxruntime as module

    monkeypatch.setattr(module, "_INLINE_BYTES", 0)
    weights = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    model = _model(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[2,64] x, float[64,64] w) => (float[2,64] y) { y = MatMul(x, w) }"""
    )
    value = model.graph.inputs.pop()
    value.const_value = ir.tensor(weights, name="w")
    model.graph.register_initializer(value)
    exe = OnnxRuntimeExecutable(model)
    assert list(exe._shared) == ["w"]
    x = np.ones((2, 64), np.float32)
    np.testing.assert_allclose(exe(x), x @ weights, rtol=1e-4, atol=1e-5)
