import collections

import graphwright as gw
import numpy as np
import onnx_ir as ir
import pytest
from graphwright.backends import checking, library
from graphwright.backends import compile as compiling
from graphwright.backends.compiled import TvmExecutable
from graphwright.backends.host import logical_cores
from graphwright.backends.target import resolve_target
from graphwright.ir.errors import CompileError, ShapeError, TargetError, VerifyError
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import Reference, run_reference

QUANTIZED = """quantized (float[1,16] x, float[16,8] w) => (float[1,8] y)
<float sx = {0.02}, int8 zx = {3}, float sw = {0.05}, int8 zw = {0}, float sy = {0.05}, int8 zy = {-4}>
{
  xq = QuantizeLinear(x, sx, zx)
  xd = DequantizeLinear(xq, sx, zx)
  wq = QuantizeLinear(w, sw, zw)
  wd = DequantizeLinear(wq, sw, zw)
  m = MatMul(xd, wd)
  yq = QuantizeLinear(m, sy, zy)
  y = DequantizeLinear(yq, sy, zy)
}"""


def test_a_network_compiles_and_equals_the_reference(cnn):
    nodes = len(cnn.graph)
    steps = []
    exe = gw.compile(cnn, "x86", progress=steps.append)
    assert len(cnn.graph) == nodes
    report = exe.report
    assert report.check.checked
    assert report.check.comparison.max_rel <= 1e-4
    assert report.pipeline
    assert steps[0] == "prepare"
    assert steps[-1] == "check"
    assert {"prepare", "optimize", "lower", "build", "check"} <= report.steps.keys()
    assert report.library_bytes == exe.library.stat().st_size
    assert report.sizes["before"]["parameters"] == 5578
    feeds = random_inputs(cnn, seed=7)
    np.testing.assert_allclose(exe(**feeds), run_reference(cnn, feeds)["y"], rtol=1e-4, atol=1e-5)
    assert exe.report.to_markdown().startswith("# cnn\n")
    assert exe.benchmark(repeats=5).median_ms > 0


@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3", "skylake-avx512"])
def test_code_for_older_and_wider_vectors_agrees_too(cnn, target):
    resolved = resolve_target(target)
    check = gw.compile(cnn, resolved).report.check
    assert check.checked == resolved.runs_here
    if check.checked:
        assert check.comparison.max_rel <= 1e-4


def test_the_onnxruntime_backend_has_the_same_face(mlp):
    exe = gw.compile(mlp, "x86", backend="onnxruntime")
    assert exe.backend == "onnxruntime"
    assert exe.report.check.checked
    x = np.ones((4, 24), np.float32)
    np.testing.assert_allclose(exe(x), run_reference(mlp, {"x": x})["y"], rtol=1e-5)


def test_symbolic_dimensions_must_be_bound(build_model):
    text = "net (float[N,8] x, float[8,4] w) => (float[N,4] y) { y = MatMul(x, w) }"
    with pytest.raises(ShapeError) as caught:
        gw.compile(build_model(text, w=(8, 4)), "x86")
    assert "N" in str(caught.value)
    assert "\n" not in str(caught.value)
    exe = gw.compile(build_model(text, w=(8, 4)), "x86", dims={"N": 3})
    assert exe.inputs[0].shape == (3, 8)
    assert exe(np.zeros((3, 8), np.float32)).shape == (3, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"trials": -1}, CompileError, "must not be negative"),
        ({"backend": "gcc"}, CompileError, "there are tvm, onnxruntime, auto"),
        ({"target": "pdp11"}, TargetError, "unknown target"),
        ({"target": "cuda", "backend": "onnxruntime"}, TargetError, "runs on this machine's CPU only"),
        ({"target": "arm", "backend": "onnxruntime"}, TargetError, "runs on this machine's CPU only"),
    ],
)
def test_bad_options_end_in_one_line_before_any_work(mlp, monkeypatch, arguments, error, said):
    monkeypatch.setattr(compiling, "clone", lambda model: pytest.fail("work was begun"))
    with pytest.raises(error, match=said) as caught:
        gw.compile(mlp, **arguments)
    assert "\n" not in str(caught.value)


