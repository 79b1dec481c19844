"""Products of two activations in 8 bits, which users may ask for: pairs, kernels, and what is left alone."""

import json

import numpy as np
import pytest
from graphwright.backends.target import host_target
from graphwright.backends.tvm.build import build
from graphwright.backends.tvm.lower import lower
from graphwright.backends.tvm.runtime import TvmProgram
from graphwright.ir.compare import compare
from graphwright.ir.errors import PassError
from graphwright.ir.reference import run_reference
from graphwright.ir.shapes import infer_shapes
from graphwright.passes.optimize import optimize
from graphwright.passes.quantization.tables import TABLES, find_table

from .quantization_models import model_of, optimized_in_onnx_runtime, samples_for

ATTENTION = """g (float[1,12,32] x, float[32,32] wq, float[32,32] wk, float[32,32] wv, float[32,32] wo,
    int64[4] heads, int64[3] whole, float[1] half) => (float[1,12,32] y)
  { q = MatMul(x, wq)  qh = Reshape(q, heads)  qt = Transpose<perm=[0,2,1,3]>(qh)
    k = MatMul(x, wk)  kh = Reshape(k, heads)  kt = Transpose<perm=[0,2,3,1]>(kh)
    v = MatMul(x, wv)  vh = Reshape(v, heads)  vt = Transpose<perm=[0,2,1,3]>(vh)
    s = MatMul(qt, kt)  h = Mul(s, half)  p = Softmax<axis=-1>(h)
    o = MatMul(p, vt)  ot = Transpose<perm=[0,2,1,3]>(o)  flat = Reshape(ot, whole)  y = MatMul(flat, wo) }"""
PRODUCTS = {"MatMul_9", "MatMul_12"}


def attention():
    return model_of(
        ATTENTION, heads=np.array([1, 12, 4, 8]), whole=np.array([1, 12, 32]), half=np.array([0.35])
    )


def quantized(options):
    model = attention()
    data = [samples_for(model, seed=seed) for seed in range(12)]
    result = optimize(model, f"insert-qdq{{{options}}}", calibration=data)
    return model, result.model, result.report.records[0]


def restored(model):
    """MatMuls whose operands all come from a DequantizeLinear."""
    return {
        node.name
        for node in model.graph
        if node.op_type == "MatMul"
        and all(
            each.producer() is not None and "Dequantize" in each.producer().op_type for each in node.inputs
        )
    }


@pytest.mark.parametrize("table", ["tvm", "x86-vnni", "generic", "arm", "cuda"])
def test_asked_for_both_operands_are_integers(table, tmp_path):
    model, found, record = quantized(f"target={table} products=quantize")
    assert restored(found) >= PRODUCTS
    assert not {entry.node for entry in record.left_alone} & PRODUCTS
    feeds = samples_for(model, seed=20)
    exact = run_reference(model, feeds)
    assert compare(exact, run_reference(found, feeds)).sqnr_db > 28
    if table in ("arm", "cuda"):
        return
    outputs, kernels = optimized_in_onnx_runtime(found, feeds, tmp_path)
    assert "MatMul" not in kernels and "FusedMatMul" not in kernels, kernels
    assert compare(exact, outputs).sqnr_db > 28


def test_by_default_they_stay_in_float_and_the_report_says_how_to_ask():
    _, found, record = quantized("target=tvm")
    assert not restored(found) & PRODUCTS
    reasons = {entry.node: entry.reason for entry in record.left_alone}
    assert all("products=quantize" in reasons[name] for name in PRODUCTS)


def test_a_table_of_the_users_may_ask(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**TABLES["tvm"].to_json(), "name": "mine", "products": "quantize"}))
    _, found, _ = quantized(f"target={path}")
    assert restored(found) >= PRODUCTS
    _, found, _ = quantized(f"target={path} products=float")
    assert not restored(found) & PRODUCTS
    path.write_text(json.dumps({**TABLES["tvm"].to_json(), "products": "integer"}))
    with pytest.raises(PassError, match="products is 'integer'"):
        find_table(str(path))


def test_selectors_and_precisions_hold_for_them():
    _, found, _ = quantized('target=tvm products=quantize layers="MatMul_9=float"')
    assert restored(found) & PRODUCTS == {"MatMul_12"}
    _, found, record = quantized("target=tvm products=quantize precision=a16w8")
    assert not restored(found) & PRODUCTS
    reasons = {entry.node: entry.reason for entry in record.left_alone}
    assert all("8 bits" in reasons[name] for name in PRODUCTS)


def test_a_second_run_changes_nothing():
    model, found, _ = quantized("target=tvm products=quantize")
    again = optimize(found, "insert-qdq{target=tvm products=quantize}", calibration=[samples_for(model)])
    assert [node.name for node in again.model.graph] == [node.name for node in found.graph]


def test_they_run_on_integers_on_tvm(tmp_path):
    model, found, _ = quantized("target=tvm products=quantize")
    infer_shapes(found)
    feeds, target = samples_for(model, seed=20), host_target()
    lowered = lower(found, target)
    kinds = [kernel.kind for kernel in lowered.kernels for _ in range(kernel.calls)]
    assert kinds.count("integer matmul") == 6 and "matmul" not in kinds, kinds
    build(lowered, target, tmp_path / "model.so")
    (result,) = TvmProgram(tmp_path / "model.so", lowered.weights).run([feeds["x"]])
    assert compare(*run_reference(found, feeds).values(), result).sqnr_db > 35
