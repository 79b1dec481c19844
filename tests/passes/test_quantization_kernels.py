"""What a table quantizes runs as an integer kernel in ONNX Runtime: nothing floats between leftovers."""

import numpy as np
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.reference import run_reference
from graphwright.passes.optimize import optimize
from graphwright.passes.quantization.tables import TABLES
from graphwright.tools.zoo import zoo_model

from .quantization_models import model_of, optimized_in_onnx_runtime, samples_for

HEAD = "float[N,16,8,8] x, float[16,16,1,1] wa, float[16,16,1,1] wb"
CONSTANTS = {
    "sc": [1, 1, 2, 2], "st": [0], "en": [8], "ax": [1], "lo": 0.0, "hi": 6.0, "to": [0, 4, 256], "ix": list(range(16)), "ze": [0], "hw": [2, -1]
}  # fmt: skip
# By name: extra initializers, what stands between two convolutions, and the kernel it must become.
BETWEEN = {
    "grouped": ("float[16,4,3,3] w", "m = Conv<group=4, pads=[1,1,1,1]>(a, w)", "QLinearConv"),
    "depthwise": ("float[16,1,3,3] w", "m = Conv<group=16, pads=[1,1,1,1]>(a, w)", "QLinearConv"),
    "dilated": ("float[16,16,3,3] w, float[16] b", "m = Conv<dilations=[2,2]>(a, w, b)", "QLinearConv"),
    "relu": ("", "m = Relu(a)", None),
    "relu6": ("float lo, float hi", "m = Clip(a, lo, hi)", None),
    "residual": ("", "r = Relu(a)  c = Conv(r, wb)  s = Add(c, r)  m = Relu(s)", "QLinearAdd"),
    "add": ("", "c = Conv(x, wb)  m = Add(a, c)", "QLinearAdd"),
    "mul": ("", "c = Conv(x, wb)  m = Mul(a, c)", "QLinearMul"),
    "gate": (
        "",
        "p = GlobalAveragePool(a)  c = Conv(p, wb)  s = Sigmoid(c)  m = Mul(a, s)",
        "QLinearSigmoid",
    ),
    "leaky": ("", "m = LeakyRelu<alpha=0.1>(a)", "QLinearLeakyRelu"),
    "max pool": ("", "m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)", "NhwcMaxPool"),
    "average pool": ("", "m = AveragePool<kernel_shape=[2,2], strides=[2,2]>(a)", "QLinearAveragePool"),
    "global pool": ("", "m = GlobalAveragePool(a)", "QLinearGlobalAveragePool"),
    "mean": ("int64[2] hw", "m = ReduceMean(a, hw)", "QLinearGlobalAveragePool"),
    "concat": ("", "c = Conv(x, wb)  s = Concat<axis=2>(a, c)  m = Relu(s)", "QLinearConcat"),
    "split": ("", "s, t = Split<axis=1, num_outputs=2>(a)  m = Concat<axis=1>(t, s)", "QLinearConcat"),
    "resize": (
        "float[4] sc",
        'm = Resize<coordinate_transformation_mode="asymmetric", nearest_mode="floor">(a, , sc)',
        "Resize",
    ),
    "transpose": ("", "m = Transpose<perm=[0,1,3,2]>(a)", None),
    "shuffle": ("", "s = DepthToSpace<blocksize=2>(a)  m = Concat<axis=1>(s, s, s, s)", "DepthToSpace"),
    "gather": ("int64[16] ix", "m = Gather<axis=1>(a, ix)", "Gather"),
    "squeeze": ("int64[1] ze", "s = Unsqueeze(a, ze)  m = Squeeze(s, ze)", None),
    "slice": (
        "int64[1] st, int64[1] en, int64[1] ax",
        "s = Slice(a, st, en, ax)  m = Concat<axis=1>(s, s)",
        "Slice",
    ),
}
ENDS = {
    "gemm": ("float[9,1024] w, float[9] b", "f = Flatten(a)  y = Gemm<transB=1>(f, w, b)", "QGemm"),
    "mean": (
        "int64[2] hw, float[9,16] w, float[9] b",
        "f = ReduceMean<keepdims=0>(a, hw)  y = Gemm<transB=1>(f, w, b)",
        "QGemm",
    ),
    "product": ("float[1024,9] w, float[9] b", "f = Flatten(a)  m = MatMul(f, w)  y = Add(m, b)", "QGemm"),
    "tokens": (
        "int64[3] to, float[256,32] w, float[32] b, float[32,9] v",
        "f = Reshape(a, to)  m = MatMul(f, w)  s = Add(m, b)  r = Relu(s)  y = MatMul(r, v)",
        "MatMulIntegerToFloat",
    ),
}  # fmt: skip
# Moving numbers and changing between the two worlds at the borders.
BORDERS = {"QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape", "Flatten"}
FLOAT_KERNELS = {
    "Conv",
    "ConvTranspose",
    "MatMul",
    "Gemm",
    "FusedConv",
    "FusedGemm",
    "FusedMatMul",
    "Sigmoid",
}


