import json
import re
from collections import Counter

import graphwright as gw
import numpy as np
import pytest
from graphwright.backends import profile as profiling
from graphwright.backends.onnxruntime import OnnxRuntimeExecutable
from graphwright.backends.target import resolve_target
from graphwright.backends.tvm import dot_peaks
from graphwright.backends.tvm import peaks as peaks_module
from graphwright.backends.tvm.dot_peaks import dot_loop, instruction_of
from graphwright.backends.tvm.peaks import Peaks, measure_peaks, peak_kernels
from graphwright.ir.errors import ModelError, TargetError

AMX = resolve_target("sapphirerapids")
PEAKS = Peaks(100.0, ((1 << 20, 50.0), (1 << 30, 10.0)), 1)


@pytest.fixture(scope="module")
def model(build_model):
    """Two convolutions of one structure, so that one function is called twice, a Softmax and a product."""
    return build_model(
        """net (float[1,16,28,28] x, float[16,16,3,3] w1, float[16,16,3,3] w2, float[16,8] m) => (float[1,8] y)
        {
          a = Conv<pads = [1, 1, 1, 1]>(x, w1)
          b = Relu(a)
          c = Conv<pads = [1, 1, 1, 1]>(b, w2)
          d = Relu(c)
          e = GlobalAveragePool(d)
          f = Flatten(e)
          g = MatMul(f, m)
          y = Softmax<axis = 1>(g)
        }""",
        w1=(16, 16, 3, 3),
        w2=(16, 16, 3, 3),
        m=(16, 8),
    )


@pytest.fixture(scope="module")
def compiled(model):
    for node in model.graph:
        node.name = f"{node.op_type}_{node.outputs[0].name}"
    return gw.compile(model, "x86", pipeline="", check=False)


@pytest.fixture(scope="module")
def found(compiled):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiling, "_peaks", lambda threads, target, table: PEAKS)
        return compiled.profile(repeats=5)


def test_every_call_has_its_nodes_and_time(compiled, found):
    assert Counter(call.name for call in found.calls) == {
        kernel["name"]: kernel["calls"] for kernel in compiled.report.kernels
    }
    convolutions = [call for call in found.calls if call.kind == "conv"]
    assert [call.nodes for call in convolutions] == [("Conv_a", "Relu_b"), ("Conv_c", "Relu_d")]
    assert all(call.flops == 2 * 28 * 28 * 16 * 16 * 9 and call.note for call in convolutions)
    assert all(call.shapes[-1] == "float32[1,28,28,16]" for call in convolutions)
    assert all(call.time.samples == 5 and call.time.median_ms > 0 for call in found.calls)
    named = [node for call in found.calls for node in call.nodes]
    assert len(named) == len(set(named))
    (softmax,) = (call for call in found.calls if "Softmax_y" in call.nodes)
    assert softmax.shapes[-1] == "float32[1,8]" and softmax.gflops is None


def test_shares_follow_from_the_times_and_the_peaks(found):
    assert sum(call.share for call in found.calls) == pytest.approx(1.0)
    for call in found.calls:
        compute = call.flops / 100.0 / 1e6
        memory = call.bytes / 50.0 / 1e6
        assert call.bound == ("compute" if compute > memory else "memory")
        assert call.share_of_peak == pytest.approx(max(compute, memory) / call.time.median_ms)
    conv = next(call for call in found.calls if call.kind == "conv")
    assert conv.gflops == pytest.approx(conv.flops / (conv.time.median_ms * 1e6))
    sizes = 4 * (2 * 28 * 28 * 16)
    assert sizes < conv.bytes < 4 * sizes
    assert conv.bound == "compute"


