import os
import shutil

import graphwright as gw
import numpy as np
import pytest
from graphwright.backends import cuda
from graphwright.backends.cross import find_nvcc
from graphwright.backends.device_code import device_code
from graphwright.ir.errors import CompileError, TargetError
from graphwright.ir.inputs import random_inputs


def _mapped(part: str) -> bool:
    with open("/proc/self/maps") as maps:
        return part in maps.read()


def test_device_code_holds_the_kernels_and_cpu_compiles_do_not_notice(cnn, tmp_path):
    before = dict(os.environ)
    exe = gw.compile(cnn, "cuda")
    here = exe.target.why_not_here()
    assert exe.report.check.checked == (here is None)
    code = device_code(exe.library)
    if find_nvcc():
        assert (code.form, code.architectures) == ("machine code", ("sm_90",))
    else:
        assert code.form == "source"
    assert sum("conv" in kernel["name"] for kernel in exe.report.kernels) == 3
    for kernel in exe.report.kernels:
        assert f"{kernel['name']}_kernel" in code.kernels, kernel
    folder = exe.save(tmp_path / "artifact")
    assert device_code(folder / "model.so") == code
    if here is not None:
        assert not _mapped("libtvm_runtime_cuda")
        assert not _mapped("libcuda.so.1")
        with pytest.raises(TargetError, match="cannot run here"):
            gw.load_executable(folder)
    changed = {key for key in before.keys() | os.environ.keys() if before.get(key) != os.environ.get(key)}
    assert changed <= {"TVM_NUM_THREADS", "TVM_BIND_THREADS"}
    cpu = gw.compile(cnn, "x86")
    assert cpu.report.check.checked
    assert device_code(cpu.library).form == "none"


def test_source_is_embedded_where_there_is_no_nvcc(build_model, monkeypatch):
    monkeypatch.setattr(cuda, "find_nvcc", lambda: None)
    model = build_model(
        """net (int64[1,6] ids, float[20,32] t, float[32] s, float[32] b, float[32,8] w) => (float[1,6,8] y)
        {
          e = Gather(t, ids)
          n = LayerNormalization<axis = -1>(e, s, b)
          m = MatMul(n, w)
          y = Gelu(m)
        }""",
        t=(20, 32),
        s=(32,),
        b=(32,),
        w=(32, 8),
    )
    exe = gw.compile(model, "a100")
    assert any("CUDA source instead of machine code" in note for note in exe.report.notes)
    code = device_code(exe.library)
    assert code.form == "source"
    assert {f"{kernel['name']}_kernel" for kernel in exe.report.kernels} <= set(code.kernels)


def test_an_architecture_that_nvcc_does_not_know_ends_in_one_line(mlp):
    if not find_nvcc():
        pytest.skip("needs nvcc")
    import dataclasses

    from graphwright.backends.target import resolve_target

    with pytest.raises(CompileError) as caught:
        gw.compile(mlp, dataclasses.replace(resolve_target("cuda"), cpu="sm_50"))
    assert "\n" not in str(caught.value)


def test_a_device_is_used_where_there_is_one(mlp):
    from graphwright.backends.target import resolve_target

    if not resolve_target("cuda").runs_here:
        assert shutil.which("nvidia-smi") is None or resolve_target("cuda").why_not_here()
        return
    exe = gw.compile(mlp, "cuda")
    assert exe.report.check.checked
    assert np.isfinite(exe(**random_inputs(mlp))).all()


def test_a_library_holds_a_program_for_every_batch_size(build_model):
    model = build_model(
        "net (float[N,8] x, float[8,4] w) => (float[N,4] y) { m = MatMul(x, w) y = Relu(m) }", w=(8, 4)
    )
    exe = gw.compile(model, "cuda", batch_sizes=[1, 2])
    assert {kernel.get("entry") for kernel in exe.report.kernels} == {"main_1", "main_2"}
    assert [row.weight_bytes for row in exe.report.batches.rows] == [exe.report.weight_bytes] * 2