def kernels_of(text: str, table: str, tmp_path) -> list[str]:
    model = model_of(text, **{name: np.asarray(array) for name, array in CONSTANTS.items()})
    feeds = samples_for(model, 4)
    result = optimize(model, f"insert-qdq{{target={table}}}", calibration=[feeds])
    assert not result.report.records[0].left_alone
    outputs, kernels = optimized_in_onnx_runtime(result.model, feeds, tmp_path)
    assert compare(run_reference(model, feeds), outputs).sqnr_db > 22
    return kernels


@pytest.mark.parametrize("table", ["x86", "generic"])
@pytest.mark.parametrize("name", BETWEEN)
def test_between_convolutions(name, table, tmp_path):
    extra, body, kernel = BETWEEN[name]
    inputs = f"{HEAD}, {extra}" if extra else HEAD
    text = f"g ({inputs}) => (float[N,16,H,W] y) {{ a = Conv(x, wa)  {body}  y = Conv(m, wb) }}"
    kernels = kernels_of(text, table, tmp_path)
    assert kernel is None or kernel in kernels
    # One pair of borders: what comes in, and what goes out.
    assert kernels.count("QuantizeLinear") == 1 and kernels.count("DequantizeLinear") == 1
    inside = [kernel for kernel in kernels if kernel not in BORDERS]
    moving = {"Split", "Slice", "Resize", "DepthToSpace", "Gather", "Squeeze", "Unsqueeze", "NhwcMaxPool"}
    assert all(kernel.startswith("QLinear") or kernel in moving for kernel in inside), kernels


@pytest.mark.parametrize("table", ["x86", "generic"])
@pytest.mark.parametrize("name", ENDS)
def test_ends(name, table, tmp_path):
    extra, body, kernel = ENDS[name]
    text = f"g ({HEAD}, {extra}) => (float Y) {{ a = Conv(x, wa)  {body} }}".replace(
        "float Y", "float[A,B] y"
    )
    text = text.replace("float[A,B] y", "float[A,B,C] y") if name == "tokens" else text
    kernels = kernels_of(text, table, tmp_path)
    assert kernel in kernels and not FLOAT_KERNELS & set(kernels)
    assert "DequantizeLinear" not in kernels


def test_every_operator_of_the_tables_is_tried():
    tried = {
        "Conv",
        "Gemm",
        "MatMul",
        "Add",
        "Mul",
        "AveragePool",
        "GlobalAveragePool",
        "Sigmoid",
        "LeakyRelu",
    }
    for name in ("x86", "x86-vnni", "generic"):
        table = TABLES[name]
        assert {*table.weighted, *table.computed} == tried
        assert {*table.shared} == {
            "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather",
            "DepthToSpace", "Resize", "Concat",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("resnet18_small", {"QLinearConv": 6, "QLinearAdd": 2, "QLinearGlobalAveragePool": 1}),
        pytest.param("mobilenet_v2_small", {"QLinearConv": 5}, marks=pytest.mark.slow),
        pytest.param("bert_base_small", {"QGemm": 8}, marks=pytest.mark.slow),
        pytest.param("vit_s16_small", {"QGemm": 4}, marks=pytest.mark.slow),
    ],
)
def test_whole_models(name, least, tmp_path):
    from graphwright.ir.inputs import random_inputs

    model = optimize(zoo_model(name), "simplify,fold-batch-norm").model
    feeds = [random_inputs(model, seed=seed) for seed in range(3)]
    result = optimize(model, "insert-qdq{target=generic}", calibration=feeds)
    outputs, kernels = optimized_in_onnx_runtime(result.model, feeds[0], tmp_path)
    assert compare(run_reference(model, feeds[0]), outputs).sqnr_db > 15
    for kernel, count in least.items():
        assert sum(each == kernel for each in kernels) >= count, kernels
    # What was not left alone with a reason is no float kernel.
    left = [entry.op_type for entry in result.report.records[0].left_alone]
    for kernel, kinds in (("Conv", {"Conv", "FusedConv"}), ("Gemm", {"Gemm", "FusedGemm"})):
        assert sum(each in kinds for each in kernels) <= left.count(kernel)
    assert sum(each in ("MatMul", "FusedMatMul") for each in kernels) <= left.count("MatMul")


@pytest.mark.parametrize("activation", ["Relu(a)", "Clip(a, lo, hi)"])
def test_an_activation_inside_a_symmetric_grid_leaves_an_integer_kernel_in_front_of_it(activation, tmp_path):
    text = f"g ({HEAD}, float lo, float hi) => (float[N,16,H,W] y) {{ a = Conv(x, wa)  m = {activation}  y = Conv(m, wb) }}"
    model = model_of(text, lo=0.0, hi=0.7)
    feeds = samples_for(model, 4)
    plain = optimize(model, "insert-qdq{target=generic}", calibration=[feeds]).model
    symmetric = optimize(model, "insert-qdq{target=generic symmetric_activations=true}", calibration=[feeds])
    outputs, kernels = optimized_in_onnx_runtime(symmetric.model, feeds, tmp_path)
    assert kernels.count("QLinearConv") == 2 and not FLOAT_KERNELS & {*kernels}
    assert compare(run_reference(symmetric.model, feeds), outputs).sqnr_db > 40
    # A grid that begins at zero drops the activation by itself; TensorRT fuses it as it is.
    count = [node.op_type for node in symmetric.model.graph].count("QuantizeLinear")
    assert count == 1 + [node.op_type for node in plain.graph].count("QuantizeLinear")
    cuda = optimize(model, "insert-qdq{target=cuda}", calibration=[feeds]).model
    assert [node.op_type for node in cuda.graph].count("QuantizeLinear") == count - 1


