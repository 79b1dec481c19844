"""insert-qdq in every precision: against numpy, mixed within a model, and where a table refuses."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.errors import PassError
from graphwright.ir.reference import run_reference
from graphwright.ir.save import serialized_size
from graphwright.ir.verify import verify
from graphwright.passes.optimize import optimize
from graphwright.passes.quantization.arithmetic import Grid, best_weight_scales, quantize, weight_scales
from graphwright.passes.quantization.precisions import PRECISIONS
from graphwright.passes.quantization.tables import TABLES

from .quantization_models import model_of, optimized_in_onnx_runtime, samples_for

# Without a bias, whose rounding would blur the comparison.
GEMM = "g (float[N,24] x, float[24,20] w) => (float[N,20] y) { y = Gemm(x, w) }"
CNN = """g (float[N,3,16,16] x, float[16,3,3,3] w1, float[16] b1, float[16,16,3,3] w2, float[16] b2,
           float[16,1,3,3] wd, float[10,16] wf, float[10] bf) => (float[N,10] y) {
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)   r1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)  a = Add(c2, r1)  r2 = Relu(a)
    m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r2)  d = Conv<group=16>(m, wd)  r3 = Relu(d)
    p = GlobalAveragePool(r3)  f = Flatten(p)  y = Gemm<transB=1>(f, wf, bf)
  }"""
# By precision: SQNR (dB) that the network must keep.
KEPT = {"int8": 33, "a16w8": 38, "a16w16": 50, "a8w4": 16, "fp8-e4m3": 24, "fp8-e5m2": 18}


def quantized(model: ir.Model, options: str, data=None) -> tuple[ir.Model, object]:
    result = optimize(
        model, f"insert-qdq{{target=generic {options}}}", calibration=data or [samples_for(model)]
    )
    verify(result.model)
    return result.model, result.report.records[0]


def fake(array: np.ndarray, low, high, dtype: str, symmetric: bool) -> np.ndarray:
    """Quantizes and restores with numpy alone."""
    if dtype.startswith("float8"):
        kind = getattr(ml_dtypes, dtype)
        top = float(ml_dtypes.finfo(kind).max)
        scale = np.float32(np.maximum(-low, high) / top)
        return np.clip(array / scale, -top, top).astype(kind).astype(np.float32) * scale
    info = ml_dtypes.iinfo(getattr(ml_dtypes, dtype, dtype))
    bottom, top = int(info.min), int(info.max)
    if symmetric:
        scale = np.float32(np.maximum(-low, high) / (top if bottom < 0 else top // 2))
        zero = 0 if bottom < 0 else (top + 1) // 2
        bottom = -top if bottom < 0 else bottom
    else:
        scale = np.float32((high - low) / (top - bottom))
        zero = np.clip(np.rint(bottom - low / scale), bottom, top)
    return (np.clip(np.rint(array / scale) + zero, bottom, top) - zero) * scale


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("options", "symmetric_a", "symmetric_w"),
    [("", None, True), ("symmetric_activations=true", True, True), ("symmetric_weights=false", None, False)],
)
def test_a_layer_equals_numpy(precision, options, symmetric_a, symmetric_w):
    model = model_of(GEMM)
    feeds = samples_for(model)
    small, _ = quantized(model, f"precision={precision} {options}", [feeds])
    spec = PRECISIONS[precision]
    weights = model.graph.initializers["w"].const_value.numpy()
    dtype = spec.weights or "int8"
    low, high = np.minimum(weights.min(0), 0), np.maximum(weights.max(0), 0)
    if dtype == "int4" and symmetric_w:
        grid = Grid.make("int4", symmetric=True)
        scales = best_weight_scales(weights, 1, grid).astype(np.float32)
        weights = quantize(weights, scales, 0, grid, 1).astype(np.float32) * scales
    else:
        weights = fake(weights, low, high, dtype, symmetric_w or dtype.startswith("float8"))
    a_type = spec.activations or "uint8"
    is_symmetric = bool(symmetric_a or spec.symmetric_activations)
    data = fake(feeds["x"], feeds["x"].min(), feeds["x"].max(), a_type, is_symmetric)
    np.testing.assert_allclose(run_reference(small, feeds)["y"], data @ weights, rtol=1e-4, atol=2e-5)
    types = {value.dtype.name.lower() for value in small.graph.initializers.values()}
    assert {a_type.replace("_", ""), dtype.replace("_", "")} <= types


@pytest.mark.parametrize("precision", KEPT)
def test_a_network_runs_and_stays_close(precision, tmp_path):
    model = model_of(CNN)
    feeds = samples_for(model, seed=7)
    small, record = quantized(model, f"precision={precision}")
    wanted = run_reference(model, feeds)
    assert compare(wanted, run_reference(small, feeds)).sqnr_db > KEPT[precision]
    assert record.statistics["quantized Conv"] == 3
    outputs, _ = optimized_in_onnx_runtime(small, feeds, tmp_path)
    assert compare(wanted, outputs).sqnr_db > KEPT[precision] - 3


@pytest.mark.parametrize(
    ("precision", "share"), [("int8", 0.3), ("a8w4", 0.18), ("fp8-e4m3", 0.3), ("a16w16", 0.55)]
)
def test_file_size(precision, share):
    text = "g (float[N,256] x, float[256,256] v, float[256,256] w) => (float[N,256] y) { h = MatMul(x, v)  y = MatMul(h, w) }"
    model = model_of(text)
    small, _ = quantized(model, f"precision={precision}")
    assert serialized_size(small) < share * serialized_size(model)


def pairs(model: ir.Model) -> list[str]:
    return [node.outputs[0].dtype.name for node in model.graph if node.op_type == "QuantizeLinear"]


def test_layers_of_different_precision():
    model = model_of(CNN)
    feeds = samples_for(model, seed=7)
    wanted = run_reference(model, feeds)
    plain, _ = quantized(model, "precision=int8")
    for layers in ('"Conv_2=a16w8"', '"Conv_2=a16w8;Gemm=float"', '"Conv_2=fp8-e4m3"', '"Conv_0=a8w4"'):
        mixed, record = quantized(model, f"layers={layers}")
        if "16" in layers:
            # The finer grid is the value's own; those who want the coarser one read a second pair.
            assert pairs(mixed).count("UINT16") == 1 and record.statistics["requantized activations"] == 1
        if "float" in layers:
            gemm = next(node for node in mixed.graph if node.op_type == "Gemm")
            assert gemm.inputs[1].producer() is None
        assert compare(wanted, run_reference(mixed, feeds)).sqnr_db > 14
    better, _ = quantized(
        model, '"layers"="Conv_0=a16w16;Conv_2=a16w16;Conv_6=a16w16"'.replace('"layers"', "layers")
    )
    assert (
        compare(wanted, run_reference(better, feeds)).sqnr_db
        > compare(wanted, run_reference(plain, feeds)).sqnr_db
    )


def test_moved_values_share_the_finest_grid():
    text = """g (float[N,8,4,4] x, float[8,8,1,1] u, float[8,8,1,1] v, float[8,8,1,1] w)
      => (float[N,8,4,4] y, float[N,8,4,4] z) {
        c = Conv(x, u)  r = Relu(c)  s = Transpose<perm=[0,1,3,2]>(r)  y = Conv(s, v)  z = Conv(s, w) }"""
    model = model_of(text)
    mixed, _ = quantized(model, 'layers="Conv_4=a16w8"')
    # r, s and z in 16 bits; x and y in 8, and s once more for Conv_3.
    assert sorted(pairs(mixed)) == ["UINT16", "UINT16", "UINT16", "UINT8", "UINT8", "UINT8"]
    feeds = samples_for(model)
    assert compare(run_reference(model, feeds), run_reference(mixed, feeds)).sqnr_db > 30


@pytest.mark.parametrize("precision", PRECISIONS)
def test_twice_changes_nothing(precision):
    once, _ = quantized(model_of(CNN), f"precision={precision}")
    again, record = quantized(once, f"precision={precision}")
    assert ir.to_proto(again).graph == ir.to_proto(once).graph
    assert "it is already quantized" in {entry.reason for entry in record.left_alone}


def test_tensorrt_wants_pairs_around_eight_bit_floats():
    model = model_of(CNN)
    small = optimize(
        model, "insert-qdq{target=cuda precision=fp8-e4m3}", calibration=[samples_for(model)]
    ).model
    kinds = [node.op_type for node in small.graph]
    # Pairs in front of the four layers, their weights dequantized, and nothing behind them.
    assert kinds.count("QuantizeLinear") == 4 and kinds.count("DequantizeLinear") == 8
    feeds = samples_for(model)
    other, _ = quantized(model, "precision=fp8-e4m3")
    np.testing.assert_array_equal(run_reference(small, feeds)["y"], run_reference(other, feeds)["y"])


def test_first_and_last_layers_stay_in_float_on_request():
    model = model_of(CNN)
    small, record = quantized(model, "ends=float")
    reasons = {entry.node: entry.reason for entry in record.left_alone}
    assert reasons["Conv_0"] == "it is a first layer" and reasons["Gemm_10"] == "it is a last layer"
    assert record.statistics["quantized Conv"] == 2
    assert (
        compare(run_reference(model, samples_for(model)), run_reference(small, samples_for(model))).sqnr_db
        > 30
    )


def own_table(tmp_path, **changes) -> str:
    import json

    data = TABLES["generic"].to_json() | changes
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(data))
    return str(path)


def test_tables_decide_about_ends_channels_and_operand_types(tmp_path):
    model = model_of(CNN)
    weighted = TABLES["generic"].to_json()["weighted"]
    table = own_table(tmp_path, first_layer="float", last_layer="float")
    record = optimize(
        model, f"insert-qdq{{target={table}}}", calibration=[samples_for(model)]
    ).report.records[0]
    assert {"Conv_0", "Gemm_10"} <= {entry.node for entry in record.left_alone}
    table = own_table(tmp_path, weighted=weighted | {"Conv": {**weighted["Conv"], "min_channels": 8}})
    record = optimize(
        model, f"insert-qdq{{target={table}}}", calibration=[samples_for(model)]
    ).report.records[0]
    left = record.left_alone[0]
    assert left.node == "Conv_0" and "it has 3 channels, fewer than the 8" in left.reason
    table = own_table(
        tmp_path, weighted=weighted | {"Gemm": {**weighted["Gemm"], "weights": {"dtype": "int4"}}}
    )
    small = optimize(model, f"insert-qdq{{target={table}}}", calibration=[samples_for(model)]).model
    assert small.graph.initializers["wf_quantized"].dtype == ir.DataType.INT4
    assert small.graph.initializers["w2_quantized"].dtype == ir.DataType.INT8


@pytest.mark.parametrize("dtype", ["int16", "uint16", "float8_e4m3fn"])
def test_tables_with_other_activations(dtype, tmp_path):
    model = model_of(CNN)
    table = own_table(tmp_path, activations={"dtype": dtype, "symmetric": dtype != "uint16", "bits": None})
    small = optimize(model, f"insert-qdq{{target={table}}}", calibration=[samples_for(model)]).model
    feeds = samples_for(model, seed=7)
    assert compare(run_reference(model, feeds), run_reference(small, feeds)).sqnr_db > 24


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("target=x86 precision=fp8-e4m3", "quantization table 'x86' has no fp8-e4m3; it has: int8, a16w8"),
        ('target=cuda layers="Gemm=a16w8"', "quantization table 'cuda' has no a16w8; it has: int8, a8w4"),
        ("layers=Conv", "option 'layers' wants REGEX=PRECISION;..., not 'Conv'"),
        ('layers="Conv=int3"', "names the precision 'int3'; there are: int8"),
        ('layers="(=int8"', r"'\(' is not a regular expression"),
        ("deviations=0", "option 'deviations' must be above 0"),
    ],
)
def test_mistakes_are_one_line(options, line):
    model = model_of(CNN)
    with pytest.raises(PassError, match=line) as error:
        optimize(model, f"insert-qdq{{{options}}}", calibration=[samples_for(model)])
    assert "\n" not in str(error.value)


def test_reduced_range_holds_for_asymmetric_weights_too():
    model = model_of(GEMM)
    small, _ = quantized(model, "symmetric_weights=false reduce_range=true")
    stored = small.graph.initializers["w_quantized"].const_value.numpy()
    assert stored.min() >= -64 and stored.max() <= 63


def test_clipping_four_bit_weights_is_never_worse():
    weights = np.random.default_rng(0).laplace(size=(40, 200)).astype(np.float32)
    grid = Grid.make("int4", symmetric=True)
    errors = []
    for scales in (weight_scales(weights, 0, grid), best_weight_scales(weights, 0, grid)):
        restored = quantize(weights, scales, 0, grid, 0).astype(np.float32) * scales[:, None]
        errors.append(np.square(restored - weights).sum(axis=1))
    assert (errors[1] <= errors[0] * 1.0001).all() and errors[1].sum() < 0.8 * errors[0].sum()


def test_a_selector_that_matches_nothing_is_told():
    model = model_of("g (float[N,8] x, float[8,8] w) => (float[N,8] y) { y = Gemm(x, w) }")
    options = 'insert-qdq{target=generic layers="Nothing.*=a16w8;Gemm=a16w8"}'
    record = optimize(model, options, calibration=[samples_for(model)]).report.records[0]
    assert record.notes == ["option 'layers': 'Nothing.*=a16w8' matches no node"]
