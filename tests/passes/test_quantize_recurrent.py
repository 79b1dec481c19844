"""Quantization and recurrent layers: which forms their weights take, and who says that it leaves them."""

import numpy as np
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.diff import diff
from graphwright.ir.reference import run_reference
from graphwright.ir.save import serialized_size
from graphwright.ir.text import to_text
from graphwright.passes.optimize import optimize

from .quantization_models import model_of, optimized_in_onnx_runtime, samples_for

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
# By form: the least SQNR (dB) of the output of a layer of 64 units, 5 steps.
FORMS = {
    "int8": 38, "int8 symmetric=false": 38, "int4": 14, "int4 symmetric=false": 15, "int4 block=16": 14,
    "int2": 4, "ternary": 3, "binary": 1, "kmeans": 14, "power-of-two": 8, "nf4": 14, "fp4": 14,
    "fp8-e4m3": 25, "fp8-e5m2": 20, "float16": 60, "bfloat16": 45,
}  # fmt: skip


def layer(kind: str, hidden: int = 64, size: int = 48, extra: str = "", tail: str = ""):
    g = GATES[kind]
    operands, types = ("h, c, p", ", float[2,2,H] h, float[2,2,H] c, float[2,3H] p")
    if kind != "LSTM":
        operands, types = "h", ", float[2,2,H] h"
    text = f"""g (float[5,2,{size}] x, float[2,GH,{size}] w, float[2,GH,H] r, float[2,2GH] b, int32[2] n{types})
      => (float[5,2,2,{hidden}] y) {{
        y = {kind}<hidden_size={hidden}, direction="bidirectional"{extra}>(x, w, r, b, n, {operands}){tail} }}"""
    for name, count in (("2GH", 2 * g), ("3H", 3), ("GH", g), ("H]", 1)):
        text = text.replace(f",{name}", f",{count * hidden}" + ("]" if name[-1] == "]" else ""))
    return model_of(text, keep="x", n=np.array([5, 3]))


def sqnr(wanted: np.ndarray, found: np.ndarray) -> float:
    return 10.0 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("LSTM", ", clip=3.0, input_forget=1"),
        ("GRU", ", linear_before_reset=1"),
        ("GRU", ""),
        ("RNN", ""),
    ],
)
def test_every_form_runs_and_is_near(kind, extra, form, tmp_path):
    model = layer(kind, extra=extra)
    result = optimize(model, f"quantize-weights{{form={form}}}")
    feeds = samples_for(model)
    wanted = run_reference(model, feeds)["y"]
    found = run_reference(result.model, feeds)["y"]
    assert sqnr(wanted, found) > FORMS[form] - (4 if kind == "RNN" else 0)
    assert not result.report.records[0].left_alone
    assert result.report.records[0].statistics == {f"quantized {kind}": 2}
    optimized, _ = optimized_in_onnx_runtime(result.model, feeds, tmp_path)
    assert compare(found, optimized["y"]).max_rel <= 1e-4


@pytest.mark.parametrize(("form", "share"), [("int8", 0.27), ("int4", 0.16), ("nf4", 0.16), ("ternary", 0.1)])
def test_files_are_small_and_stay_so(form, share):
    model = layer("LSTM", 256, 128)
    quantized = optimize(model, f"quantize-weights{{form={form}}}").model
    assert serialized_size(quantized) <= share * serialized_size(model)
    simplified = optimize(quantized, "simplify,fold-batch-norm").model
    assert serialized_size(simplified) <= 1.01 * serialized_size(quantized)
    assert not diff(quantized, simplified).changed
    restored = "Gather" if form == "nf4" else "DequantizeLinear"
    assert to_text(simplified).count(restored) == 2


def test_every_gate_of_every_direction_has_its_own_scale():
    model = layer("GRU")
    model.graph.initializers["r"].const_value.numpy()[1, 70] *= 1000.0
    quantized = optimize(model, "quantize-weights{form=int8}").model
    scales = quantized.graph.initializers["r_scale"].const_value.numpy()
    assert scales.shape == (2, 192, 1)
    others = np.delete(scales.reshape(-1), 192 + 70)
    assert scales[1, 70, 0] > 100 * others.max()


def test_weights_that_are_small_or_computed_are_named():
    record = optimize(layer("RNN", 8, 3), "quantize-weights").report.records[0]
    assert [(e.op_type, e.reason) for e in record.left_alone] == [
        ("RNN", "its weights are 48 numbers, fewer than min_size=1024"),
        ("RNN", "its weights are 128 numbers, fewer than min_size=1024"),
    ]


@pytest.mark.parametrize("kind", GATES)
def test_passes_that_leave_recurrent_layers_say_so(kind):
    model = layer(kind)
    feeds = samples_for(model)
    (left,) = optimize(model, "quantize-dynamic").report.records[0].left_alone
    assert (left.op_type, left.reason) == (
        kind,
        "ONNX has no integer form of it; quantize-weights stores its weights in 8 bits or fewer",
    )
    (left,) = optimize(model, "insert-qdq{target=x86}", calibration=[feeds]).report.records[0].left_alone
    assert left.op_type == kind and left.reason.startswith("there is no integer kernel for it")


@pytest.mark.parametrize("repair", ["gptq", "hqq", "bias-correction", "ada-round"])
def test_repairs_name_them(repair):
    model = layer("LSTM")
    result = optimize(model, f"quantize-weights{{form=int4}},{repair}", calibration=[samples_for(model)])
    record = result.report.records[1]
    assert [(e.op_type, e.reason) for e in record.left_alone] == [
        ("LSTM", "its weights meet other inputs at every step; repair works on products and convolutions")
    ]
    assert not any("quantize first" in each for each in record.notes)


def test_static_quantization_around_a_layer_and_small_weights_in_it():
    text = """g (float[6,2,48] x, float[1,256,48] w, float[1,256,64] r, float[64,32] m) => (float[6,1,2,32] y) {
        s = LSTM<hidden_size=64>(x, w, r)  y = MatMul(s, m) }"""
    model = model_of(text)
    feeds = samples_for(model)
    pipeline = 'insert-qdq{target=x86},quantize-weights{form=int8 only="LSTM|GRU|RNN"}'
    result = optimize(model, pipeline, calibration=[feeds])
    assert result.model.graph.initializers["r_quantized"].dtype.name == "INT8"
    assert sqnr(run_reference(model, feeds)["y"], run_reference(result.model, feeds)["y"]) > 25