def test_order_totals_and_the_worst(found):
    times = [call.time.median_ms for call in found.by_time]
    assert times == sorted(times, reverse=True)
    totals = {total.kind: total for total in found.kinds()}
    assert totals["conv"].calls == 2
    assert sum(total.median_ms for total in totals.values()) == pytest.approx(found.kernels_ms)
    shares = [call.share_of_peak for call in found.worst(3)]
    assert len(shares) == 3 and shares == sorted(call.share_of_peak for call in found.calls)[:3]
    data = json.loads(json.dumps(found.to_json()))
    assert data["worst"] == [call.index for call in found.worst()]
    winograd = any("winograd" in call.note for call in found.calls)
    assert winograd == any("direct method" in note for note in found.notes)


def test_the_watched_library_computes_the_same(compiled):
    from graphwright.backends.tvm.runtime import TvmProgram

    x = np.random.default_rng(0).standard_normal((1, 16, 28, 28)).astype(np.float32)
    program = TvmProgram(compiled.library, compiled.weights)
    names = []
    program.watch(lambda name, before, arguments: names.append((name, before)))
    np.testing.assert_array_equal(program.run([x])[0], compiled(x))
    assert len(names) % 2 == 0 and names.count((names[0][0], True)) == names.count((names[0][0], False))


def test_an_artifact_is_profiled_by_its_report(compiled, tmp_path):
    compiled.save(tmp_path / "net")
    profile = gw.load_executable(tmp_path / "net").profile(repeats=2, peaks=False, threads=2)
    assert [call.nodes for call in profile.calls if call.kind == "conv"] == [
        ("Conv_a", "Relu_b"),
        ("Conv_c", "Relu_d"),
    ]
    assert profile.peaks is None and all(call.share_of_peak is None for call in profile.calls)
    assert profile.worst() == []


@pytest.mark.parametrize(("damage", "word"), [(None, "missing"), ("{", "damaged"), ('{"a": 1}', "damaged")])
def test_without_the_report_times_are_left(compiled, tmp_path, damage, word):
    folder = compiled.save(tmp_path / "net")
    (folder / "report.json").unlink()
    if damage:
        (folder / "report.json").write_text(damage)
    profile = gw.load_executable(folder).profile(repeats=1, peaks=False)
    assert any(word in note for note in profile.notes)
    assert profile.calls and all(call.nodes == () and call.kind for call in profile.calls)


def test_a_busy_machine_is_told(found):
    calm, busy = (profiling.Timing.of([1.0] * 8 + [last] * 2, 1) for last in (1.2, 2.0))
    assert not any("uses this machine" in note for note in profiling._notes(found.calls, calm, None))
    assert any("uses this machine" in note for note in profiling._notes(found.calls, busy, None))


def test_bad_requests(compiled, model):
    with pytest.raises(ModelError, match="at least one"):
        compiled.profile(repeats=0)
    with pytest.raises(TargetError, match="tvm backend"):
        OnnxRuntimeExecutable(model).profile()


def test_the_machine_has_peaks():
    peaks = measure_peaks(1)
    sizes = [size for size, _ in peaks.bandwidths]
    rates = [rate for _, rate in peaks.bandwidths]
    assert 1 < peaks.gflops < 1000
    assert sizes == sorted(sizes) and rates == sorted(rates, reverse=True) and rates[-1] > 0.1
    assert peaks.bandwidth(1) == rates[0] and peaks.bandwidth(1 << 50) == rates[-1]


@pytest.mark.parametrize(
    ("name", "used", "unused"),
    [("x86-64-v2", "%xmm", "%ymm"), ("x86-64-v3", "%ymm", "%zmm"), ("x86-64-v4", "%zmm", "%tmm")],
)
def test_the_peak_is_that_of_the_instructions_used(name, used, unused):
    code = peak_kernels(1, resolve_target(name)).mod.inspect_source("asm")
    assert used in code and unused not in code
    assert ("vfmadd" in code) == (name != "x86-64-v2")


