"""Integer kernels against ONNX Runtime with its optimizations off, on the same QDQ graphs."""

import re
import subprocess
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.backends.target import Target, host_target, resolve_target
from graphwright.backends.tvm.kernels.arithmetic import integer_arithmetic
from graphwright.backends.tvm.kernels.tile import choose_tile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .quantized_models import Graph, layer, output_scale, residual, tensor

SETTINGS = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

TARGETS = [name for name in ("host", "x86-64-v2", "x86-64-v3", "x86-64-v4") if resolve_target(name).runs_here]
"""Everything that this machine can run, so that every kind of arithmetic it has is tried."""


def assert_within_a_step(result, expected):
    assert result.dtype == expected.dtype
    steps = np.abs(result.astype(np.int64) - expected.astype(np.int64))
    assert steps.max(initial=0) <= 1
    # One in a thousand, but a single one in small tensors.
    assert (steps > 0).sum() <= max(1, steps.size // 1000), (steps > 0).sum()


def assert_integer(lowered, *words):
    """Every anchor is an integer kernel, and weights are stored as bytes."""
    kinds = [kernel.kind for kernel in lowered.kernels]
    assert not {"conv", "gemm", "matmul"} & set(kinds), kinds
    notes = " ".join(kernel.note for kernel in lowered.kernels)
    assert "int8" in notes or "int16" in notes, notes
    for word in words:
        assert word in notes, notes


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 1, 2, 5]))
    depthwise = draw(st.booleans())
    channels = groups * draw(st.integers(1, 9))
    if depthwise:
        groups = channels = draw(st.sampled_from([3, 16, 40]))
    rank = draw(st.sampled_from([1, 2, 2]))
    return {
        "rank": rank,
        "groups": groups,
        "channels": channels,
        "outputs": groups if depthwise else groups * draw(st.integers(1, 20)),
        "size": [draw(st.integers(6, 13)) for _ in range(rank)],
        "kernel": [draw(st.integers(1, 3)) for _ in range(rank)],
        "pads": [draw(st.integers(0, 2)) for _ in range(2 * rank)],
        "strides": [draw(st.integers(1, 2)) for _ in range(rank)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(rank)],
        "dtype": draw(st.sampled_from(["uint8", "int8"])),
        "zero_point": draw(st.sampled_from([0, 0, 3, 100])),
        "out_dtype": draw(st.sampled_from(["uint8", "int8"])),
        "weights": draw(
            st.sampled_from(
                [
                    ("int8", 0),
                    ("int8", 0),
                    ("int8", 7),
                    ("uint8", 128),
                    ("uint8", 90),
                    ("int4", 0),
                    ("uint4", 7),
                ]
            )
        ),
        "per_channel": draw(st.booleans()),
        "bias": draw(st.sampled_from(["int32", "float", None])),
        "tail": draw(st.sampled_from([None, "Relu", "Clip"])),
        "seed": draw(st.integers(0, 1000)),
        "target": draw(st.sampled_from(TARGETS)),
    }


