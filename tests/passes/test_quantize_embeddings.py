"""Embedding tables as integers: near the float rows, gathered as int8, left alone where that would not do."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.reference import run_reference
from graphwright.passes.optimize import optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from .quantization_models import model_of, optimized_in_onnx_runtime

TEXT = """g (int64[N,L] x, float[100,32] t, float[32,8] w) => (float[N,L,8] y) {
  e = Gather(t, x)  y = MatMul(e, w)
}"""
ROWS = """g (int64[N,L] x, float[100,32] t) => (float[N,L,32] y) { y = Gather(t, x) }"""


def tokens(low=0, seed=3):
    return {"x": np.random.default_rng(seed).integers(low, 100, (2, 7))}


def quantized(model, options="", feeds=None):
    feeds = feeds or tokens()
    return optimize(model, f"insert-qdq{{target=generic {options}}}", calibration=[feeds])


def stored_types(model):
    return {node.op_type: node.inputs[0].dtype for node in model.graph if node.name == "Gather_0"}


def test_rows_are_gathered_as_int8_and_onnx_runtime_keeps_it_so(tmp_path):
    model = model_of(TEXT)
    result = quantized(model)
    gather = next(node for node in result.model.graph if node.op_type == "Gather")
    assert gather.name == "Gather_0" and gather.inputs[0].dtype == ir.DataType.INT8
    assert not any(value.name == "t" for value in result.model.graph.initializers.values())
    feeds = tokens(seed=4)
    outputs, kernels = optimized_in_onnx_runtime(result.model, feeds, tmp_path)
    assert compare(run_reference(model, feeds), outputs).sqnr_db > 30
    assert "MatMulIntegerToFloat" in kernels or "QGemm" in kernels
    import onnx

    optimized = onnx.load(tmp_path / "optimized.onnx").graph
    tables = {each.name: each.data_type for each in optimized.initializer if list(each.dims) == [100, 32]}
    assert list(tables.values()) == [onnx.TensorProto.INT8]
    assert any(node.op_type == "Gather" and node.input[0] in tables for node in optimized.node)


@pytest.mark.parametrize("indices", ["int64[N,L] x", "int64[N] x", "int64 x", "int32[N,1,L] x"])
def test_indices_of_any_shape_and_sign(indices):
    rank = indices.count(",") + 1 if "[" in indices else 0
    out = ",".join("ABC"[:rank]) + ("," if rank else "")
    model = model_of(
        f"g ({indices}, float[100,32] t) => (float[{out}32] y) {{ e = Gather(t, x)  y = Identity(e) }}"
    )
    dtype = np.int32 if "int32" in indices else np.int64
    feeds = {"x": np.asarray(np.random.default_rng(0).integers(-100, 100, (2, 1, 3)[:rank]), dtype)}
    result = quantized(model, feeds=feeds)
    expected, found = run_reference(model, feeds)["y"], run_reference(result.model, feeds)["y"]
    assert found.shape == expected.shape
    assert compare({"y": expected}, {"y": found}).sqnr_db > 40


@given(
    st.integers(0, 2**31),
    st.sampled_from(["even", "rows", "columns", "zero rows", "huge", "tiny"]),
)
@settings(max_examples=20, deadline=None)
def test_each_number_is_half_a_step_off_at_most(seed, kind):
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(100, 32)).astype(np.float32)
    if kind == "rows":
        table *= np.exp(rng.normal(size=(100, 1)) * 3).astype(np.float32)
    if kind == "columns":
        table *= np.exp(rng.normal(size=(1, 32)) * 3).astype(np.float32)
    if kind == "zero rows":
        table[rng.random(100) < 0.5] = 0.0
    table *= np.float32({"huge": 1e30, "tiny": 1e-36}.get(kind, 1.0))
    model = model_of(ROWS, t=table)
    feeds = {"x": np.arange(100)[None]}
    result = quantized(model, feeds=feeds)
    found = run_reference(result.model, feeds)["y"][0]
    by_rows = np.abs(table).max(1, keepdims=True) / 254
    by_columns = np.abs(table).max(0, keepdims=True) / 254
    slack = np.finfo(np.float32).tiny + 1e-6 * np.abs(table)
    error = np.abs(found.astype(np.float64) - table)
    assert (error <= by_rows + slack).all() or (error <= by_columns + slack).all()
    assert not found[table.any(1) == 0].any()


def test_columns_share_scales_where_few_of_them_are_large():
    table = np.random.default_rng(0).normal(size=(100, 32)).astype(np.float32)
    table[:, 5] *= 200
    result = quantized(model_of(ROWS, t=table))
    last = next(node for node in result.model.graph if node.op_type == "DequantizeLinear")
    assert last.attributes.get_int("axis") == -1 and tuple(last.inputs[1].shape) == (32,)
    feeds = tokens()
    expected = table[feeds["x"]]
    found = run_reference(result.model, feeds)["y"]
    small = np.arange(32) != 5
    assert compare({"y": expected[..., small]}, {"y": found[..., small]}).sqnr_db > 40


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("e = Gather(t, x)  s = Sigmoid(e)  y = Mul(e, s)", "rotary embedding"),
        ("e = Gather<axis=1>(t, x)  y = Identity(e)", "row by row"),
    ],
)
def test_what_stays_in_float_is_told(body, reason):
    model = model_of(
        f"g (int64[N,L] x, float[100,32] t) => (float y) {{ {body} }}".replace("float y", "float[A,B,C] y")
    )
    feeds = {"x": np.zeros((2, 7), np.int64)}
    result = quantized(model, feeds=feeds)
    assert stored_types(result.model) == {"Gather": ir.DataType.FLOAT}
    assert any(reason in left.reason for left in result.report.records[0].left_alone)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=["nan", "inf", "minus inf"])
def test_tables_that_are_not_finite_stay(value):
    table = np.ones((100, 32), np.float32)
    table[3, 3] = value
    result = quantized(model_of(ROWS, t=table))
    assert stored_types(result.model) == {"Gather": ir.DataType.FLOAT}
    assert any("its table" in left.reason for left in result.report.records[0].left_alone)


def test_options_precisions_and_tables_decide():
    kinds = {
        "": ir.DataType.INT8,
        "precision=a16w16": ir.DataType.INT16,
        "embeddings=float": ir.DataType.FLOAT,
        'layers="Gather=float"': ir.DataType.FLOAT,
        'skip="Gather_0"': ir.DataType.FLOAT,
    }
    for options, dtype in kinds.items():
        assert stored_types(quantized(model_of(TEXT), options).model) == {"Gather": dtype}, options
    model = model_of(TEXT)
    for options, dtype in (("", ir.DataType.FLOAT), (" embeddings=quantize", ir.DataType.INT8)):
        result = optimize(model, f"insert-qdq{{target=cuda{options}}}", calibration=[tokens()])
        assert stored_types(result.model) == {"Gather": dtype}


def test_twice_changes_nothing_and_readers_share_one_table():
    text = TEXT.replace("y = MatMul(e, w)", "f = Gather(t, x)  s = Add(e, f)  y = MatMul(s, w)")
    once = quantized(model_of(text)).model
    stored = [value for value in once.graph.initializers.values() if value.dtype == ir.DataType.INT8]
    assert sum(value.const_value.size == 3200 for value in stored) == 1
    twice = quantized(once).model
    assert [node.op_type for node in twice.graph] == [node.op_type for node in once.graph]


def test_dynamic_quantization_does_the_same():
    model = model_of(TEXT.replace("float[32,8] w", "float[32,64] w").replace("L,8]", "L,64]"))
    feeds = tokens()
    result = optimize(model, "quantize-dynamic").model
    assert stored_types(result) == {"Gather": ir.DataType.INT8}
    assert compare(run_reference(model, feeds), run_reference(result, feeds)).sqnr_db > 30
    kept = optimize(model, "quantize-dynamic{embeddings=float}").model
    assert stored_types(kept) == {"Gather": ir.DataType.FLOAT}


TIED = """g (int64[N,L] x, float[100,32] t, float[32,32] w) => (float[N,L,100] y) {
  e = Gather(t, x)  h = MatMul(e, w)  u = Transpose<perm=[1,0]>(t)  y = MatMul(h, u)
}"""


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("insert-qdq{target=generic}", 8),
        ("quantize-dynamic", 8),
        ("quantize-weights{form=int8}", 8),
        ("quantize-weights{form=int4}", 4),
        ("quantize-weights{form=nf4}", 4),
    ],
)
def test_heads_that_share_their_weights_with_an_embedding(text, bits):
    model = model_of(TIED)
    feeds = tokens()
    result = optimize(model, text, calibration=[feeds])
    assert not result.report.records[0].left_alone
    stored = [value.const_value.nbytes for value in result.model.graph.initializers.values()]
    # Rows and columns, and scales: nothing of the table is left in float.
    assert sum(stored) < (2 * 3200 + 1024) * bits / 8 * 1.35 + 600
    assert not any(node.op_type == "Transpose" for node in result.model.graph)
    assert compare(run_reference(model, feeds), run_reference(result.model, feeds)).sqnr_db > 4 * bits - 4


def test_a_shared_head_that_stays_in_float_is_not_copied():
    model = model_of(TIED)
    result = optimize(model, 'insert-qdq{target=generic layers="MatMul_3=float"}', calibration=[tokens()])
    assert any(node.op_type == "Transpose" for node in result.model.graph)
    floats = [
        v.const_value.size for v in result.model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT
    ]
    assert floats.count(3200) == 1


def test_budgets_know_embeddings_as_layers():
    model = model_of(TEXT)
    text = 'quantize{budget="sqnr>=60dB" target=generic precisions="int8,a16w16,float"}'
    result = optimize(model, text, calibration=[tokens()])
    assert stored_types(result.model) == {"Gather": ir.DataType.INT16}
    assert compare(run_reference(model, tokens()), run_reference(result.model, tokens())).sqnr_db >= 60
    layers = result.report.records[0].details["budget"]["layers"]
    assert [row["node"] for row in layers] == ["Gather_0", "MatMul_1"]
