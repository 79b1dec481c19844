"""Attention block by block: numbers against float64, every schedule, and how it is read out of graphs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import tvm
from graphwright.backends.target import resolve_target
from graphwright.backends.tvm.kernels.attention import attention
from graphwright.backends.tvm.kernels.attention_spec import AttentionSpec
from graphwright.backends.tvm.kernels.choices import Choices, choosing
from graphwright.backends.tvm.stack import lowering

SPECS = {
    "few": AttentionSpec(1, 2, 2, 5, 7, 8, 8, 0.3),
    "turned, shared keys": AttentionSpec(
        2, 4, 2, 33, 70, 20, 24, 0.3, 0.0, False, 0, None, True, True, True, True
    ),
    "causal": AttentionSpec(1, 3, 3, 40, 40, 16, 16, 0.25, causal=True),
    "everything": AttentionSpec(1, 2, 1, 65, 150, 9, 5, 0.3, 2.0, True, 85, (1, 2, 65, 150), q_inner=True),
    "mask of keys": AttentionSpec(2, 2, 2, 17, 100, 12, 40, 0.3, bias=(2, 1, 1, 100)),
    "mask of rows": AttentionSpec(2, 2, 2, 17, 31, 12, 8, 0.3, bias=(1, 1, 17, 31)),
    "one query": AttentionSpec(1, 4, 4, 1, 77, 16, 16, 0.25),
    "long": AttentionSpec(1, 1, 1, 3, 900, 64, 64, 0.1),
    "queries before all keys": AttentionSpec(1, 1, 1, 10, 20, 8, 8, 1.0, causal=True, offset=-5),
}
CHUNKED = {"key_blocks": 1, "query_tiles": 1}


def turned(array, inner):
    return array.transpose(0, 2, 1, 3) if inner else array


def reference(spec, q, k, v, bias):
    """The definition, in float64."""
    q, k, v = (
        turned(each, inner).astype("f8")
        for each, inner in ((q, spec.q_inner), (k, spec.k_inner), (v, spec.v_inner))
    )
    k, v = (np.repeat(each, spec.heads // spec.kv_heads, 1) for each in (k, v))
    scores = q @ k.transpose(0, 1, 3, 2) * spec.scale
    if spec.softcap:
        scores = np.tanh(scores / spec.softcap) * spec.softcap
    scores = scores + (0 if bias is None else bias)
    if spec.causal:
        scores = np.where(np.tril(np.ones(scores.shape[2:], bool), spec.offset), scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isinf(top), 0, top))
    total = weights.sum(-1, keepdims=True)
    return turned(weights / np.where(total == 0, 1, total) @ v, spec.out_inner)


def operands(spec, rng):
    def heads(count, length, size, inner):
        shape = (spec.batch, length, count, size) if inner else (spec.batch, count, length, size)
        return rng.standard_normal(shape, dtype="f4")

    bias = None
    if spec.bias is not None:
        bias = rng.standard_normal(spec.bias, dtype="f4")
        bias[rng.random(spec.bias) < 0.3] = -np.inf
        if spec.bias[2] > 1:
            bias[:, :, 1] = -np.inf  # every key of this query is hidden
    return (
        heads(spec.heads, spec.rows, spec.size, spec.q_inner),
        heads(spec.kv_heads, spec.columns, spec.size, spec.k_inner),
        heads(spec.kv_heads, spec.columns, spec.value_size, spec.v_inner),
        bias,
    )


@pytest.mark.parametrize("given", [{}, CHUNKED], ids=["one chunk", "many chunks"])
def test_numbers(given):
    target, rng = resolve_target("host"), np.random.default_rng(0)
    functions = {}
    for i, spec in enumerate(SPECS.values()):
        with choosing(Choices({"tiles": 0, **given})):
            functions[f"f{i}"] = attention(spec, None, target).func.with_attr("global_symbol", f"f{i}")
    library = tvm.compile(
        tvm.IRModule(functions), target=tvm.target.Target(target.to_tvm()), tir_pipeline=lowering()
    )
    for i, (name, spec) in enumerate(SPECS.items()):
        q, k, v, bias = operands(spec, rng)
        out = tvm.runtime.tensor(np.full(spec.out_shape, np.nan, "f4"))
        given_arrays = [q, k, v] if bias is None else [q, k, v, bias]
        library[f"f{i}"](*(tvm.runtime.tensor(each) for each in given_arrays), out)
        expected = reference(spec, q, k, v, bias)
        assert np.abs(out.numpy() - expected).max() <= 2e-6 * np.abs(expected).max(), name


def test_scores_are_held_for_a_few_queries_at_a_time():
    spec = AttentionSpec(1, 2, 2, 4096, 4096, 64, 64, 0.125)
    target = resolve_target("x86-64-v3")
    with choosing(Choices()) as choices:
        kernel = attention(spec, None, target)
    queries, keys = (int(each) for each in kernel.note.split(", ")[1].split(" scores")[0].split(" x "))
    assert queries <= 32 and 4 * queries * keys <= target.l2_bytes // 2
    assert {"tile", "value_tile", "query_tiles", "key_blocks"} <= set(choices.asked)


def graph(text):
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23]>\n{text}')


FLAT = """g (float[2,6,32] q, float[2,9,16] k, float[2,9,16] v, bool[6,9] mask) => (float[2,6,32] y) {
  y = Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, v, mask) }"""
TURNED = """g (float[1,40,3,8] a, float[1,40,3,8] b, float[1,40,3,8] c) => (float[1,40,24] y)
<int64[3] flat = {1, 40, 24}> {
  q = Transpose<perm = [0, 2, 1, 3]>(a) k = Transpose<perm = [0, 2, 1, 3]>(b) v = Transpose<perm = [0, 2, 1, 3]>(c)
  o = Attention<is_causal = 1>(q, k, v) t = Transpose<perm = [0, 2, 1, 3]>(o) y = Reshape(t, flat) }"""
CACHED = """g (float[1,4,5,8] q, float[1,2,5,8] k, float[1,2,5,8] v, float[1,2,7,8] pk, float[1,2,7,8] pv)
    => (float[1,4,5,8] y, float[1,2,12,8] nk, float[1,2,12,8] nv) {
  y, nk, nv = Attention<is_causal = 1, softcap = 3.0>(q, k, v, , pk, pv) }"""
SAME = """g (float[1,2,9,8] x) => (float[1,2,9,8] y) { y = Attention(x, x, x) }"""


@pytest.mark.parametrize("text", [FLAT, TURNED, CACHED, SAME], ids=["flat", "turned", "cached", "same"])
def test_graphs(through_tvm, text):
    model = graph(text)
    rng = np.random.default_rng(3)
    feeds = {
        value.name: rng.random(value.shape.numpy()) < 0.7
        if value.dtype == ir.DataType.BOOL
        else rng.standard_normal(value.shape.numpy(), dtype="f4")
        for value in model.graph.inputs
    }
    if "mask" in feeds and feeds["mask"].dtype == bool:
        feeds["mask"][:, 0] = True
    outputs, expected, lowered = through_tvm(model, feeds)
    kernels = [kernel.kind for kernel in lowered.kernels]
    assert "blockwise attention" in kernels
    assert not {"matmul", "softmax"} & set(kernels)
    for name, wanted in expected.items():
        np.testing.assert_allclose(outputs[name], wanted, atol=2e-5, rtol=1e-4)
    if text is TURNED:
        assert kernels == ["blockwise attention"]


def test_what_the_kernel_does_not_serve_stays_in_parts(through_tvm):
    scores = """g (float[1,2,6,8] q, float[1,2,6,8] k, float[1,2,6,8] v) => (float[1,2,6,8] y, float[1,2,6,6] s) {
      y, , , s = Attention(q, k, v) }"""
    single = """g (float[1,8,1,8] q, float[1,2,6,8] k, float[1,2,6,8] v) => (float[1,8,1,8] y) {
      y = Attention(q, k, v) }"""
    for text in (scores, single):
        outputs, expected, lowered = through_tvm(graph(text))
        assert "blockwise attention" not in {kernel.kind for kernel in lowered.kernels}
        for name, wanted in expected.items():
            np.testing.assert_allclose(outputs[name], wanted, atol=1e-5)