def convolution(case) -> ir.Model:
    g = Graph(case["seed"])
    x = tensor("x", (2, case["channels"], *case["size"]))
    shape = (case["outputs"], case["channels"] // case["groups"], *case["kernel"])
    weight, scale = g.weight(shape, 0 if case["per_channel"] else None, *case["weights"])
    bias = None
    if case["bias"] == "int32":
        bias = g.bias(scale * np.float32(0.02), case["outputs"])
    elif case["bias"] == "float":
        bias = g.constant(g.random.standard_normal(case["outputs"]).astype(np.float32))
    data = g.qdq(x, 0.02, case["zero_point"], case["dtype"])
    y = g(
        "Conv",
        data,
        weight,
        bias,
        pads=case["pads"],
        strides=case["strides"],
        dilations=case["dilations"],
        group=case["groups"],
    )
    y = _tail(g, y, case["tail"])
    out = g.q(y, output_scale(int(np.prod(shape[1:]))), 0 if case["tail"] else 11, case["out_dtype"])
    return g.model({"x": x}, out)


def _tail(g, y, tail):
    if tail == "Relu":
        return g("Relu", y)
    if tail == "Clip":
        return g("Clip", y, g.constant(np.float32(0)), g.constant(np.float32(3)))
    return y


@SETTINGS
@given(convolutions())
def test_convolutions_are_integer_and_right(through_tvm, case):
    model = convolution(case)
    results, expected, lowered = through_tvm(model, target=case["target"])
    assert_integer(lowered)
    (name,) = results
    assert_within_a_step(results[name], expected[name])


@st.composite
def products(draw):
    return {
        "kind": draw(
            st.sampled_from(["gemm", "gemm_t", "gemm_turned", "matmul", "activations", "broadcast"])
        ),
        "m": draw(st.integers(1, 20)),
        "k": draw(st.integers(1, 70)),
        "n": draw(st.integers(1, 40)),
        "batch": draw(st.integers(1, 3)),
        "dtypes": draw(st.sampled_from([("uint8", "uint8"), ("int8", "int8"), ("uint8", "int8")])),
        "zero_points": (draw(st.sampled_from([0, 5, 100])), draw(st.sampled_from([0, 9]))),
        "weights": draw(st.sampled_from([("int8", 0), ("int8", -3), ("uint8", 131), ("int4", -2)])),
        "per_channel": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
        "target": draw(st.sampled_from(TARGETS)),
    }


def product(case) -> ir.Model:
    g = Graph(case["seed"])
    m, k, n, kind = case["m"], case["k"], case["n"], case["kind"]
    gemm = kind.startswith("gemm")
    turned = kind == "gemm_turned"
    x = tensor("x", ((k, m) if turned else (m, k)) if gemm else (case["batch"], 2, m, k))
    left = g.qdq(x, 0.02, case["zero_points"][0], case["dtypes"][0])
    inputs = {"x": x}
    if kind in ("activations", "broadcast"):
        z = tensor("z", (case["batch"], 2, k, n) if kind == "activations" else (1, 2, k, n))
        inputs["z"] = z
        y = g("MatMul", left, g.qdq(z, 0.02, case["zero_points"][1], case["dtypes"][1]))
        return g.model(inputs, g.q(y, output_scale(k, weight=0.02), 9))
    flip = kind == "gemm_t"
    axis = (0 if flip else 1) if case["per_channel"] else None
    weight, scale = g.weight((n, k) if flip else (k, n), axis, *case["weights"])
    if not gemm:
        y = g("MatMul", left, weight)
        if case["bias"]:
            y = g("Add", y, g.constant(g.random.standard_normal(n).astype(np.float32)))
    else:
        bias = g.bias(scale * np.float32(0.02), n) if case["bias"] else None
        y = g("Gemm", left, weight, bias, transA=int(turned), transB=int(flip))
    return g.model(inputs, g.q(y, output_scale(k), 100))


@SETTINGS
@given(products())
def test_products_are_integer_and_right(through_tvm, case):
    results, expected, lowered = through_tvm(product(case), target=case["target"])
    assert_integer(lowered)
    (name,) = results
    assert_within_a_step(results[name], expected[name])


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_residual_network_keeps_to_integers(through_tvm, dtype):
    results, expected, lowered = through_tvm(residual(dtype))
    assert_integer(lowered)
    (name,) = results
    difference = np.abs(results[name] - expected[name]).max()
    assert difference <= 0.01 * np.abs(expected[name]).max()
    kinds = sorted(kernel.kind for kernel in lowered.kernels)
    # The addition is in the second convolution's kernel; pooling and moves read and write bytes.
    assert kinds.count("integer conv") == 2
    assert "elementwise" not in kinds or kinds.count("elementwise") == 1
    floats = sum(array.nbytes for array in lowered.weights if array.dtype == np.float32)
    stored = sum(array.nbytes for array in lowered.weights)
    assert floats < 0.05 * stored


def test_weights_of_seven_bits_and_all_eight_do_not_saturate(through_tvm):
    """Extreme weights and data: 16-bit sums would saturate."""
    g = Graph()
    x = tensor("x", (1, 64, 4, 4))
    weight = g.dq(g.constant(np.full((16, 64, 1, 1), -128, np.int8)), 0.01, 0, "int8")
    y = g("Conv", g.qdq(x, 1 / 255, 0), weight, None)
    model = g.model({"x": x}, y)
    results, expected, lowered = through_tvm(model, {"x": np.ones((1, 64, 4, 4), np.float32)})
    assert_integer(lowered)
    np.testing.assert_allclose(*results.values(), *expected.values(), rtol=1e-6)


def test_too_long_a_sum_stays_in_float():
    from graphwright.backends.tvm.integer import integerize
    from graphwright.ir.shapes import infer_shapes

    g = Graph()
    x = tensor("x", (1, 70_000))
    weight, _ = g.weight((2, 70_000))
    model = g.model({"x": x}, g("Gemm", g.qdq(x, 0.1, 0), weight, None, transB=1))
    infer_shapes(model)
    integerize(model, host_target())
    assert "Gemm" in [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    ("target", "instruction"),
    [
        ("x86-64-v2", "pmaddwd"),
        ("x86-64-v3", "vpmaddwd"),
        ("skylake-avx512", "vpmaddwd .*zmm"),
        ("cascadelake", "vpdpbusd .*zmm"),
        ("alderlake", "vpdpbusd .*ymm"),
    ],
)
@pytest.mark.parametrize("groups", [1, 64])
def test_x86_code_holds_the_instruction(tmp_path, target, instruction, groups):
    code = disassembled(layer(groups), resolve_target(target), tmp_path)
    assert re.search(instruction, code)


def disassembled(model: ir.Model, target: Target, folder: Path) -> str:
    from graphwright.backends.tvm.build import build
    from graphwright.backends.tvm.lower import lower
    from graphwright.ir.shapes import infer_shapes

    infer_shapes(model)
    build(lower(model, target), target, folder / "model.so")
    command = ["objdump", "-d", "--no-show-raw-insn", str(folder / "model.so")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("operator", ["AveragePool", "MaxPool"])
@pytest.mark.parametrize("padding", [{"pads": [1, 1, 1, 1]}, {"pads": [0, 1, 2, 0], "strides": [2, 2]}])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_pooling_reads_and_writes_bytes(through_tvm, operator, padding, dtype):
    g = Graph(3)
    x = tensor("x", (2, 20, 9, 11))
    count = {"count_include_pad": 1} if operator == "AveragePool" and "strides" in padding else {}
    y = g(operator, g.qdq(x, 0.02, 30, dtype), kernel_shape=[3, 3], **padding, **count)
    out = g.q(y, 0.02 if operator == "MaxPool" else 0.0137, 30, dtype)
    results, expected, lowered = through_tvm(g.model({"x": x}, out))
    (name,) = results
    assert_within_a_step(results[name], expected[name])
    word = "uint8" if operator == "AveragePool" else dtype
    assert any(f"{word} " in kernel.note and "pool" in kernel.note for kernel in lowered.kernels)


def several(g: Graph, op_type: str, inputs: list[ir.Value], count: int) -> tuple[ir.Value, ...]:
    node = ir.node(op_type, inputs, num_outputs=count)
    for i, output in enumerate(node.outputs):
        output.name = f"{op_type}{len(g.nodes)}_{i}"
    g.nodes.append(node)
    return tuple(node.outputs)


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 2, 1]])
@pytest.mark.parametrize("target", ["host", "x86-64-v3"])
def test_dynamic_quantization_runs_on_integers(through_tvm, pads, target):
    g = Graph(1)
    x = tensor("x", (1, 6, 9, 8))
    numbers, scale, zero = several(g, "DynamicQuantizeLinear", [x], 3)
    w = g.constant(g.random.integers(-127, 128, (8, 6, 3, 3)).astype(np.int8))
    sums = g("ConvInteger", numbers, w, zero, pads=pads)
    y = g("Mul", g("Cast", sums, to=1), g("Mul", scale, g.constant(np.full((8, 1, 1), 0.01, np.float32))))
    y = g("Reshape", y, g.constant(np.array([8, -1])))
    numbers, scale, zero = several(g, "DynamicQuantizeLinear", [y], 3)
    size = (7 + pads[0] + pads[2]) * (6 + pads[1] + pads[3])
    w = g.constant(g.random.integers(-127, 128, (size, 5)).astype(np.int8))
    y = g("Mul", g("Cast", g("MatMulInteger", numbers, w, zero), to=1), scale)
    results, expected, lowered = through_tvm(g.model({"x": x}, y), target=target)
    assert_integer(lowered)
    np.testing.assert_allclose(*results.values(), *expected.values(), rtol=1e-5, atol=1e-2)


