"""AMX tile registers: every way to use them against ONNX Runtime, what they are chosen for, and who may run them."""

import ctypes
import json
import platform
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.backends import host
from graphwright.backends.target import host_target, resolve_target
from graphwright.backends.tvm.kernels import choices
from graphwright.backends.tvm.kernels.tile_panels import Reduction, pack_panels
from graphwright.backends.tvm.kernels.tile_plan import flat_rows, image_rows, plan_tiling
from graphwright.backends.tvm.kernels.tile_registers import Registers, integer_format
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from .quantized_models import Graph, tensor
from .test_cpp import SOURCES, build, run
from .test_integer import assert_integer, assert_within_a_step, convolution, convolutions, product, products

AMX = resolve_target("sapphirerapids")
BYTES = integer_format("uint8", "int8")
SHAPES = ((2, 2), (1, 4), (1, 3), (3, 1), (1, 2), (2, 1), (1, 1))
SETTINGS = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
here = pytest.mark.skipif(not AMX.runs_here, reason=f"needs AMX: {AMX.why_not_here()}")


def forced(**schedule):
    """Lowering in which every kernel takes these where it offers them."""
    return lambda _workload: {"tiles": 1, **schedule}


@here
@SETTINGS
@given(
    convolutions(), st.sampled_from(SHAPES), st.sampled_from(["rows", "gather"]), st.sampled_from([1, 3, 40])
)
def test_convolutions_in_every_way(through_tvm, case, registers, way, size):
    case |= {"channels": case["channels"] * (1 if case["channels"] == case["groups"] else 3)}
    case["size"] = [case["size"][0] + (size == 40), *(size + 12 for _ in case["size"][1:])]
    model = convolution(case)
    schedules = forced(registers=registers, way=way, row_blocks=size, ahead=int(size == 3))
    results, expected, lowered = through_tvm(model, target="sapphirerapids", schedules=schedules)
    assert_integer(lowered)
    (name,) = results
    assert_within_a_step(results[name], expected[name])


@here
@SETTINGS
@given(products(), st.sampled_from(SHAPES), st.integers(1, 300), st.integers(1, 90))
def test_products_in_every_shape(through_tvm, case, registers, k, m):
    case |= {"k": k, "m": m}
    schedules = forced(registers=registers, row_blocks=2, ahead=m % 2)
    results, expected, lowered = through_tvm(product(case), target="sapphirerapids", schedules=schedules)
    small = case["kind"] in ("activations", "broadcast") or case["weights"] == ("int8", 0)
    if small and k >= 4:
        assert_integer(lowered, "tdpb")
    (name,) = results
    assert_within_a_step(results[name], expected[name])


def multiplied(data, packed, reduction, registers, columns):
    """What the instructions compute of one row of data and packed panels, group by group."""
    groups = data.shape[0]
    panels = packed.reshape(groups, -1, reduction.total, registers.across, registers.depth, 16)
    sums = np.zeros((groups, panels.shape[1], registers.across, 16), np.int64)
    for number in range(reduction.total):
        run, step = divmod(number, reduction.steps)
        first = int(reduction.place(step))
        read = data[:, run, first : first + registers.depth].astype(np.int64)
        words = packed.reshape(groups, -1, reduction.total, registers.across, registers.depth // 4, 16, 4)
        own = words[:, :, number].swapaxes(-1, -2).reshape(groups, -1, registers.across, registers.depth, 16)
        sums += np.einsum("gk,gpakn->gpan", read, own.astype(np.int64))
    return sums.reshape(groups, -1)[:, :columns]


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 300),
    st.integers(1, 70),
    st.booleans(),
    st.integers(1, 4),
)
def test_panels_hold_every_weight_once(groups, runs, run, columns, slack, across):
    reduction = Reduction.of(BYTES, run, ((runs, run),), slack)
    assume(reduction is not None)
    assert reduction.depth % 4 == 0 and reduction.depth <= 64
    assert slack or reduction.depth <= run
    registers = Registers(5, reduction.depth, 1, across, BYTES)
    generator = np.random.default_rng(run)
    weights = generator.integers(-128, 128, (groups, runs, run, columns)).astype(np.int8)
    data = generator.integers(0, 256, (groups, runs, run + 64)).astype(np.uint8)
    packed = pack_panels(weights, reduction, registers)
    found = multiplied(data, packed, reduction, registers, columns)
    expected = np.einsum("grk,grkn->gn", data[..., :run].astype(np.int64), weights.astype(np.int64))
    np.testing.assert_array_equal(found, expected)


def test_runs_too_short_for_a_step_are_left_to_vectors():
    assert Reduction.of(BYTES, 3) is None
    assert Reduction.of(BYTES, 3, slack=True).depth == 4
    assert (Reduction.of(BYTES, 7).steps, Reduction.of(BYTES, 7).depth) == (2, 4)


@given(st.integers(1, 400), st.integers(1, 3))
def test_rows_are_covered_without_a_register_of_overlap(rows, down):
    tiles, own = flat_rows(rows)(down)
    assert tiles >= down and own <= 16
    assert tiles * own >= rows and (tiles == down or (tiles - 1) * own < rows)
    count, width = image_rows(rows, 2)(down)
    assert count % 2 == 0 and count // 2 * width >= rows > (count // 2 - 1) * width


