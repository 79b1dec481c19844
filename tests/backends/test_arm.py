import struct
import subprocess

import graphwright as gw
import numpy as np
import pytest
from graphwright.backends.runner.build import build_runner
from graphwright.backends.runner.run import run_artifact
from graphwright.backends.runner.runtime import runtime_libraries
from graphwright.backends.target import resolve_target
from graphwright.backends.tvm.lower import lower
from graphwright.backends.weights import write_weights
from graphwright.ir.compare import compare
from graphwright.ir.errors import CompileError, TargetError, ToolError
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import run_reference

from .quantized_models import layer, residual
from .test_integer_tables import model
from .test_integer_transposed import transposed
from .test_integer_wide import CONVOLUTION, FORMS, convolution, in_float64
from .test_level_weights import product
from .test_recurrent import Layer
from .test_recurrent_codes import lowered_for, note_of, quantized, uncached


@pytest.fixture(scope="module", autouse=True)
def tools(arm_tools):
    runtime_libraries("aarch64")  # says how to get them where they are not here


@pytest.mark.parametrize("target", ["arm", "armv8.2-a-dotprod", "cortex-a76"])
@pytest.mark.parametrize("network", ["cnn", "mlp"])
def test_libraries_for_arm_compute_the_same_under_qemu(request, tmp_path, target, network):
    model = request.getfixturevalue(network)
    exe = gw.compile(model, target)
    assert not exe.report.check.checked
    assert "aarch64" in exe.report.check.reason
    folder = exe.save(tmp_path / "artifact")
    assert struct.unpack_from("<H", (folder / "model.so").read_bytes(), 18)[0] == 183  # EM_AARCH64
    feeds = random_inputs(model, seed=5)
    result = run_artifact(folder, exe.target, [feeds["x"]], runs=2, threads=1)
    found = compare(run_reference(model, feeds)["y"], result.outputs[0])
    assert found.max_rel <= 1e-4, found
    assert len(result.times_ms) == 2
    with pytest.raises(TargetError, match="needs aarch64"):
        gw.load_executable(folder)


@pytest.mark.parametrize(
    ("target", "instruction"), [("armv8.2-a-dotprod", "sdot"), ("armv8-a", "smlal"), ("cortex-a76", "sdot")]
)
def test_integers_are_multiplied_as_such_and_right(tmp_path, target, instruction):
    exe = gw.compile(residual("int8"), target, check="qemu")
    assert exe.report.check.checked
    assert exe.report.check.comparison.max_rel <= 1e-5
    folder = exe.save(tmp_path / "artifact")
    command = ["aarch64-linux-gnu-objdump", "-d", str(folder / "model.so")]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert instruction in code


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_tables_are_looked_up_in_registers(tmp_path, dtype):
    exe = gw.compile(model("silu", (3, 5, 37), dtype, dtype), "armv8-a", check="qemu")
    assert exe.report.check.comparison.max_abs == 0
    command = ["aarch64-linux-gnu-objdump", "-d", str(exe.save(tmp_path / "artifact") / "model.so")]
    code = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "tbl\t" in code and "tbx\t" in code


@pytest.mark.parametrize("target", ["armv8.2-a-dotprod", "armv8-a"])
@pytest.mark.parametrize("groups", [1, 64])
def test_quantized_outputs_equal_the_reference_under_qemu(target, groups):
    check = gw.compile(layer(groups), target, check="qemu").report.check
    assert check.checked
    # Within a step everywhere, and nearly everywhere equal.
    assert check.comparison.max_abs <= 1


@pytest.mark.parametrize("target", ["armv8.2-a-dotprod", "armv8-a"])
@pytest.mark.parametrize("shape", [(20, 6, 7), (12, 9), (8, 3, 4, 3)], ids=["images", "signals", "volumes"])
def test_quantized_transposed_convolutions_equal_the_reference_under_qemu(target, shape):
    axes = len(shape) - 1
    window = {"strides": [2] * axes, "pads": [1] * axes + [0] * axes}
    exe = gw.compile(transposed((2, *shape), 20, (3,) * axes, **window), target, check="qemu")
    assert any(kernel["kind"] == "integer convtranspose" for kernel in exe.report.kernels)
    assert exe.report.check.checked and exe.report.check.comparison.max_abs <= 1