def test_qlinear_operators_run_on_integers(through_tvm):
    g = Graph(1)
    x = tensor("x", (1, 6, 9, 9))
    c = g.constant
    w = g.random.integers(-127, 128, (8, 6, 3, 3)).astype(np.int8)
    bias = np.arange(8, dtype=np.int32) * 100
    scales = [c(np.full(8, 0.01, np.float32)), c(np.zeros(8, np.int8))]
    ends = [c(np.float32(0.1)), c(np.uint8(100))]
    data = [g.q(x, 0.02, 7), c(np.float32(0.02)), c(np.uint8(7))]
    y = g("QLinearConv", *data, c(w), *scales, *ends, c(bias), pads=[1, 1, 1, 1])
    y = g("Reshape", y, c(np.array([8, 81])))
    w = g.random.integers(-127, 128, (81, 5)).astype(np.int8)
    y = g(
        "QLinearMatMul",
        y,
        *ends,
        c(w),
        c(np.float32(0.01)),
        c(np.int8(0)),
        c(np.float32(0.5)),
        c(np.uint8(90)),
    )
    results, expected, lowered = through_tvm(g.model({"x": x}, y))
    assert_integer(lowered)
    (name,) = results
    assert_within_a_step(results[name], expected[name])


@pytest.mark.parametrize(
    ("pipeline", "bits", "limit"),
    [
        ("quantize-weights", 8, 0.27),
        ("quantize-weights{form=int4}", 4, 0.15),
        ("quantize-weights{form=int2}", 2, 0.09),
        ("quantize-weights{form=ternary}", 2, 0.09),
        ("quantize-weights{form=binary block=128}", 1, 0.05),
        ("quantize-weights{form=int4 symmetric=false block=32}", 4, 0.20),
        ("quantize-weights{form=int8 symmetric=false block=64}", 8, 0.29),
    ],
)
@pytest.mark.parametrize("rows", [1, 9])
def test_small_weights_stay_small(through_tvm, pipeline, bits, limit, rows):
    import graphwright as gw

    g = Graph(2)
    x = tensor("x", (rows, 512))
    first, second = (
        (g.random.standard_normal(shape) * 0.1).astype(np.float32) for shape in ((512, 128), (64, 128))
    )
    y = g("Relu", g("Add", g("MatMul", x, g.constant(first)), g.constant(np.ones(128, np.float32))))
    y = g("Gemm", y, g.constant(second), g.constant(np.ones(64, np.float32)), transB=1)
    model = gw.optimize(g.model({"x": x}, y), pipeline).model
    results, expected, lowered = through_tvm(model)
    assert [kernel.note[:4] for kernel in lowered.kernels] == [f"int{bits}"] * 2
    np.testing.assert_allclose(*results.values(), *expected.values(), rtol=1e-4, atol=1e-5)
    assert sum(array.nbytes for array in lowered.weights) <= limit * (first.nbytes + second.nbytes)