@pytest.mark.parametrize(
    ("instruction", "name", "written", "operations"),
    [
        ("tdpbf16ps", "sapphirerapids", "tdpbf16ps", 2 * 16 * 16 * 32 * 4),
        ("tdpbusd", "sapphirerapids", "tdpbusd", 2 * 16 * 16 * 64 * 4),
        ("vpdpbusd", "cascadelake", "vpdpbusd", 2 * 4 * 16 * 14),
        ("vpdpwssd", "cascadelake", "vpdpwssd", 2 * 2 * 16 * 14),
        ("vpmaddwd", "x86-64-v3", "vpmaddwd", 2 * 2 * 8 * 14),
        ("sdot", "cortex-a76", "sdot", 2 * 4 * 4 * 14),
    ],
)
def test_dot_instructions_have_peaks_of_their_own(instruction, name, written, operations):
    target = resolve_target(name)
    loop = dot_loop(instruction, 2, target)
    code = peaks_module._built({"loop": loop.function}, target).mod.inspect_source("asm")
    # The loop is the stretch between a label and the jump back to it with the most of these instructions.
    count = 4 if instruction.startswith("t") else 14
    inside = max(
        (part for part in re.split(r"(?m)^[.\w$]+:", code)), key=lambda part: part.count(f"\t{written}")
    )
    found = inside.count(f"\t{written}")
    assert found and found % count == 0  # LLVM may unroll a loop
    steps = dot_peaks._TILE_STEPS if count == 4 else dot_peaks._STEPS
    assert loop.operations == operations * steps * 2
    assert dot_loop(instruction, 1, resolve_target("x86-64-v2")) is None or instruction == "vpmaddwd"


def test_a_kernel_is_measured_by_the_instruction_in_its_note():
    assert instruction_of("matmul 32x2x16 tdpbf16ps x3") == ("tdpbf16ps", 3)
    assert instruction_of("attention on tiles bf16x6, 64 x 32 scores") == ("tdpbf16ps", 6)
    assert instruction_of("int8 conv 32x2x16 tdpbssd gathered") == ("tdpbusd", 1)
    assert instruction_of("int8 depthwise 4x3x16 vpdpbusd") == ("vpdpbusd", 1)
    assert instruction_of("matmul 8x3x16") == instruction_of("") == ("", 1)
    peaks = Peaks(100.0, ((1 << 30, 50.0),), 1, (("tdpbf16ps", 1500.0),))
    assert peaks.operations("conv2d 4x3x16") == peaks.operations("int8 vpdpbusd") == 100.0
    assert peaks.operations("matmul 32x2x16 tdpbf16ps x3") == 500.0
    assert profiling._roof(10**9, 8, "matmul tdpbf16ps x3", peaks) == ("compute", pytest.approx(2.0))
    assert profiling._roof(10**9, 8, "matmul", peaks) == ("compute", pytest.approx(10.0))


@pytest.mark.skipif(not AMX.runs_here, reason=f"needs AMX: {AMX.why_not_here()}")
def test_tiles_stay_below_their_peak(build_model):
    model = build_model(
        "net (float[512,512] x, float[512,512] w) => (float[512,512] y) { y = MatMul(x, w) }", w=(512, 512)
    )
    profile = gw.compile(model, AMX, check=False).profile(repeats=20)
    (call,) = (call for call in profile.calls if call.kind == "matmul")
    assert "tdpbf16ps" in call.note and 0 < call.share_of_peak < 1
    assert any("products of bfloat16" in note for note in profile.notes)
    assert dict(profile.peaks.dots).keys() == {"tdpbf16ps"}
    assert profile.to_json()["peaks"]["instructions"]["tdpbf16ps"]["gops"] > profile.peaks.gflops


def test_the_peak_is_that_of_vector_code():
    """What counts as peak is no scalar code; half, since others may use the machine at either moment."""
    import time

    from threadpoolctl import threadpool_limits

    a = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    with threadpool_limits(1):
        best = float("inf")
        for _ in range(20):
            start = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - start)
    assert measure_peaks(1).gflops > 0.5 * 2 * 512**3 / best / 1e9