def test_registers_are_chosen_by_size():
    def chosen(rows, columns, k):
        return plan_tiling(flat_rows(rows), columns, 1, Reduction.of(BYTES, k), BYTES).registers

    assert (chosen(512, 512, 512).down, chosen(512, 512, 512).across) == (2, 2)
    assert (chosen(16, 512, 512).down, chosen(16, 512, 512).across) == (1, 4)
    assert chosen(197, 384, 384).rows >= 15
    assert chosen(40, 8, 64).across == 1


def notes(model, target="sapphirerapids"):
    from graphwright.backends.tvm.lower import lower
    from graphwright.ir.shapes import infer_shapes

    infer_shapes(model)
    return [kernel.note for kernel in lower(model, resolve_target(target)).kernels if "int" in kernel.note]


CONV = {"rank": 2, "groups": 1, "channels": 64, "outputs": 64, "size": [28, 28], "kernel": [3, 3]}
CONV |= {"pads": [1] * 4, "strides": [1, 1], "dilations": [1, 1], "dtype": "uint8", "zero_point": 0}
CONV |= {"out_dtype": "uint8", "weights": ("int8", 0), "per_channel": True, "bias": "int32"}
CONV |= {"tail": "Relu", "seed": 1}
PRODUCT = {"kind": "matmul", "m": 64, "k": 256, "n": 128, "batch": 1, "dtypes": ("uint8", "uint8")}
PRODUCT |= {"zero_points": (3, 0), "weights": ("int8", 0), "per_channel": True, "bias": True, "seed": 1}


@pytest.mark.parametrize(
    ("given_case", "word"),
    [
        ({}, "28x2x16 tdpbusd staged"),
        ({"size": [7, 7], "outputs": 256}, "tdpbusd gathered"),
        ({"kernel": [1, 1], "pads": [0] * 4}, "conv2d_1x1 32x2x16 tdpbusd"),
        ({"weights": ("uint8", 90)}, "vpdpwssd"),
        ({"groups": 64}, "vpdpbusd"),
    ],
)
def test_convolutions_get_the_instruction_that_pays(given_case, word):
    (note,) = notes(convolution(CONV | given_case))
    assert word in note


@pytest.mark.parametrize(
    ("given_case", "word"),
    [
        ({}, "32x2x16 tdpbusd"),
        ({"m": 1}, "vpdpbusd"),
        ({"kind": "activations"}, "batch_matmul 32x2x16 tdpbuud packed"),
        ({"kind": "activations", "m": 2, "k": 8, "n": 5}, "vpdpwssd"),
    ],
)
def test_products_get_the_instruction_that_pays(given_case, word):
    (note,) = notes(product(PRODUCT | given_case))
    assert word in note


def test_other_targets_know_nothing_of_tiles():
    assert "vpdpbusd" in notes(convolution(CONV), "icelake-server")[0]
    wide = replace(AMX, vector_bits=256)
    from graphwright.backends.tvm.kernels.tile_registers import has_tiles

    assert has_tiles(AMX) and not has_tiles(wide)


def test_a_kernel_that_refuses_is_named_and_the_host_does_without(monkeypatch):
    entries = {"flags": "pni avx512f amx_tile amx_int8 amx_bf16", "vendor_id": "GenuineIntel"}
    monkeypatch.setattr(host, "_cpuinfo", lambda: entries)
    monkeypatch.setattr(host, "host_arch", lambda: "x86_64")
    for granted in (True, False):
        host.host_features.cache_clear()
        monkeypatch.setattr(host, "tiles_granted", lambda granted=granted: granted)
        assert ({"amx-int8", "amx-bf16"} <= set(host.describe_host()["features"])) == granted
        reason = replace(AMX, features=("amx-tile", "avx512f")).why_not_here()
        assert reason == (None if granted else "this kernel does not grant amx-tile")
    assert "this CPU lacks" in AMX.why_not_here()
    host.host_features.cache_clear()


def test_permission_is_asked_for_on_linux_alone(monkeypatch):
    asked = []

    class Library:
        def __init__(self, _name):
            self.syscall = lambda *arguments: asked.append([each.value for each in arguments]) or -1

    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(host, "host_arch", lambda: "x86_64")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert not host.tiles_granted() and not asked
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert not host.tiles_granted()
    assert asked == [[158, 0x1023, 18]]


@here
def test_a_program_in_cpp_asks_before_it_runs(tmp_path):
    import graphwright as gw

    g, x = Graph(1), tensor("x", (64, 256))
    output = g("MatMul", g.qdq(x, 0.02, 3), g.weight((256, 128), 1)[0])
    output.type, output.shape = x.type, ir.Shape((64, 128))
    executable = gw.compile(g.model({"x": x}, output), "sapphirerapids", pipeline="eliminate-dead")
    assert "tdpbusd" in " ".join(kernel["note"] for kernel in executable.report.kernels)
    folder = executable.save(tmp_path / "out")
    assert {"amx-tile", "amx-int8"} <= set(
        json.loads((folder / "manifest.json").read_text())["target"]["features"]
    )
    program = tmp_path / "example"
    build(SOURCES / "example.cc", program)
    finished = run(program, folder, "64,256")
    assert finished.returncode == 0, finished.stderr
    assert "[ 64 128 ]" in finished.stdout


def test_tiles_do_not_change_the_name_of_a_cpu_and_have_parameters_of_their_own():
    assert host_target().cpu == host.choose_x86_cpu(
        host.host_features(), host._cpuinfo().get("vendor_id", "")
    )
    assert choices.Choices({"tile": (14, 2, 16)}).decide("registers", (2, 2), []) == (2, 2)