def test_a_pair_in_front_of_a_relu_costs_nothing(through_tvm):
    g = Graph(3)
    x = tensor("x", (1, 16, 6, 6))
    w = g.random.integers(-127, 128, (16, 16, 1, 1)).astype(np.int8)
    scale, zero = g.constant(np.float32(0.05)), g.constant(np.int8(0))

    def pair(value):
        return g("DequantizeLinear", g("QuantizeLinear", value, scale, zero), scale, zero)

    weight = g("DequantizeLinear", g.constant(w), g.constant(np.float32(0.01)), g.constant(np.int8(0)))
    y = g("QuantizeLinear", g("Relu", pair(g("Conv", pair(x), weight))), scale, zero)
    results, expected, lowered = through_tvm(g.model({"x": x}, y))
    assert_integer(lowered)
    names = [kernel.name for kernel in lowered.kernels]
    (convolution,) = [name for name in names if "conv" in name]
    assert convolution.replace("dequantize", "").count("quantize") == 1, names
    assert_within_a_step(*results.values(), *expected.values())


@st.composite
def depthwise_convolutions(draw):
    channels = draw(st.sampled_from([16, 24, 40, 67]))
    kernel = [draw(st.sampled_from([2, 3, 4, 5, 7, 9])), draw(st.sampled_from([1, 3, 5]))]
    return {
        "rank": 2,
        "groups": channels,
        "channels": channels,
        "outputs": channels,
        "size": [draw(st.integers(10, 20)), draw(st.integers(10, 30))],
        "kernel": kernel,
        "pads": [draw(st.integers(0, kernel[axis] // 2 + 1)) for axis in (0, 1, 0, 1)],
        "strides": [draw(st.integers(1, 2)) for _ in range(2)],
        "dilations": [draw(st.sampled_from([1, 1, 2])) if size < 5 else 1 for size in kernel],
        "dtype": draw(st.sampled_from(["uint8", "int8"])),
        "zero_point": draw(st.sampled_from([0, 0, 100, 127])),
        "out_dtype": "uint8",
        "weights": ("int8", draw(st.sampled_from([0, 0, 9]))),
        "per_channel": True,
        "bias": draw(st.sampled_from(["int32", None])),
        "tail": None,
        "seed": draw(st.integers(0, 1000)),
        "target": draw(st.sampled_from(TARGETS)),
    }


@SETTINGS
@given(depthwise_convolutions())
def test_depthwise_convolutions_of_every_window_are_right(through_tvm, case):
    results, expected, lowered = through_tvm(convolution(case), target=case["target"])
    assert_integer(lowered, "depthwise")
    (name,) = results
    assert_within_a_step(results[name], expected[name])


@pytest.mark.parametrize(("target", "rows"), [("x86-64-v3", 2), ("cascadelake", 4), ("sapphirerapids", 4)])
@pytest.mark.parametrize("zero_point", [0, 50])
def test_depthwise_kernels_take_several_rows_at_a_time_and_copy_nothing(target, rows, zero_point):
    from graphwright.backends.tvm.lower import lower
    from graphwright.ir.shapes import infer_shapes

    g = Graph()
    x = tensor("x", (1, 64, 28, 28))
    weight, _ = g.weight((64, 1, 3, 3))
    y = g("Conv", g.qdq(x, 0.02, zero_point), weight, None, pads=[1, 1, 1, 1], group=64)
    model = g.model({"x": x}, g.q(y, 0.1, 0))
    infer_shapes(model)
    lowered = lower(model, resolve_target(target))
    (note,) = [kernel.note for kernel in lowered.kernels if kernel.note]
    assert f"{rows} rows" in note and "staged" not in note
    # One body serves the tiles at both borders and those between them: every tap of a tile stands there once.
    pixels, vectors = (int(size) for size in re.search(r"(\d+)x(\d+)x\d+", note).groups()[:2])
    (body,) = [str(func) for name, func in lowered.ir_module.functions.items() if "conv" in name.name_hint]
    steps, padded = -(-3 // rows), zero_point > 0
    dots = len(re.findall(r"vpdpbusd|pmadd", body))
    assert 0 < dots <= steps * 3 * pixels * vectors * (1.4 if padded else 1), (note, dots)


@pytest.mark.parametrize("added", [False, True])
def test_a_normalization_stores_bytes_row_by_row(through_tvm, added):
    g, x, z = Graph(1), tensor("x", (1, 9, 40)), tensor("z", (1, 9, 40))
    y = g("Add", x, z) if added else x
    scale, bias = g.random.standard_normal((2, 40)).astype(np.float32)
    y = g("LayerNormalization", y, g.constant(scale), g.constant(bias), axis=-1)
    model = g.model({"x": x, "z": z} if added else {"x": x}, g.q(y, 0.02, 100))
    results, expected, lowered = through_tvm(model)
    functions = lowered.ir_module.functions.items()
    body = next(str(func.body) for name, func in functions if "layernorm" in name.name_hint)
    assert "alloc_buffer((1, 9, 40)" not in body and "alloc_buffer((360,)" not in body, body
    assert_within_a_step(*results.values(), *expected.values())


@pytest.mark.parametrize("target", ["x86-64-v3", "icelake-server"])
def test_tiles_leave_a_register_for_products_that_are_added_apart(target):
    resolved = resolve_target(target)
    arithmetic = integer_arithmetic("uint8", "int8", resolved)
    for channels in (16, 24, 96, 144, 576):
        tile = choose_tile(196, channels, 48, resolved, spare=arithmetic.spare)
        # Sums, columns, one value, and the products.
        used = tile.pixels * tile.vectors + tile.vectors + 1 + arithmetic.spare
        assert used <= resolved.vector_registers