@pytest.mark.parametrize("target", ["armv8.2-a-dotprod", "armv8-a"])
@pytest.mark.parametrize(
    "form", ["dense", "grouped", "depthwise, wide weights", "pointwise", "line", "volume"]
)
def test_activations_of_16_bits_equal_float64_under_qemu(tmp_path, target, form):
    model = convolution(CONVOLUTION | FORMS[form])
    exe = gw.compile(model, target, pipeline="eliminate-dead", check=False)
    filters = form == "dense" and target == "armv8-a"
    kinds = {kernel["kind"] for kernel in exe.report.kernels if "conv" in kernel["kind"]}
    assert kinds == ({"conv"} if filters else {"integer conv"})
    data = np.random.default_rng(3).normal(size=tuple(model.graph.inputs[0].shape)).astype(np.float32)
    result = run_artifact(exe.save(tmp_path / "artifact"), exe.target, [data], runs=1, threads=1)
    found, expected = (each.astype(np.int64) for each in (result.outputs[0], in_float64(model, {"x": data})))
    steps = np.abs(found - expected)
    # Minimal filtering rounds some 1e-6 of the largest number.
    assert steps.max() <= (3 if filters else 1)
    assert filters or (steps > 0).sum() <= max(1, steps.size // 1000)


def test_levels_are_looked_up_in_registers():
    weights = product(3, 128, 20, "nf4")
    assert any("levels" in (kernel.note or "") for kernel in lower(weights, resolve_target("arm")).kernels)
    check = gw.compile(weights, "arm", pipeline="eliminate-dead", check="qemu").report.check
    assert check.checked and check.where == "qemu"


def test_the_check_of_compile_can_be_emulated(mlp):
    check = gw.compile(mlp, "raspberry-pi-4", check="qemu").report.check
    assert check.checked
    assert check.where == "qemu"
    assert check.comparison.max_rel <= 1e-4


def test_recurrent_layers_run_their_steps_on_threads(tmp_path, build_model):
    model = build_model(
        """net (float[9,1,6] x, float[1,600,6] w, float[1,600,150] r, float[1,1200] b,
                float[2,63,150] v, float[2,63,21] s) => (float[9,2,1,21] y, float[2,1,21] last)
        {
          a, a_h, a_c = LSTM<hidden_size = 150>(x, w, r, b)
          axis = Constant<value_ints = [1]>()
          rows = Squeeze(a, axis)
          y, last = GRU<hidden_size = 21, direction = "bidirectional">(rows, v, s)
        }""",
        w=(1, 600, 6),
        r=(1, 600, 150),
        b=(1, 1200),
        v=(2, 63, 150),
        s=(2, 63, 21),
    )
    exe = gw.compile(model, "armv8-a")
    folder = exe.save(tmp_path / "artifact")
    feeds = random_inputs(model, seed=2)
    expected = run_reference(model, feeds)
    for threads in (1, 2):
        result = run_artifact(folder, exe.target, [feeds["x"]], runs=1, threads=threads)
        for name, found in zip(("y", "last"), result.outputs, strict=True):
            assert compare(expected[name], found).max_rel <= 1e-5


def test_sorting_runs_without_python(build_model):
    model = build_model(
        """net (float[2,9] x) => (float[2,3] values, int64[2,3] places)
        {
          k = Constant<value_ints = [3]>()
          values, places = TopK(x, k)
        }"""
    )
    check = gw.compile(model, "arm", check="qemu").report.check
    assert check.checked
    assert check.comparison.max_abs == 0


def test_the_runner_runs_here_too(cnn, tmp_path):
    exe = gw.compile(cnn, "x86")
    folder = exe.save(tmp_path / "artifact")
    feeds = random_inputs(cnn, seed=5)
    result = run_artifact(folder, exe.target, [feeds["x"]])
    np.testing.assert_allclose(result.outputs[0], exe(**feeds), rtol=1e-5, atol=1e-6)


def test_the_runner_ends_in_one_line_on_bad_files(mlp, tmp_path):
    exe = gw.compile(mlp, "x86")
    folder = exe.save(tmp_path / "artifact")
    x = np.zeros((4, 24), np.float32)
    with pytest.raises(CompileError, match="cannot read"):
        run_artifact(tmp_path / "nothing", exe.target, [x])
    data = (folder / "weights.bin").read_bytes()
    (folder / "weights.bin").write_bytes(data[:-200])
    with pytest.raises(CompileError, match=r"weights\.bin is truncated"):
        run_artifact(folder, exe.target, [x])
    (folder / "weights.bin").write_bytes(b"XXXX" + data[4:])
    with pytest.raises(CompileError, match="is no GWW1 or GWW2 file"):
        run_artifact(folder, exe.target, [x])
    (folder / "weights.bin").write_bytes(data)
    with pytest.raises(CompileError, match="the runner failed"):
        run_artifact(folder, exe.target, [x[:, :5]])


def test_the_runner_explains_its_arguments():
    runner = build_runner(resolve_target("host"))
    for arguments in ([], ["a", "b", "c", "--runs"], ["a", "b", "c", "--speed", "9"]):
        finished = subprocess.run([runner, *arguments], capture_output=True, text=True, check=False)
        assert finished.returncode == 2
        assert finished.stderr.startswith("runner: ")
        assert finished.stderr.count("\n") == 1


def test_a_gpu_cannot_be_emulated(tmp_path):
    with pytest.raises(TargetError, match="cannot be emulated"):
        run_artifact(tmp_path, resolve_target("cuda"), [])


def test_a_runtime_that_was_not_fetched_is_told_how_to_get(monkeypatch, tmp_path):
    monkeypatch.setenv("GRAPHWRIGHT_CACHE", str(tmp_path))
    with pytest.raises(TargetError, match=r"python -m graphwright\.backends\.runner"):
        build_runner(resolve_target("arm"))


def test_unknown_element_types_do_not_reach_the_runner(tmp_path):
    with pytest.raises(ToolError):
        write_weights(tmp_path / "x.bin", [np.zeros(2, complex)])


def test_batch_sizes_and_their_pieces_run_under_qemu(build_model):
    from graphwright.backends.cross import run_emulated

    model = build_model(
        "net (float[N,3,8,8] x, float[8,3,3,3] w) => (float[N,8,8,8] y) { c = Conv<pads=[1,1,1,1]>(x, w) y = Relu(c) }",
        w=(8, 3, 3, 3),
    )
    executable = gw.compile(model, "arm", batch_sizes=[1, 2], check="qemu")
    assert [row.check.where for row in executable.report.batches.rows] == ["qemu", "qemu"]
    feeds = random_inputs(model, dims={"N": 3})
    assert compare(run_reference(model, feeds), run_emulated(executable, feeds)).max_rel <= 1e-4


@pytest.mark.parametrize(
    ("target", "form", "note"),
    [
        ("armv8.2-a-dotprod", "int4", "int4 weights sdot"),
        ("armv8.2-a-dotprod", "int8 symmetric=false", "int8 weights sdot"),
        ("armv8-a", "int8", "int8 weights"),
    ],
)
def test_recurrent_steps_read_weights_of_few_bits_under_qemu(target, form, note):
    layer = Layer(
        "GRU", 6, 2, 5, 70, "bidirectional", operands=frozenset({"b", "h0"}), outputs=frozenset({"y"})
    )
    check = gw.compile(quantized(layer, form), uncached(target), check="qemu").report.check
    assert check.checked
    assert check.comparison.max_rel <= 1e-5
    assert note in note_of(lowered_for(quantized(layer, form), uncached(target)), "GRU")