def test_a_pair_in_front_of_an_activation_changes_no_number():
    text = f"g ({HEAD}) => (float[N,16,H,W] y) {{ a = Conv(x, wa)  y = Relu(a) }}"
    model = model_of(text)
    feeds = samples_for(model, 4)
    made = optimize(model, "insert-qdq{target=generic symmetric_activations=true}", calibration=[feeds]).model
    both = run_reference(made, feeds)["y"]
    (relu,) = [node for node in made.graph if node.op_type == "Relu"]
    first = relu.inputs[0].producer().inputs[0].producer()
    relu.replace_input_with(0, first.inputs[0])
    np.testing.assert_array_equal(run_reference(made, feeds)["y"], both)


def test_onnx_runtime_keeps_the_bias_between_16_bit_numbers(tmp_path):
    text = "g (float[N,16,8,8] x, float[16,16,1,1] wa, float[16] b) => (float[N,16,8,8] y) { y = Conv(x, wa, b) }"
    model = model_of(text, wa=np.full((16, 16, 1, 1), 1e-3), b=np.linspace(-9, 9, 16))
    feeds = {"x": samples_for(model, 4)["x"] * np.float32(1e-2)}
    made = optimize(model, "insert-qdq{target=generic precision=a16w16}", calibration=[feeds]).model
    outputs, _ = optimized_in_onnx_runtime(made, feeds, tmp_path)
    assert compare(run_reference(model, feeds), outputs).sqnr_db > 70


# What ONNX Runtime moves int8 through, in the file or of its own making; it used to refuse its own result.
MOVED = {
    "reshape": ("A,B,C", "int64[3] to", "m = Reshape(a, to)  n = Transpose<perm=[0,2,1]>(m)  y = Tanh(n)"),
    "two readers": (
        "A,B,C",
        "int64[3] to",
        "m = Transpose<perm=[0,2,3,1]>(a)  n = Reshape(m, to)  k = Reshape(a, to)  y = Add(n, k)",
    ),
    "pooled": ("A,B,C,D", "float[16] s", "m = MaxPool<kernel_shape=[2,2]>(a)  y = Tanh(m)"),
    "a result": ("A,B,C", "int64[3] to", "y = Reshape(a, to)"),
    "tokens": (
        "A,B,C",
        "int64[3] to, float[16,8] wm, float[8] bm, float[8,4] wn, float[4] bn",
        "m = Reshape(a, to)  n = Transpose<perm=[0,2,1]>(m)  p = MatMul(n, wm)  q = Add(p, bm)  r = Gelu(q)  "
        "s = MatMul(r, wn)  y = Add(bn, s)",
    ),
}


@pytest.mark.parametrize("table", ["arm", "cuda"])
@pytest.mark.parametrize("name", MOVED)
def test_files_with_int8_activations_load_on_x86(name, table, tmp_path):
    dims, extra, body = MOVED[name]
    text = f"g (float[2,16,6,6] x, float[16,16,3,3] wa, {extra}) => (float[{dims}] y) {{ a = Conv(x, wa)  {body} }}"
    model = model_of(text, to=np.array([2, 16, 16]))
    feeds = samples_for(model)
    made = optimize(model, f"insert-qdq{{target={table}}}", calibration=[feeds]).model
    reference = run_reference(made, feeds)
    assert compare(run_reference(model, feeds), reference).sqnr_db > 30
    outputs, _ = optimized_in_onnx_runtime(made, feeds, tmp_path)
    assert compare(reference, outputs).sqnr_db > 45
    outputs, kernels = optimized_in_onnx_runtime(made, feeds, tmp_path, as_on_arm=True)
    assert compare(reference, outputs).sqnr_db > 45
    assert "QLinearConv" in kernels and not FLOAT_KERNELS & {*kernels}, kernels


def test_skipped_moves_stay_in_float():
    dims, extra, body = MOVED["reshape"]
    text = f"g (float[2,16,6,6] x, float[16,16,3,3] wa, {extra}) => (float[{dims}] y) {{ a = Conv(x, wa)  {body} }}"
    model = model_of(text, to=np.array([2, 16, 16]))
    feeds = samples_for(model)
    made = optimize(model, "insert-qdq{target=arm skip=Transpose}", calibration=[feeds]).model
    assert [node.op_type for node in made.graph if node.op_type != "DequantizeLinear"][-4:] == [
        "Reshape", "QuantizeLinear", "Transpose", "Tanh",
    ]  # fmt: skip
