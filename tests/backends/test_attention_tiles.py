"""Attention on tile registers: numbers against float64 for all shapes and divisions, and the code that is made."""

import re
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import tvm
from graphwright.backends.target import resolve_target
from graphwright.backends.tvm.kernels.attention import attention
from graphwright.backends.tvm.kernels.attention_spec import AttentionSpec
from graphwright.backends.tvm.kernels.attention_tile_plan import plan_tiles
from graphwright.backends.tvm.kernels.attention_tiles import attention_on_tiles
from graphwright.backends.tvm.kernels.choices import Choices, choosing
from graphwright.backends.tvm.kernels.tile_registers import BF16X3, BF16X6
from graphwright.backends.tvm.stack import lowering
from hypothesis import given, settings
from hypothesis import strategies as st

from .test_blockwise import CACHED, FLAT, SPECS, TURNED, graph, operands, reference

AMX = resolve_target("sapphirerapids")
MORE = {
    "image": AttentionSpec(1, 3, 3, 197, 197, 64, 64, 0.125, q_inner=True, k_inner=True, v_inner=True),
    "windows": AttentionSpec(20, 3, 3, 49, 49, 32, 32, 0.18, bias=(1, 3, 49, 49), out_inner=True),
    "one key": AttentionSpec(2, 1, 1, 2, 1, 1, 1, 1.0),
    "few keys are seen": AttentionSpec(1, 2, 1, 18, 90, 33, 81, 0.2, causal=True),
    "parts of a head": AttentionSpec(1, 1, 1, 150, 40, 16, 100, 0.2, causal=True, offset=3),
}
FEW = ("few", "one query", "long", "causal", "mask of rows", "queries before all keys")
"""Left to the property, or no work for registers of rows."""
BOUND = {2: 2e-5, 3: 2e-6}
"""Error relative to the largest result, by the parts that float32 is split into."""
here = pytest.mark.skipif(not AMX.runs_here, reason=f"needs AMX: {AMX.why_not_here()}")


def built(functions, target=AMX):
    named = {name: func.with_attr("global_symbol", name) for name, func in functions.items()}
    return tvm.compile(
        tvm.IRModule(named), target=tvm.target.Target(target.to_tvm()), tir_pipeline=lowering()
    )


def on_tiles(spec, given=(), parts=2):
    with choosing(Choices({"tiles": 1, **dict(given)})):
        return attention_on_tiles(
            spec, None, replace(plan_tiles(spec, AMX), format={2: BF16X3, 3: BF16X6}[parts])
        )


def error(function, spec, given_operands):
    q, k, v, bias = given_operands
    out = tvm.runtime.tensor(np.full(spec.out_shape, np.nan, "f4"))
    arrays = [q, k, v] if bias is None else [q, k, v, bias]
    function(*map(tvm.runtime.tensor, arrays), out)
    expected = reference(spec, q, k, v, bias)
    return np.abs(out.numpy() - expected).max() / max(np.abs(expected).max(), 1e-30)


@here
@pytest.mark.parametrize(
    ("given", "parts"),
    [({}, 2), ({"key_blocks": 1, "query_tiles": 2}, 3)],
    ids=["one chunk, two parts", "many chunks, three parts"],
)
def test_numbers(given, parts):
    specs = {name: spec for name, spec in (SPECS | MORE).items() if name not in FEW}
    functions = {f"f{i}": on_tiles(spec, given, parts).func for i, spec in enumerate(specs.values())}
    library, rng = built(functions), np.random.default_rng(0)
    for i, (name, spec) in enumerate(specs.items()):
        assert error(library[f"f{i}"], spec, operands(spec, rng)) <= BOUND[parts], name


@st.composite
def specs(draw):
    rows, columns = draw(st.integers(2, 70)), draw(st.integers(1, 140))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    batch, heads = draw(st.integers(1, 2)), kv_heads * group
    sizes = st.one_of(st.integers(1, 80), st.sampled_from([16, 32, 64]))
    whole = (batch, heads, rows, columns)
    bias = draw(st.none() | st.tuples(*(st.sampled_from([1, size]) for size in whole[:-1]), st.just(columns)))
    causal = draw(st.booleans())
    return AttentionSpec(
        batch,
        heads,
        kv_heads,
        rows,
        columns,
        draw(sizes),
        draw(sizes),
        0.2,
        draw(st.sampled_from([0.0, 2.0])),
        causal,
        draw(st.integers(1 - rows, columns)) if causal else 0,
        bias,
        *(draw(st.booleans()) for _ in range(4)),
    )


@here
@settings(max_examples=8, deadline=None)
@given(specs(), st.integers(1, 5), st.integers(1, 4), st.sampled_from([2, 3]))
def test_every_shape(spec, key_blocks, query_tiles, parts):
    kernel = on_tiles(spec, {"key_blocks": key_blocks, "query_tiles": query_tiles}, parts)
    library = built({"attention": kernel.func})
    assert error(library["attention"], spec, operands(spec, np.random.default_rng(spec.rows))) <= BOUND[parts]


