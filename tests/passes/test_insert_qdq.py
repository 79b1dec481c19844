"""insert-qdq: where the pairs go, what they hold, and that ONNX Runtime runs integer kernels for them.

In the texts every graph input but `x` becomes an initializer with random contents.
"""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.errors import PassError
from graphwright.ir.provenance import module_path
from graphwright.ir.reference import Reference, run_reference
from graphwright.ir.save import serialized_size
from graphwright.passes.optimize import optimize
from graphwright.passes.quantization.calibration import Calibration
from hypothesis import given, settings
from hypothesis import strategies as st

from .quantization_models import model_of, optimized_in_onnx_runtime, samples_for

ONNX_RUNTIME_TABLES = ("x86", "x86-vnni", "generic")


def quantize(model: ir.Model, options: str = "target=generic", data=None):
    data = [samples_for(model)] if data is None else data
    result = optimize(model, f"insert-qdq{{{options}}}", calibration=data)
    return result.model, result.report.records[0]


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def node_named(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


def quantized_by(value: ir.Value) -> ir.Node:
    """The QuantizeLinear behind a value, which must be its only reader."""
    (reader,) = value.consumers()
    assert reader.op_type == "QuantizeLinear"
    return reader


def scale_of(value: ir.Value) -> ir.Value:
    """The scale with which a DequantizeLinear made a value."""
    assert value.producer().op_type == "DequantizeLinear"
    return value.producer().inputs[1]


def reasons(record) -> dict[str, str]:
    return {entry.node: entry.reason for entry in record.left_alone}


CNN = """g (float[N,3,16,16] x, float[16,3,3,3] w1, float[16] b1, float[16,16,3,3] w2, float[16] b2,
           float[16,16,1,1] w3, float[16,1,3,3] wd, float[16] bd, float lo, float hi, float[10,16] wf, float[10] bf)
  => (float[N,10] y) {
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)   r1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)  c3 = Conv(r1, w3)
    a = Add(c2, c3)  r2 = Relu(a)
    m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r2)
    d = Conv<group=16, pads=[1,1,1,1]>(m, wd, bd)  r3 = Clip(d, lo, hi)
    p = GlobalAveragePool(r3)  f = Flatten(p)
    y = Gemm<transB=1>(f, wf, bf)
  }"""


@pytest.fixture(scope="module")
def cnn():
    return model_of(CNN, lo=0.0, hi=6.0, wd=np.random.default_rng(5).normal(size=(16, 1, 3, 3)) * 2)


@pytest.mark.parametrize("table", ["x86", "x86-vnni", "arm", "arm-dotprod", "cuda", "generic"])
def test_a_small_cnn_stays_close_to_float(cnn, table):
    model, record = quantize(cnn, f"target={table}")
    feeds = samples_for(cnn, seed=7)
    comparison = compare(run_reference(cnn, feeds), run_reference(model, feeds))
    # 7-bit weights lose 6 dB of weight noise, symmetric activations behind a ReLU one bit.
    assert comparison.sqnr_db > (30 if table in ("x86", "cuda") else 34), comparison
    assert record.statistics["quantized Conv"] == 4
    assert not record.left_alone


@pytest.mark.parametrize("table", ONNX_RUNTIME_TABLES)
def test_onnx_runtime_runs_integer_kernels_only(cnn, table, tmp_path):
    model, _ = quantize(cnn, f"target={table}")
    feeds = samples_for(cnn, seed=7)
    outputs, kernels = optimized_in_onnx_runtime(model, feeds, tmp_path)
    assert [kernel for kernel in kernels if kernel != "Transpose"] == [
        *("QuantizeLinear", "QLinearConv", "QLinearConv", "QLinearConv", "QLinearAdd", "NhwcMaxPool"),
        *("QLinearConv", "QLinearGlobalAveragePool", "Flatten", "QGemm"),
    ]
    step = float(np.abs(outputs["y"]).max()) / 255
    assert np.abs(outputs["y"] - run_reference(model, feeds)["y"]).max() <= step


def test_weights_are_stored_as_int8():
    text = """g (float[N,64,8,8] x, float[128,64,3,3] w1, float[128] b1, float[128,128,3,3] w2) =>
      (float[N,128,4,4] y) { a = Conv(x, w1, b1) r = Relu(a) y = Conv(r, w2) }"""
    model = model_of(text)
    quantized, _ = quantize(model)
    assert serialized_size(quantized) < 0.27 * serialized_size(model)
    big = [value for value in quantized.graph.initializers.values() if value.const_value.size > 1000]
    assert {value.dtype for value in big} == {ir.DataType.INT8}


MLPS = {
    "gemm": ("a = Gemm(x, w1, b1) r = Relu(a) y = Gemm(r, w2)", "N", ["QGemm", "QGemm"]),
    "matmul": ("a = MatMul(x, w1) r = Relu(a) y = MatMul(r, w2)", "N", ["QLinearMatMul", "MatMulIntegerToFloat"]),
    "matmul and add": ("a = MatMul(x, w1) c = Add(a, b1) r = Relu(c) y = MatMul(r, w2)", "N",
                       ["QGemm", "MatMulIntegerToFloat"]),
    "matmul and add of a fixed rank 3": ("a = MatMul(x, w1) c = Add(a, b1) r = Gelu(c) y = MatMul(r, w2)", "2,5",
                                         ["QGemm", "MatMulIntegerToFloat"]),
    "matmul and add at the end": ("a = MatMul(x, w1) y = Add(b1, a)", "N", ["QGemm"]),
    "matmul of rank 3": ("a = MatMul(x, w1) c = Add(a, b1) r = Relu(c) y = MatMul(r, w2)", "N,5",
                         ["MatMulIntegerToFloat", "MatMulIntegerToFloat"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MLPS)
@pytest.mark.parametrize("table", ONNX_RUNTIME_TABLES)
def test_matrix_products(case, table, tmp_path):
    body, lead, expected = MLPS[case]
    width = 24 if "w2" not in body else 10
    model = model_of(
        f"g (float[{lead},32] x, float[32,24] w1, float[24] b1, float[24,10] w2) => (float[{lead},{width}] y) "
        f"{{ {body} }}"
    )
    feeds = samples_for(model, count=64, seed=3)
    quantized, _ = quantize(model, f"target={table}", data=[feeds])
    expected_outputs = run_reference(quantized, feeds)
    assert compare(run_reference(model, feeds), expected_outputs).sqnr_db > (32 if table == "x86" else 36)
    outputs, kernels = optimized_in_onnx_runtime(quantized, feeds, tmp_path)
    assert [kernel for kernel in kernels if "MatMul" in kernel or "Gemm" in kernel] == expected
    assert compare(expected_outputs, outputs).max_rel < 1 / 100


def test_the_scales_are_those_of_the_formulas():
    text = "g (float[N,4] x, float[4,3] w, float[3] b) => (float[N,3] y) { y = Gemm<alpha=0.5, beta=2.0>(x, w, b) }"
    model = model_of(text)
    data = samples_for(model)
    quantized, record = quantize(model, data=[data])
    gemm = node_named(quantized, "Gemm_0")
    x_scale, x_zero = (v.const_value.numpy() for v in gemm.inputs[0].producer().inputs[1:])
    low, high = min(data["x"].min(), 0), max(data["x"].max(), 0)
    assert x_scale == np.float32((np.float64(high) - np.float64(low)) / 255)
    assert x_zero.dtype == np.uint8 and x_zero == round(-low / float(x_scale))
    stored, scales, zeros = (v.const_value.numpy() for v in gemm.inputs[1].producer().inputs)
    weights = model.graph.initializers["w"].const_value.numpy().astype(np.float64) * 0.5
    np.testing.assert_array_equal(scales, (np.abs(weights).max(axis=0) / 127).astype(np.float32))
    np.testing.assert_array_equal(stored, np.rint(weights / scales.astype(np.float64)))
    assert stored.dtype == np.int8 and not zeros.any()
    assert gemm.inputs[1].producer().attributes["axis"].value == 1
    bias, bias_scales, _ = (v.const_value.numpy() for v in gemm.inputs[2].producer().inputs)
    assert bias.dtype == np.int32
    np.testing.assert_array_equal(bias_scales, scales * x_scale)
    real = 2 * model.graph.initializers["b"].const_value.numpy().astype(np.float64)
    assert (np.abs(bias * bias_scales.astype(np.float64) - real) <= bias_scales / 2 * 1.0001).all()
    assert gemm.attributes.get_float("alpha", 1.0) == gemm.attributes.get_float("beta", 1.0) == 1.0
    entry = record.details["values"]["x"]
    assert entry["low"] == low and entry["zero_point"] == x_zero
    assert set(quantized.graph.initializers).isdisjoint({"w", "b"})


def test_integer_arithmetic_in_numpy_gives_the_reference_result():
    text = """g (float[N,3,6,6] x, float[4,3,1,1] w, float[4] b) => (float[N,4,6,6] y)
      { c = Conv(x, w, b) y = Relu(c) }"""
    model = model_of(text)
    feeds = samples_for(model, seed=9)
    quantized, _ = quantize(model, data=[feeds])
    conv = node_named(quantized, "Conv_0")

    def constants(node, start):
        return [value.const_value.numpy().astype(np.float64) for value in node.inputs[start:]]

    x_scale, x_zero = constants(conv.inputs[0].producer(), 1)
    weights, w_scale, _ = constants(conv.inputs[1].producer(), 0)
    bias, _, _ = constants(conv.inputs[2].producer(), 0)
    y_scale, y_zero = constants(quantized_by(node_named(quantized, "Relu_1").outputs[0]), 1)
    x = np.clip(np.rint(feeds["x"] / np.float32(x_scale)) + x_zero, 0, 255) - x_zero
    sums = np.einsum("nchw,oc->nohw", x, weights[:, :, 0, 0]) + bias[:, None, None]
    steps = np.rint(sums * (x_scale * w_scale / y_scale)[:, None, None]) + y_zero
    expected = (np.clip(steps, 0, 255) - y_zero) * y_scale
    found = run_reference(quantized, feeds)["y"]
    assert y_zero == 0
    assert (np.abs(found - expected) > y_scale / 2).mean() < 1e-3
    assert np.abs(found - expected).max() <= y_scale * 1.001


@pytest.mark.parametrize("table", ["x86", "arm"])
def test_pairs_stand_behind_the_fused_activation(cnn, table):
    model, _ = quantize(cnn, f"target={table}")
    for name in ("Relu_1", "Relu_5", "Clip_8"):
        node = node_named(model, name)
        assert node.inputs[0].producer().op_type in ("Conv", "Add")
        quantizer = quantized_by(node.outputs[0])
        lowest = {"x86": 0, "arm": -128}[table]
        assert quantizer.inputs[2].const_value.numpy() == lowest
    clip_scale = quantized_by(node_named(model, "Clip_8").outputs[0]).inputs[1].const_value.numpy()
    assert clip_scale * np.float64(255) <= 6.0


def test_hard_tanh_grid_stays_inside_its_bounds(tmp_path):
    text = """g (float[N,4,6,6] x, float[4,4,3,3] w, float lo, float hi, float[4,4,1,1] w2)
      => (float[N,4,4,4] y) { c = Conv(x, w) r = Clip(c, lo, hi) y = Conv(r, w2) }"""
    model = model_of(text, lo=-0.7, hi=1.0, w=np.random.default_rng(0).normal(size=(4, 4, 3, 3)))
    quantized, _ = quantize(model)
    quantizer = quantized_by(node_named(quantized, "Clip_1").outputs[0])
    scale, zero = (value.const_value.numpy().astype(np.float64) for value in quantizer.inputs[1:])
    assert -zero * scale >= np.float32(-0.7) and (255 - zero) * scale <= 1.0
    _, kernels = optimized_in_onnx_runtime(quantized, samples_for(model), tmp_path)
    assert kernels.count("QLinearConv") == 2


def test_moving_operators_share_one_scale():
    text = """g (float[N,4,8,8] x, float[4,4,1,1] w, int64[2] shape, float[64,8] f) => (float[N,8] y) {
        c = Conv(x, w) m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c) t = Transpose<perm=[0,2,3,1]>(m)
        r = Reshape(t, shape) y = Gemm(r, f) }"""
    model, record = quantize(model_of(text, shape=[0, -1]))
    readers = [node_named(model, name) for name in ("MaxPool_1", "Transpose_2", "Reshape_3", "Gemm_4")]
    assert len({scale_of(node.inputs[0]).name for node in readers}) == 1
    assert record.statistics["quantized Reshape"] == 1


def test_concat_shares_a_scale_and_split_too():
    text = """g (float[N,4,8,8] x, float[4,4,1,1] w1, float[4,4,1,1] w2, float[4,4,1,1] w3) => (float[N,4,8,8] y)
      { a = Conv(x, w1) b = Conv(x, w2) c = Concat<axis=1>(a, b) s, t = Split<axis=1, num_outputs=2>(c)
        d = Add(s, t) y = Conv(d, w3) }"""
    model, _ = quantize(model_of(text))
    concat, add = node_named(model, "Concat_2"), node_named(model, "Add_4")
    values = [*concat.inputs, *add.inputs]
    assert len({scale_of(value).name for value in values}) == 1
    assert scale_of(node_named(model, "Conv_5").inputs[0]).name != scale_of(values[0]).name


@pytest.mark.parametrize("table", ONNX_RUNTIME_TABLES)
def test_concat_of_signed_and_unsigned_keeps_the_relu_fused(table, tmp_path):
    text = """g (float[N,4,8,8] x, float[4,4,1,1] w1, float[4,4,1,1] w2, float[4,8,1,1] w3) => (float[N,4,8,8] y)
      { a = Conv(x, w1) r = Relu(a) b = Conv(x, w2) c = Concat<axis=1>(r, b) y = Conv(c, w3) }"""
    source = model_of(text)
    model, _ = quantize(source, f"target={table}")
    relu, signed = node_named(model, "Concat_3").inputs
    assert scale_of(relu).name != scale_of(signed).name
    assert scale_of(signed).name == scale_of(node_named(model, "Conv_4").inputs[0]).name
    _, kernels = optimized_in_onnx_runtime(model, samples_for(source), tmp_path)
    assert kernels.count("QLinearConv") == 3 and kernels.count("QLinearConcat") == 1


@pytest.mark.parametrize("group", [1, 2, 3])
def test_transposed_convolutions(group):
    text = f"""g (float[N,6,5,5] x, float[6,{12 // group},3,3] w, float[12] b) => (float[N,12,11,11] y)
      {{ y = ConvTranspose<group={group}, strides=[2,2]>(x, w, b) }}"""
    scales = np.random.default_rng(2).uniform(0.1, 3, size=(1, 12 // group, 1, 1))
    model = model_of(text, w=np.random.default_rng(1).normal(size=(6, 12 // group, 3, 3)) * scales)
    feeds = samples_for(model, seed=4)
    quantized, record = quantize(model, "target=cuda", data=[feeds])
    node = node_named(quantized, "ConvTranspose_0")
    assert node.inputs[1].producer().attributes["axis"].value == 1
    assert node.inputs[2].producer().inputs[0].shape == [12]
    name = node.outputs[0].name
    exact, found = run_reference(model, feeds)["y"], Reference(quantized).run_values(feeds, [name, "y"])
    # Before its own quantization the result has only the noise of input and weights.
    assert compare(exact, found[name]).sqnr_db > 38
    assert compare(exact, found["y"]).sqnr_db > 32
    quantized, record = quantize(model, "target=tvm", data=[feeds])
    node = node_named(quantized, "ConvTranspose_0")
    assert node.inputs[1].producer().attributes["axis"].value == 1 and not reasons(record)
    assert compare(exact, Reference(quantized).run(feeds)["y"]).sqnr_db > 36
    _, record = quantize(model, "target=x86")
    assert reasons(record) == {"ConvTranspose_0": "there is no integer kernel for it on this target"}


def test_shared_weights_are_stored_once():
    text = """g (float[N,4,8,8] x, float[4,4,1,1] w, float[4] b) => (float[N,4,8,8] y)
      { a = Conv(x, w, b) r = Relu(a) c = Conv(r, w, b) d = Relu(c) y = Conv(d, w) }"""
    source = model_of(text)
    model, _ = quantize(source)
    convs = [node for node in model.graph if node.op_type == "Conv"]
    assert len({conv.inputs[1].name for conv in convs}) == 1
    assert sum(value.dtype == ir.DataType.INT8 for value in model.graph.initializers.values()) == 2
    assert len({conv.inputs[2].name for conv in convs[:2]}) == 2
    feeds = samples_for(source)
    assert compare(run_reference(source, feeds), run_reference(model, feeds)).sqnr_db > 30


def test_weights_that_others_read_stay_in_float_too():
    text = """g (float[N,4] x, float[4,4] w) => (float[N,4] y, float[4,4] z) { y = Gemm(x, w) z = Relu(w) }"""
    model, _ = quantize(model_of(text))
    assert model.graph.initializers["w"].dtype == ir.DataType.FLOAT
    assert node_named(model, "Gemm_0").inputs[1].producer().op_type == "DequantizeLinear"


def test_inputs_and_outputs_keep_names_and_types(tmp_path):
    text = """g (float[N,4,8,8] x, float[4,4,1,1] w1, float[4,4,1,1] w2) => (float[N,4,8,8] y, float[N,4,8,8] r)
      { c = Conv(x, w1) r = Relu(c) y = Conv(r, w2) }"""
    source = model_of(text)
    model, _ = quantize(source)
    assert [(v.name, v.dtype) for v in model.graph.inputs] == [("x", ir.DataType.FLOAT)]
    assert [(v.name, v.dtype) for v in model.graph.outputs] == [(n, ir.DataType.FLOAT) for n in "yr"]
    _, kernels = optimized_in_onnx_runtime(model, samples_for(source), tmp_path)
    assert kernels.count("QLinearConv") == 2


def test_a_float_reader_of_a_float_value_sees_it_unquantized():
    text = """g (float[N,4,8,8] x, float[4,4,1,1] w) => (float[N,4,8,8] y)
      { t = Tanh(x) c = Conv(t, w) s = Softmax(c) y = Mul(t, s) }"""
    model, record = quantize(model_of(text))
    assert node_named(model, "Mul_3").inputs[0].producer().op_type == "Tanh"
    assert node_named(model, "Conv_1").inputs[0].producer().op_type == "DequantizeLinear"
    assert "precision" in reasons(record)["Softmax_2"]


def test_twice_changes_nothing(cnn):
    once, _ = quantize(cnn)
    twice, record = quantize(once)
    assert not record.changed
    assert ops(twice) == ops(once)
    assert set(reasons(record).values()) == {"it is already quantized"}


def test_the_rest_of_a_half_quantized_model(cnn):
    half, _ = quantize(cnn, "target=generic only=Conv")
    assert "quantized Gemm" not in _.statistics
    whole, record = quantize(half)
    assert record.statistics == {"quantized Gemm": 1, "quantized activations": 1}
    feeds = samples_for(cnn, seed=7)
    assert compare(run_reference(cnn, feeds), run_reference(whole, feeds)).sqnr_db > 30


def test_selectors(cnn):
    model, record = quantize(cnn, 'target=generic skip="Conv_0|Gemm"')
    assert record.statistics["quantized Conv"] == 3
    assert node_named(model, "Conv_0").inputs[1].name == "w1"
    assert node_named(model, "Gemm_11").inputs[1].name == "wf"


LEFT = {
    "weights computed": ("w2 = Relu(w) y = Gemm(x, w2)", "", "not constant"),
    "both operands computed": ("y = MatMul(x, x)", "", "not constant"),
    "constant first": ("y = MatMul(w, x)", "", "first operand is the constant"),
    "bias computed": ("r = Relu(b) y = Gemm(x, w, r)", "", "its bias is not constant"),
    "bias per row": ("y = Gemm(x, w, c)", "float[4,1] c", "its bias has shape [4, 1]"),
    "weights of rank 3": ("y = MatMul(x, c)", "float[2,4,4] c", "its weights have 3 dimensions"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_stays_in_float_is_reported(case):
    body, more, reason = LEFT[case]
    out = "float[2,4,4]" if "rank 3" in case else "float[4,4]"
    model = model_of(
        f"g (float[4,4] x, float[4,4] w, float[4] b{', ' + more if more else ''}) => ({out} y) {{{body}}}"
    )
    quantized, record = quantize(model, data=[np.eye(4, dtype=np.float32)])
    assert not record.changed
    assert ops(quantized) == ops(model)
    assert any(reason in text for text in reasons(record).values()), record.left_alone


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ({"w": np.full((4, 4), np.nan)}, "NaN or infinity in its weights"),
        ({"b": [np.inf, 0, 0, 0]}, "NaN or infinity in its bias"),
        ({"w": np.full((4, 4), 1e30)}, "numbers beyond 1e+18 in its weights"),
    ],
)
def test_constants_that_do_not_fit_are_reported(contents, reason):
    model = model_of(
        "g (float[N,4] x, float[4,4] w, float[4] b) => (float[N,4] y) { y = Gemm(x, w, b) }", **contents
    )
    _, record = quantize(model)
    assert reasons(record) == {"Gemm_0": reason}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a = Reciprocal(z)", "not finite"),
        ("a = Div(z, z)", "not finite"),
        ("a = Mul(x, tiny)", "too small"),
        ("a = Mul(x, huge)", "too large"),
    ],
)
def test_ranges_that_do_not_fit_are_reported(line, reason):
    model = model_of(
        f"""g (float[N,4] x, float tiny, float huge, float[4,4] w, float[4,4] w2) => (float[N,4] y, float[N,4] k)
        {{ z = Sub(x, x) {line} y = Gemm(a, w) k = Gemm(x, w2) }}""",
        tiny=1e-30,
        huge=1e30,
    )
    quantized, record = quantize(model)
    assert record.statistics == {"quantized Gemm": 1, "quantized activations": 1}
    (node,) = reasons(record)
    assert reason in reasons(record)[node] and "its input 'a' cannot be quantized" in reasons(record)[node]
    assert node_named(quantized, node).inputs[1].name == "w"


def test_dead_activations_stay_zero():
    text = """g (float[N,4] x, float[4,4] w1, float[4] b1, float[4,4] w2, float[4] b2) => (float[N,4] y)
      { a = Gemm(x, w1, b1) r = Relu(a) y = Gemm(r, w2, b2) }"""
    model = model_of(text, b1=np.full(4, -1e4))
    quantized, record = quantize(model)
    assert record.details["values"]["r"] == {
        "low": 0.0,
        "high": 0.0,
        "scale": 1.0,
        "zero_point": 0,
        "type": "uint8",
    }
    feeds = samples_for(model, seed=2)
    assert compare(run_reference(model, feeds), run_reference(quantized, feeds)).max_rel < 5e-3


def test_one_sided_ranges_contain_zero():
    text = (
        "g (float[N,4] x, float shift, float[4,4] w) => (float[N,4] y) { a = Add(x, shift) y = Gemm(a, w) }"
    )
    for shift, zero_point in ((50.0, 0), (-50.0, 255)):
        _, record = quantize(model_of(text, shift=shift))
        entry = record.details["values"]["a"]
        assert entry["low"] <= 0 <= entry["high"]
        assert entry["zero_point"] == zero_point


def test_extreme_channels_and_biases():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 4, 1, 1))
    weights[0] = 0
    weights[1] *= 1e-20
    weights[2] *= 1e6
    bias = np.array([0.3, 1e7, 0.0, -1e6, 1e-9, 5.0])
    text = """g (float[N,4,8,8] x, float[6,4,1,1] w, float[6] b) => (float[N,6,8,8] y, float[N,6,8,8] c)
      { c = Conv(x, w, b) y = Relu(c) }"""
    model = model_of(text, w=weights, b=bias)
    feeds = samples_for(model)
    quantized, _ = quantize(model, data=[feeds])
    names = [node.outputs[0].name for node in quantized.graph if node.op_type == "Conv"]
    found = Reference(quantized).run_values(feeds, names)[names[0]].astype(np.float64)
    real = run_reference(model, feeds)["c"].astype(np.float64)
    for channel in range(6):
        noise = np.abs(found[:, channel] - real[:, channel]).max()
        assert noise <= 0.02 * max(np.abs(real[:, channel]).max(), 1e-3), channel


def test_subgraphs_stay_in_float_and_still_run():
    text = """g (float[N,4] x, bool p, float[4,4] w, float[4,4] w2) => (float[N,4] y) {
        a = Gemm(x, w)  r = Relu(a)  b = Gemm(r, w2)
        y = If (p) < then_branch = t () => (float[N,4] ty) { ty = Gemm(r, w) },
                     else_branch = e () => (float[N,4] ey) { ey = Add(r, b) }>
      }"""
    model = model_of(text, keep="x p")
    data = {**samples_for(model_of(text, keep="x", p=True)), "p": np.array(True)}
    quantized, record = quantize(model, data=[data])
    assert "its subgraphs stay in float" in reasons(record).values()
    (why,) = [why for name, why in reasons(record).items() if "in a body of If 'If_3'" in why]
    assert why.endswith("quantize-dynamic and quantize-weights go there")
    branch = node_named(quantized, "If_3").attributes["then_branch"].as_graph()
    assert [node.op_type for node in branch] == ["Gemm"]
    for choice in (True, False):
        feeds = {**data, "p": np.array(choice)}
        assert compare(run_reference(model, feeds), run_reference(quantized, feeds)).sqnr_db > 30


def test_half_precision_stays_as_it_is():
    text = "g (float16[N,4] x, float16[4,4] w) => (float16[N,4] y) { y = MatMul(x, w) }"
    model = model_of(text)
    quantized, record = quantize(model, data=[np.ones((2, 4), np.float16)])
    assert not record.changed
    assert "not in float32" in reasons(record)["MatMul_0"]


def test_without_data_there_is_a_clear_refusal(cnn):
    with pytest.raises(
        PassError, match=r"needs calibration data.*--calibration FILE.npz\|FOLDER.*--calibrate-random"
    ):
        optimize(cnn, "insert-qdq")


@pytest.mark.parametrize(
    ("options", "data", "line"),
    [
        ("target=toaster", None, "no quantization table 'toaster'"),
        ("percentile=30", None, "'percentile' must be above 50"),
        (
            "",
            {"x": np.zeros((4, 3, 8, 8))},
            r"input 'x' has shape \[4, 3, 8, 8\], but the model wants \[N, 3, 16, 16\]",
        ),
        ("", [np.full((1, 3, 16, 16), np.nan)], "batch 1: input 'x' holds NaN"),
    ],
)
def test_mistakes_are_one_line(cnn, options, data, line):
    with pytest.raises(PassError, match=line) as caught:
        quantize(cnn, options, data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("calibration", ["minmax", "mean", "moving-average", "percentile"])
def test_every_calibrator_serves(cnn, calibration):
    data = Calibration.from_arrays(samples_for(cnn, 24), batch=8)
    model, record = quantize(cnn, f"calibration={calibration}", data)
    assert record.details["calibration"] == {"source": "arrays", "batches": 3, "random": False}
    feeds = samples_for(cnn, seed=7)
    assert compare(run_reference(cnn, feeds), run_reference(model, feeds)).sqnr_db > 25


def test_random_calibration_says_what_it_is_worth(cnn):
    _, record = quantize(cnn, data=Calibration.random_data(batches=2))
    assert record.notes == ["calibrated on random numbers: speed is meaningful, accuracy is not"]


def test_reduced_range_on_request(cnn):
    def largest(options):
        model, _ = quantize(cnn, options)
        stored = [
            v.const_value.numpy() for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT8
        ]
        return max(np.abs(array.astype(int)).max() for array in stored)

    assert largest("target=x86") == 64
    assert largest("target=x86 reduce_range=false") == 127
    assert largest("target=generic reduce_range=true") == 64


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_random_networks_never_break(data):
    """Random chains with residual adds, concats, pooling and odd ranges: valid, finite, and close where sane."""
    draw = data.draw
    magnitude = draw(st.sampled_from([0.0, 1e-25, 1e-12, 1.0, 1e12, 1e25]))
    table = draw(st.sampled_from(["x86", "arm", "cuda", "generic"]))
    lines, inits, last = [], [], "x"
    kinds = ["conv", "relu", "clip", "add", "concat", "pool", "sigmoid", "mean", "transposed", "depthwise"]
    for i, kind in enumerate(draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=7))):
        name = f"v{i}"
        if kind in ("conv", "add", "concat"):
            channels = 8 if kind == "concat" else 4
            inits.append(f"float[4,{channels},3,3] w{i}, float[4] b{i}")
            source = f"c{i}" if kind == "concat" else last
            lines += [f"{source} = Concat<axis=1>({last}, {last})"] if kind == "concat" else []
            lines.append(f"k{i} = Conv<pads=[1,1,1,1]>({source}, w{i}, b{i})")
            lines.append(f"{name} = Add(k{i}, {last})" if kind == "add" else f"{name} = Relu(k{i})")
        elif kind in ("transposed", "depthwise"):
            inits.append(f"float[4,{4 if kind == 'transposed' else 1},3,3] w{i}")
            op = "ConvTranspose" if kind == "transposed" else "Conv<group=4, pads=[1,1,1,1]>"
            op = "ConvTranspose<pads=[1,1,1,1]>" if kind == "transposed" else op
            lines.append(f"{name} = {op}({last}, w{i})")
        else:
            body = {
                "relu": f"Relu({last})",
                "clip": f"Clip({last}, lo, hi)",
                "pool": f"MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({last})",
                "sigmoid": f"Sigmoid({last})",
                "mean": f"AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>({last})",
            }[kind]
            lines.append(f"{name} = {body}")
        last = name
    text = f"g (float[N,4,6,6] x, float lo, float hi{''.join(', ' + w for w in inits)}) => (float[N,4,6,6] {last}) "
    model = model_of(f"{text} {{ {' '.join(lines)} }}", seed=len(lines), lo=-0.5, hi=6.0)
    feeds = {"x": samples_for(model, 8)["x"] * np.float32(magnitude)}
    quantized, record = quantize(model, f"target={table}", data=[feeds])
    for value in quantized.graph.initializers.values():
        array = value.const_value.numpy().astype(np.float64)
        assert np.isfinite(array).all()
        assert not value.name.endswith("_scale") or (array > 0).all()
    expected, found = run_reference(model, feeds), run_reference(quantized, feeds)
    assert all(np.isfinite(array).all() for array in found.values())
    if magnitude == 1.0 and record.changed:
        assert compare(expected, found).cosine > 0.97


def test_pairs_know_their_module_and_pass_and_nothing_else():
    model = model_of("g (float[N,4] x, float[4,4] w, float[4] b) => (float[N,4] y) { y = Gemm(x, w, b) }")
    model.graph[0].metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'head', 'linear']"
    model.graph[0].metadata_props["pkg.torch.onnx.fx_node"] = "%linear : [num_users=1] = call_function"
    quantized, _ = quantize(model)
    inserted = [
        node.inputs[i].producer() for node in quantized.graph if node.op_type == "Gemm" for i in (1, 2)
    ]
    assert [module_path(node) for node in inserted] == ["head", "head"]
    assert all(node.metadata_props["graphwright.pass"] == "insert-qdq" for node in inserted)
    assert not any("fx_node" in key for node in inserted for key in node.metadata_props)
    assert "fx_node" in "".join(node_named(quantized, "Gemm_0").metadata_props)


@pytest.mark.parametrize("table", ["x86", "arm", "cuda", "generic"])
def test_a_fused_relu_that_only_ever_gave_zeros_keeps_a_positive_scale(table):
    model = model_of(
        "g (float[N,4,6,6] x, float[4,4,3,3] w, float[4] b, float[4,4,3,3] v, float[4] c) => (float[N,4,6,6] y) "
        "{ k = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(k)  l = Conv<pads=[1,1,1,1]>(r, v, c)  y = Relu(l) }"
    )
    bias = next(value for value in model.graph.initializers.values() if value.name == "b")
    bias.const_value = ir.tensor(np.full(4, -5, np.float32), name="b")
    feeds = {"x": np.zeros((1, 4, 6, 6), np.float32)}
    quantized, _ = quantize(model, f"target={table}", data=[feeds])
    scales = [v for v in quantized.graph.initializers.values() if v.name.endswith("_scale")]
    assert scales and all((v.const_value.numpy() > 0).all() for v in scales)
    found = run_reference(quantized, feeds)["y"]
    np.testing.assert_allclose(found, run_reference(model, feeds)["y"], atol=0.05)