def test_a_missing_linker_is_named_before_any_work(mlp, monkeypatch):
    monkeypatch.setattr(compiling, "clone", lambda model: pytest.fail("work was begun"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TargetError, match=r"install g\+\+"):
        gw.compile(mlp, "host")
    with pytest.raises(TargetError, match="apt-get install .*g\\+\\+-aarch64-linux-gnu"):
        gw.compile(mlp, "raspberry-pi-4")
    monkeypatch.setenv("GRAPHWRIGHT_CXX_AARCH64", "no-such-compiler")
    with pytest.raises(TargetError, match="GRAPHWRIGHT_CXX_AARCH64 names 'no-such-compiler'"):
        gw.compile(mlp, "arm")


def _off_by(error):
    run = TvmExecutable._run
    return lambda self, arrays: [array + np.asarray(error, array.dtype) for array in run(self, arrays)]


def test_a_library_that_computes_something_else_is_refused(mlp, monkeypatch):
    monkeypatch.setattr(TvmExecutable, "_run", _off_by(1e-3))
    with pytest.raises(
        CompileError, match=r"output 'y' has max relative error .*required is relative error <= 0\.0001"
    ):
        gw.compile(mlp, "x86")
    assert not gw.compile(mlp, "x86", check=False).report.check.checked


def test_quantized_graphs_are_judged_by_their_noise(build_model, monkeypatch):
    model = build_model(QUANTIZED, w=(16, 8))
    exe = gw.compile(model, "x86", pipeline="")
    assert exe.report.check.bound == "relative error <= 0.0001"
    monkeypatch.setattr(TvmExecutable, "_run", _off_by([0.05] + [0] * 7))
    flipped = gw.compile(model, "x86", pipeline="").report.check
    assert 30 <= flipped.comparison.sqnr_db < 60
    assert flipped.bound == "SQNR >= 30.0 dB"
    monkeypatch.setattr(TvmExecutable, "_run", _off_by(0.5))
    with pytest.raises(CompileError, match=r"required is SQNR >= \d"):
        gw.compile(model, "x86", pipeline="")


@pytest.mark.parametrize(
    "body",
    [
        "a = Mul(x, inverse) r = Round(a) y = Mul(r, step)",
        "n = Cast<to = 17>(x) y = Cast<to = 1>(n)",  # float8_e4m3fn
    ],
)
def test_other_roundings_are_quantizers_too(build_model, monkeypatch, body):
    constants = "float step = {0.05}, float inverse = {20}" if "step" in body else ""
    model = build_model(f"g (float[1,8] x) => (float[1,8] y) <{constants}> {{ {body} }}")
    monkeypatch.setattr(TvmExecutable, "_run", _off_by([0.05] + [0] * 7))
    assert gw.compile(model, "x86", pipeline="").report.check.bound == "SQNR >= 30.0 dB"


def test_a_graph_that_amplifies_rounding_is_judged_by_its_own_noise(build_model, monkeypatch):
    model = build_model(QUANTIZED, w=(16, 8))
    monkeypatch.setattr(checking, "rounding_noise", lambda *_: 20.0)
    monkeypatch.setattr(TvmExecutable, "_run", _off_by([0.15] * 8))
    check = gw.compile(model, "x86", pipeline="").report.check
    assert 14 <= check.comparison.sqnr_db < 30
    assert check.bound == "SQNR >= 14.0 dB"
    assert check.notes == ("rounding alone leaves 20.0 dB in the reference of this quantized graph",)


def test_rounding_noise_is_that_of_flipped_steps(build_model):
    model = build_model(QUANTIZED, w=(16, 8))
    reference = Reference(model)
    halfway = {"x": np.full((1, 16), 0.03, np.float32)}  # 1.5 steps
    noise = checking.rounding_noise(model, reference, halfway, reference.run(halfway))
    assert noise < 60
    settled = {"x": np.full((1, 16), 0.04, np.float32)}
    assert checking.rounding_noise(model, reference, settled, reference.run(settled)) > 100


def test_integer_outputs_must_be_equal(build_model, monkeypatch):
    model = build_model("net (float[1,8] x) => (int64[1] y) { y = ArgMax<axis = 1, keepdims = 0>(x) }")
    assert gw.compile(model, "x86", pipeline="").report.check.comparison.equal
    monkeypatch.setattr(TvmExecutable, "_run", _off_by(1))
    with pytest.raises(CompileError, match="required is equality"):
        gw.compile(model, "x86", pipeline="")


def test_an_output_that_proves_nothing_is_pointed_out(build_model):
    model = build_model("net (float[1,8] x) => (float[1,8] y) { z = Sub(x, x)  y = Relu(z) }")
    report = gw.compile(model, "x86", pipeline="").report
    assert report.check.notes == ("output 'y' is all zeros here, which proves little",)
    assert "proves little" in report.to_markdown()
    model = build_model(
        "net (float[1,8] x) => (float[1,8] y) { a = Abs(x) b = Exp(a) n = Neg(b) y = Sqrt(n) }"
    )
    report = gw.compile(model, "x86", pipeline="").report
    assert report.check.notes == ("output 'y' is all NaN here, which proves little",)


def test_failures_inside_of_tvm_end_in_one_line_and_leave_no_files(mlp, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def broken(*_):
        raise ValueError("a long\ntext: it failed deep inside\nof TVM")

    monkeypatch.setattr("graphwright.backends.tvm.lower.lower_programs", broken)
    with pytest.raises(CompileError, match="it failed deep inside") as caught:
        gw.compile(mlp, "x86")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_no_files(mlp, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("graphwright.backends.tvm.build.build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gw.compile(mlp, "x86")
    assert list(tmp_path.iterdir()) == []


def test_the_library_goes_with_its_executable(mlp, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    exe = gw.compile(mlp, "x86")
    assert exe.library.exists()
    del exe
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_linking_is_told_as_such(mlp, monkeypatch):
    text = "ld: final link failed: No space left on device\ncollect2: error: ld returned 1 exit status"
    error = library._tvm_error(RuntimeError(text))
    assert isinstance(error, OSError)
    monkeypatch.setattr(library, "build_here", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(CompileError, match="No space left on device"):
        gw.compile(mlp, "x86")


def test_too_little_room_to_work_in_is_found_out_before(mlp, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(CompileError, match=r"has 0 MB left, compiling needs about 128 MB; make room"):
        gw.compile(mlp, "x86")
    assert list(tmp_path.iterdir()) == []


def test_the_hash_of_a_model_depends_on_contents_only(mlp, tmp_path):
    before = compiling.model_hash(mlp)
    gw.save(mlp, tmp_path / "inline.onnx")
    gw.save(mlp, tmp_path / "external.onnx", external_data=True)
    assert compiling.model_hash(gw.load(tmp_path / "inline.onnx")) == compiling.model_hash(
        gw.load(tmp_path / "external.onnx")
    )
    value = mlp.graph.initializers["w1"]
    value.const_value = ir.tensor(value.const_value.numpy() + 1, name="w1")
    assert compiling.model_hash(mlp) != before


def test_a_file_is_loaded_and_recorded(mlp, tmp_path):
    gw.save(mlp, tmp_path / "mlp.onnx")
    report = gw.compile(tmp_path / "mlp.onnx", "x86", backend="onnxruntime").report
    assert report.source["name"] == "mlp.onnx"
    assert len(report.source["sha256"]) == 64


def test_a_graph_of_an_older_opset_is_upgraded():
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["" : 11]>
    net (float[2,3] x) => (float[2,3] y) { y = Softmax(x) }""")
    exe = gw.compile(model, "x86", pipeline="")
    assert exe.model.opset_imports[""] == 23
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_allclose(exe(x), np.exp(x) / np.exp(x).sum(1, keepdims=True), rtol=1e-5)


def test_an_invalid_graph_and_things_that_are_no_graph_are_refused(build_model):
    model = build_model("net (float[2] x) => (float[2] y) { a = Relu(x)  y = Relu(a) }")
    first, second = model.graph
    first.replace_input_with(0, second.outputs[0])
    with pytest.raises(VerifyError) as caught:
        gw.compile(model, "x86", pipeline="")
    assert "\n" not in str(caught.value)
    with pytest.raises(CompileError, match="not list"):
        gw.compile([1, 2], "x86")


def test_threads_are_limited_to_what_was_asked_for(mlp, monkeypatch):
    import tvm
    from graphwright.backends.tvm.runtime import TvmProgram

    count, invoke, seen = tvm.get_global_func("runtime.NumThreads"), TvmProgram._invoke, []

    def counted(*arguments):
        seen.append(count())
        return invoke(*arguments)

    exe = gw.compile(mlp, "x86")
    monkeypatch.setattr(TvmProgram, "_invoke", counted)
    for threads in (1, 2, 1):
        exe.set_threads(threads)
        exe(np.zeros((4, 24), np.float32))
    assert seen == [min(threads, logical_cores()) for threads in (1, 2, 1)]


FUNCTIONS = """
<ir_version: 10, opset_import: ["" : 23, "my" : 1]>
g (float[2,3] x) => (float[2,3] y) { a = my.twice(x)
    y = my.act <slope = 0.5> (a) }
<domain: "my", opset_import: ["" : 23]> twice (p) => (q) { q = Add(p, p) }
<domain: "my", opset_import: ["" : 23]> act <slope> (p) => (q) { q = LeakyRelu <alpha: float = @slope> (p) }
"""


def test_functions_of_the_model_are_compiled_by_their_bodies():
    model = ir.from_onnx_text(FUNCTIONS)
    x = np.array([[-1, 0, 1], [2, -3, 4]], np.float32)
    executable = gw.compile(model, "x86")
    np.testing.assert_allclose(executable(x), np.where(x < 0, x, 2 * x), rtol=1e-6)


def test_an_integer_quotient_is_not_tried_on_a_divisor_of_zero():
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]> g (int32[64] a, int32[64] b) => (int32[64] y) { y = Div(a, b) }'
    )
    assert gw.compile(model, "x86").report.check.checked


@pytest.mark.parametrize(("to", "dtype"), [(7, "int64"), (6, "int32"), (1, "float")])
def test_comparisons_can_be_counted(to, dtype):
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 23]> g (float[2,6,5,7] x) => ({dtype}[2] y) '
        f"<float zero = {{0.0}}, int64[3] axes = {{1, 2, 3}}> {{ b = Greater(x, zero)\n c = Cast<to = {to}>(b)\n "
        "y = ReduceSum<keepdims = 0>(c, axes) }"
    )
    x = np.random.default_rng(0).standard_normal((2, 6, 5, 7)).astype(np.float32)
    np.testing.assert_array_equal(gw.compile(model, "x86")(x), (x > 0).sum((1, 2, 3)))