@here
def test_masks_of_the_lowest_number_are_no_infinities():
    """Where such a mask hides every key, all of them weigh the same; hidden keys weigh nothing elsewhere."""
    spec = AttentionSpec(1, 2, 2, 20, 40, 16, 16, 0.25, bias=(1, 1, 20, 40))
    q, k, v, bias = operands(spec, np.random.default_rng(1))
    bias = np.where(np.isinf(bias), np.finfo("f4").min, 0).astype("f4")
    library = built({"attention": on_tiles(spec).func})
    assert (bias[0, 0, 1] < -1e38).all()
    assert error(library["attention"], spec, (q, k, v, bias)) <= BOUND[2]


@here
def test_large_scores_and_values():
    spec = AttentionSpec(1, 1, 1, 40, 70, 16, 16, 0.25)
    q, k, v, _ = operands(spec, np.random.default_rng(2))
    library = built({"attention": on_tiles(spec, parts=3).func})
    assert error(library["attention"], spec, (q * 1e3, k, v * 1e30, None)) <= 1e-3


RESIDUAL = """g (float[1,3,40,8] q, float[1,3,40,8] k, float[1,3,40,8] v, float[1,3,40,8] r) => (float[1,3,40,8] y) {
  a = Attention(q, k, v) s = Add(a, r) y = Relu(s) }"""


@here
@pytest.mark.parametrize("text", [FLAT, TURNED, CACHED, RESIDUAL], ids=["flat", "turned", "cached", "tail"])
def test_graphs(through_tvm, text):
    model, rng = graph(text), np.random.default_rng(3)
    feeds = {
        value.name: rng.random(value.shape.numpy()) < 0.7
        if value.dtype == ir.DataType.BOOL
        else rng.standard_normal(value.shape.numpy(), dtype="f4")
        for value in model.graph.inputs
    }
    outputs, expected, lowered = through_tvm(
        model, feeds, target="sapphirerapids", schedules=lambda _workload: {"tiles": 1}
    )
    assert any("attention tdpbf16ps" in kernel.note for kernel in lowered.kernels)
    for name, wanted in expected.items():
        np.testing.assert_allclose(outputs[name], wanted, atol=2e-5 * np.abs(wanted).max())


def test_the_code_is_products_of_registers_and_vectors():
    spec = AttentionSpec(1, 2, 2, 64, 197, 64, 64, 0.125, causal=True, offset=133)
    code = built({"attention": on_tiles(spec).func}).mod.inspect_source("asm")
    names = re.findall(r"^\s+(v?[a-z0-9]+)\s", code, re.MULTILINE)
    assert names.count("tdpbf16ps") >= 24 and names.count("tdpbf16ps") % 12 == 0
    assert names.count("ldtilecfg") == names.count("tilerelease") == 1
    scalars = [name for name in names if name in ("vmulss", "vaddss", "vsubss", "vfmadd213ss", "vmaxss")]
    # One maximum and one sum per row end in a scalar.
    assert len(scalars) <= 4, scalars
    assert "exp" not in set(re.findall(r"callq?\s+(\w+)", code))


def test_what_it_is_chosen_for():
    many = AttentionSpec(1, 6, 6, 197, 197, 64, 64, 0.125)
    for spec, target, on in (
        (many, "sapphirerapids", True),
        (replace(many, rows=1), "sapphirerapids", False),
        (replace(many, rows=8, columns=16), "sapphirerapids", False),
        (many, "sapphirerapids,-amx-bf16", False),
        (many, "x86-64-v4", False),
    ):
        note = attention(spec, None, resolve_target(target)).note
        assert ("tdpbf16ps x3" in note) == on, (spec, target)


def test_it_can_be_switched_off():
    spec = AttentionSpec(1, 6, 6, 197, 197, 64, 64, 0.125)
    with choosing(Choices({"tiles": 0})) as choices:
        assert "tdpbf16ps" not in attention(spec, None, AMX).note
    assert choices.asked["tiles"].analytic == 1


@pytest.mark.parametrize("cores", [1, 2, 7, 64])
@given(st.integers(2, 3000), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_every_query_is_in_a_block_and_all_cores_have_work(cores, rows, heads, group, causal):
    spec = AttentionSpec(1, heads * group, heads, rows, rows, 64, 64, 0.125, causal=causal)
    with choosing(Choices({"tiles": 1})):
        plan = plan_tiles(spec, replace(AMX, cores=cores))
    assert plan.own <= min(16, rows) and plan.tiles % plan.down == 0
    assert plan.own * plan.tiles * plan.blocks >= rows
    assert plan.items == group * plan.blocks and plan.kept * plan.parts >= plan.items
    assert plan.chunk * plan.chunks >= plan.columns and plan.chunk % 32 == 0
    busy = -(-plan.tasks // plan.run)
    assert 1.1 * busy >= cores or plan.parts == plan.items
