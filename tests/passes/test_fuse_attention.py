"""fuse-attention: every spelling becomes the standard operator with the same numbers, or says why not."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import run_reference
from graphwright.ir.shapes import infer_shapes
from graphwright.passes.equivalence import check_equivalent
from graphwright.passes.optimize import optimize

LOW = float(np.finfo(np.float32).min)


def model_of(text: str, **constants) -> ir.Model:
    """Parses a graph; inputs that `constants` gives values for become initializers."""
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]>\n' + text)
    graph = model.graph
    for value in [value for value in graph.inputs if value.name in constants]:
        graph.inputs.remove(value)
        array = np.asarray(constants[value.name], value.dtype.numpy())
        value.const_value = ir.tensor(array, name=value.name)
        value.shape = ir.Shape(array.shape)
        graph.register_initializer(value)
    for i, node in enumerate(graph):
        node.name = f"{node.op_type}_{i}"
    infer_shapes(model)
    return model


def fuse(model: ir.Model, pipeline: str = "fuse-attention", inputs=None):
    result = optimize(model, pipeline)
    if inputs is None and model.graph.inputs[0].dtype == ir.DataType.FLOAT16:
        # Large inputs overflow in the product, but not in Attention, which scales its operands first.
        inputs = [random_inputs(model, seed=seed) for seed in range(3)]
    found = check_equivalent(model, result.model, inputs=inputs)
    assert found.passed, found
    return result.model, [one.reason for record in result.report.records for one in record.left_alone]


def types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Attention"]


def feeds_of(model: ir.Model, **given) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    drawn = {v.name: rng.normal(size=v.shape.numpy()) for v in model.graph.inputs if v.name not in given}
    return {**{name: array.astype(np.float32) for name, array in drawn.items()}, **given}


def spelled(
    scores: str, *, q="2,4,5,8", k="2,4,6,8", v="2,4,6,3", kt="0,1,3,2", more="", dtype="float"
) -> str:
    """The text of an attention whose scores are made from `raw` by `scores` and end in `s`."""
    inputs = f"{dtype}[{q}] q, {dtype}[{k}] k, {dtype}[{v}] v{', ' if more else ''}{more}"
    return f"""g ({inputs}) => ({dtype} y) {{
        kt = Transpose <perm = [{kt}]> (k)
        raw = MatMul (q, kt)
        {scores}
        p = Softmax <axis = -1> (s)
        y = MatMul (p, v)
    }}"""


@pytest.mark.parametrize(
    ("scores", "scale"),
    [
        ("s = Mul (raw, c)", 0.25),
        ("s = Mul (c, raw)", 0.25),
        ("s = Div (raw, c)", 4.0),
        ("s = Identity (raw)", 1.0),
        ("t = Mul (raw, c)\n s = Mul (t, c)", 0.0625),
        ("t = Identity (raw)\n s = Mul (t, c)", 0.25),
    ],
)
def test_constant_factors_of_the_scores_become_the_scale(scores, scale):
    fused, _ = fuse(model_of(spelled(scores, more="float c"), c=0.25))
    assert types(fused) == ["Attention"]
    assert attentions(fused)[0].attributes.get_float("scale") == pytest.approx(scale)


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_factors_of_queries_and_keys_become_the_scale(dtype):
    text = f"""g ({dtype}[2,5,4,8] q, {dtype}[2,6,4,8] k, {dtype}[2,4,6,8] v, {dtype}[1] c) => ({dtype} y) {{
        qs = Mul (q, c)
        qh = Transpose <perm = [0, 2, 1, 3]> (qs)
        kt = Transpose <perm = [0, 2, 3, 1]> (k)
        ks = Mul (kt, c)
        s = MatMul (qh, ks)
        p = Softmax (s)
        y = MatMul (p, v)
    }}"""
    fused, _ = fuse(model_of(text, c=[0.5]))
    assert types(fused) == ["Transpose", "Transpose", "Attention"]
    assert attentions(fused)[0].attributes.get_float("scale") == pytest.approx(0.25)


THROUGH_VIEWS = """g (float[2,4,6,8] q, float[2,4,6,8] k, float[2,4,6,3] v, int64[3] one, int64[4] two) => (float y) {
    flat = Reshape (k, one)
    turned = Transpose <perm = [0, 2, 1]> (flat)
    kt = Reshape (turned, two)
    s = MatMul (q, kt)
    p = Softmax (s)
    y = MatMul (p, v)
}"""


def test_keys_transposed_through_views_as_torch_spells_it():
    fused, _ = fuse(model_of(THROUGH_VIEWS, one=[-1, 6, 8], two=[2, 4, 8, 6]))
    assert types(fused) == ["Attention"]


def test_a_view_that_mixes_heads_is_no_transpose():
    fused, _ = fuse(model_of(THROUGH_VIEWS, one=[4, 12, 8], two=[2, 4, 8, 6]))
    # The keys stay as they are made and are transposed once more.
    assert types(fused) == ["Reshape", "Transpose", "Reshape", "Transpose", "Attention"]


def test_a_factor_per_head_goes_to_the_queries():
    text = spelled("s = Mul (raw, c)", more="float[4,1,1] c")
    fused, _ = fuse(model_of(text, c=np.arange(1, 5).reshape(4, 1, 1)))
    assert types(fused) == ["Mul", "Attention"]
    assert attentions(fused)[0].attributes.get_float("scale") == 1.0


MASKS = ["5,6", "1,6", "5,1", "6", "2,1,5,6", "1,4,5,6", "2,4,5,6", "2,1,1,6", "4,5,6", "4,1,1"]


@pytest.mark.parametrize("shape", MASKS)
@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_masks_of_every_broadcast_are_added(shape, dtype):
    more = f"{dtype} c, {dtype}[{shape}] m"
    fused, _ = fuse(model_of(spelled("t = Mul (raw, c)\n s = Add (t, m)", more=more, dtype=dtype), c=0.5))
    (node,) = attentions(fused)
    assert list(node.inputs[3].shape)[-2:] == [5, 6]


@pytest.mark.parametrize(
    "scores", ["t = Add (raw, m)\n s = Mul (t, c)", "s = Sub (raw, m)", "s = Add (m, raw)"]
)
def test_masks_scaled_subtracted_or_in_front(scores):
    fused, _ = fuse(model_of(spelled(scores, more="float c, float[5,6] m"), c=0.5))
    assert len(attentions(fused)) == 1


@pytest.mark.parametrize("scores", ["s = Where (m, raw, f)", "n = Not (m)\n s = Where (n, f, raw)"])
@pytest.mark.parametrize("fill", [LOW, -1e9])
def test_conditions_with_a_finite_fill_keep_rows_without_keys(scores, fill):
    """A row without any key has equal weights."""
    model = model_of(spelled(scores, more="bool[2,1,5,6] m, float f"), f=fill)
    fused, _ = fuse(model)
    assert len(attentions(fused)) == 1
    keep = np.random.default_rng(1).random((2, 1, 5, 6)) > 0.5
    keep[0, 0, 2] = False
    assert check_equivalent(model, fused, inputs=[feeds_of(model, m=keep)]).passed


def test_an_additive_mask_of_the_lowest_number_keeps_rows_without_keys():
    model = model_of(spelled("s = Add (raw, m)", more="float[2,1,5,6] m"))
    fused, _ = fuse(model)
    assert len(attentions(fused)) == 1
    mask = np.where(np.random.default_rng(1).random((2, 1, 5, 6)) > 0.5, 0, LOW).astype(np.float32)
    mask[0, 0, 2] = LOW
    assert check_equivalent(model, fused, inputs=[feeds_of(model, m=mask)]).passed


@pytest.mark.parametrize("shape", [(2, 1, 5, 6), (5, 6), (2, 1, 1, 6), (6,)])
@pytest.mark.parametrize("scores", ["s = Where (m, raw, f)", "t = Where (m, z, f)\n s = Add (raw, t)"])
def test_rows_that_lose_all_keys_to_infinity_stay_nan(shape, scores):
    more = f"bool[{','.join(map(str, shape))}] m, float f, float z"
    model = model_of(spelled(scores, more=more), f=-np.inf, z=0)
    fused, _ = fuse(model)
    assert len(attentions(fused)) == 1
    keep = np.random.default_rng(1).random(shape) > 0.3
    keep.reshape(-1, 6)[0] = False
    feeds = feeds_of(model, m=keep)
    assert np.isnan(run_reference(model, feeds)["y"]).any()
    assert check_equivalent(model, fused, inputs=[feeds]).passed
    zero = optimize(model, "fuse-attention{masked_rows=zero}").model
    assert np.isfinite(run_reference(zero, feeds)["y"]).all()
    assert not check_equivalent(model, zero, inputs=[feeds]).passed
    assert "ReduceMax" not in types(zero)


def test_infinite_fills_cost_nothing_where_every_row_keeps_a_key():
    keep = np.random.default_rng(3).random((5, 6)) > 0.5
    keep[:, 3] = True
    text = spelled("s = Where (m, raw, f)", more="bool[5,6] m, float f")
    assert types(fuse(model_of(text, f=-np.inf, m=keep))[0]) == ["Attention"]
    keep[2] = False
    assert "ReduceMax" in types(fuse(model_of(text, f=-np.inf, m=keep))[0])


GUARD = "p0 = Softmax <axis = -1> (s)\n bad = IsNaN (p0)\n p = Where (bad, zero, p0)"


def guarded(scores: str, more: str) -> str:
    return spelled(scores, more=f"{more}, float zero").replace("p = Softmax <axis = -1> (s)", GUARD)


@pytest.mark.parametrize("scores", ["s = Where (m, raw, f)", "t = Where (m, zero, f)\n s = Add (raw, t)"])
def test_weights_guarded_against_nan(scores):
    fused, _ = fuse(model_of(guarded(scores, "bool[2,1,5,6] m, float f"), f=-np.inf, zero=0))
    assert types(fused) == ["Attention"]
    assert attentions(fused)[0].inputs[3].name == "m"


def test_guarded_weights_with_an_unknown_mask_are_left():
    fused, left = fuse(model_of(guarded("s = Add (raw, m)", "float[5,6] m"), zero=0))
    assert not attentions(fused)
    assert any("whether its mask holds -infinity" in reason for reason in left)


@pytest.mark.parametrize("fill", [-np.inf, LOW, -1e9])
@pytest.mark.parametrize(
    ("scores", "mask"),
    [
        ("s = Where (m, raw, f)", np.tril(np.ones((1, 1, 6, 6), bool))),
        ("s = Where (m, f, raw)", np.triu(np.ones((6, 6), bool), 1)),
        ("t = Where (m, z, f)\n s = Add (raw, t)", np.tril(np.ones((6, 6), bool))),
    ],
)
def test_constant_causal_masks_become_is_causal(scores, mask, fill):
    shape = ",".join(map(str, mask.shape))
    text = spelled(scores, q="2,4,6,8", more=f"bool[{shape}] m, float f, float z")
    fused, _ = fuse(model_of(text, m=mask, f=fill, z=0))
    (node,) = attentions(fused)
    assert node.attributes.get_int("is_causal") == 1
    assert len(node.inputs) == 3


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_shifted_triangle_is_a_mask_and_not_causal(shift):
    text = spelled("s = Where (m, raw, f)", q="2,4,6,8", more="bool[6,6] m, float f")
    fused, _ = fuse(model_of(text, m=np.tril(np.ones((6, 6), bool), shift), f=LOW))
    (node,) = attentions(fused)
    assert node.attributes.get_int("is_causal", 0) == 0
    assert node.inputs[3] is not None


RANGES = "r = Range (zero, n0, one)\n row = Unsqueeze (r, second)\n column = Unsqueeze (r, first)\n"


def of_unknown_length(mask: str, fill: float) -> ir.Model:
    text = """g (float[b,4,n,8] q, float[b,4,n,8] k, float[b,4,n,8] v, int64 zero, int64 one, float f, float c,
        float z, int64[1] first, int64[1] second, bool on) => (float y) {
        count = Shape <start = 2, end = 3> (q)
        n0 = Squeeze (count)
        kt = Transpose <perm = [0, 1, 3, 2]> (k)
        raw = MatMul (q, kt)
        t = Mul (raw, c)
        MASK
        p = Softmax <axis = -1> (s)
        y = MatMul (p, v)
    }""".replace("MASK", mask)
    return model_of(text, zero=0, one=1, f=fill, c=0.35, z=0, first=[0], second=[1], on=True)


@pytest.mark.parametrize(
    "mask",
    [
        RANGES + "hide = Greater (column, row)\n m = Where (hide, f, z)\n s = Add (t, m)",
        RANGES + "keep = GreaterOrEqual (row, column)\n s = Where (keep, t, f)",
        RANGES + "hide = Less (row, column)\n keep = Not (hide)\n s = Where (keep, t, f)",
        "both = Concat <axis = 0> (count, count)\n ones = Expand (on, both)\n"
        "keep = Trilu <upper = 0> (ones)\n s = Where (keep, t, f)",
    ],
)
@pytest.mark.parametrize("fill", [-np.inf, LOW])
def test_causal_masks_of_unknown_length(mask, fill):
    fused, _ = fuse(of_unknown_length(mask, fill), "fuse-attention,eliminate-dead")
    assert types(fused) == ["Attention"]
    assert attentions(fused)[0].attributes.get_int("is_causal") == 1


@pytest.mark.parametrize(
    "mask",
    [
        RANGES + "keep = Greater (row, column)\n s = Where (keep, t, f)",
        RANGES + "keep = GreaterOrEqual (column, row)\n s = Where (keep, t, f)",
        RANGES + "hide = GreaterOrEqual (column, row)\n s = Where (hide, f, t)",
    ],
)
def test_other_comparisons_are_masks(mask):
    fused, _ = fuse(of_unknown_length(mask, LOW), "fuse-attention,eliminate-dead")
    (node,) = attentions(fused)
    assert node.attributes.get_int("is_causal", 0) == 0
    assert node.inputs[3] is not None


def test_soft_capped_scores_then_a_mask():
    scores = "a = Mul (raw, c)\n d = Div (a, cap)\n h = Tanh (d)\n u = Mul (h, cap)\n s = Add (u, m)"
    fused, _ = fuse(model_of(spelled(scores, more="float c, float cap, float[5,6] m"), c=0.7, cap=2.5))
    (node,) = attentions(fused)
    assert node.attributes.get_float("softcap") == pytest.approx(2.5)
    assert node.attributes.get_float("scale") == pytest.approx(0.7)


def test_a_cap_behind_the_mask_is_left():
    scores = "a = Add (raw, m)\n d = Div (a, cap)\n h = Tanh (d)\n s = Mul (h, cap)"
    fused, left = fuse(model_of(spelled(scores, more="float cap, float[5,6] m"), cap=2.5))
    assert not attentions(fused)
    assert "the scores are capped behind the mask" in left


def repeated(axis: int) -> ir.Model:
    text = """g (float[2,4,5,8] q, float[2,2,6,8] k, float[2,2,6,3] v, int64[1] at, int64[5] wide, int64[4] flat,
        int64[5] wide_v, int64[4] flat_v) => (float y) {
        k1 = Unsqueeze (k, at)
        k2 = Expand (k1, wide)
        kr = Reshape (k2, flat)
        v1 = Unsqueeze (v, at)
        v2 = Expand (v1, wide_v)
        vr = Reshape (v2, flat_v)
        kt = Transpose <perm = [0, 1, 3, 2]> (kr)
        s = MatMul (q, kt)
        p = Softmax <axis = -1> (s)
        y = MatMul (p, vr)
    }"""
    shapes = {
        "flat": [2, 4, 6, 8],
        "flat_v": [2, 4, 6, 3],
        "wide": [2, 2, 2, 6, 8],
        "wide_v": [2, 2, 2, 6, 3],
    }
    return model_of(text, at=[axis], **shapes)


def test_repeated_heads_become_grouped_queries():
    fused, _ = fuse(repeated(2))
    assert types(fused) == ["Attention"]
    assert [value.name for value in attentions(fused)[0].inputs] == ["q", "k", "v"]


def test_heads_tiled_in_the_other_order_stay_as_they_are():
    fused, _ = fuse(repeated(1))
    (node,) = attentions(fused)
    assert node.inputs[1].producer().op_type == "Reshape"


@pytest.mark.parametrize(("indices", "grouped"), [([0, 0, 1, 1], True), ([0, 1, 0, 1], False)])
def test_heads_gathered_twice_each(indices, grouped):
    text = """g (float[2,4,5,8] q, float[2,2,6,8] k, float[2,2,6,3] v, int64[4] twice) => (float y) {
        kr = Gather <axis = 1> (k, twice)
        vr = Gather <axis = 1> (v, twice)
        kt = Transpose <perm = [0, 1, 3, 2]> (kr)
        s = MatMul (q, kt)
        p = Softmax <axis = -1> (s)
        y = MatMul (p, vr)
    }"""
    fused, _ = fuse(model_of(text, twice=indices))
    assert types(fused) == (["Attention"] if grouped else ["Gather", "Gather", "Attention"])


def test_one_head_of_keys_for_all_queries():
    assert types(fuse(model_of(spelled("s = Identity (raw)", k="2,1,6,8", v="2,1,6,3")))[0]) == ["Attention"]


def test_learned_queries_are_spread_over_the_batch():
    assert types(fuse(model_of(spelled("s = Identity (raw)", q="1,4,5,8")))[0]) == ["Expand", "Attention"]


@pytest.mark.parametrize(
    ("q", "k", "v", "kt"), [("2,5,8", "2,6,8", "2,6,3", "0,2,1"), ("5,8", "6,8", "6,3", "1,0")]
)
def test_fewer_dimensions(q, k, v, kt):
    fused, _ = fuse(model_of(spelled("s = Add (raw, m)", q=q, k=k, v=v, kt=kt, more="float[5,6] m")))
    assert len(attentions(fused)) == 1


def test_batch_and_heads_in_one_dimension_masked_apart():
    text = """g (float[8,5,8] q, float[8,6,8] k, float[8,6,3] v, float[2,1,1,6] m, int64[4] apart, int64[3] one)
        => (float y) {
        kt = Transpose <perm = [0, 2, 1]> (k)
        raw = MatMul (q, kt)
        split = Reshape (raw, apart)
        masked = Add (split, m)
        s = Reshape (masked, one)
        p = Softmax (s)
        y = MatMul (p, v)
    }"""
    fused, _ = fuse(model_of(text, apart=[2, 4, 5, 6], one=[8, 5, 6]))
    (node,) = attentions(fused)
    assert list(node.inputs[0].shape) == [2, 4, 5, 8]


def test_masks_per_window_are_seen_as_masks_per_image():
    text = """g (float[6,4,5,8] q, float[6,4,5,8] k, float[6,4,5,8] v, float[4,5,5] b, float[3,1,5,5] m,
        int64[5] apart, int64[4] one) => (float y) {
        kt = Transpose <perm = [0, 1, 3, 2]> (k)
        raw = MatMul (q, kt)
        biased = Add (raw, b)
        split = Reshape (biased, apart)
        masked = Add (split, m)
        s = Reshape (masked, one)
        p = Softmax (s)
        y = MatMul (p, v)
    }"""
    fused, _ = fuse(model_of(text, apart=[2, 3, 4, 5, 5], one=[6, 4, 5, 5]))
    assert len(attentions(fused)) == 1


def test_the_form_with_channels_in_front():
    """Convolutional attention blocks multiply v [.., size, length] with the transposed weights."""
    text = """g (float[2,1,5,8] q, float[2,1,6,8] k, float[2,1,3,6] v) => (float y) {
        kt = Transpose <perm = [0, 1, 3, 2]> (k)
        s = MatMul (q, kt)
        p = Softmax (s)
        pt = Transpose <perm = [0, 1, 3, 2]> (p)
        y = MatMul (v, pt)
    }"""
    assert types(fuse(model_of(text))[0]) == ["Transpose", "Attention", "Transpose"]


def test_softmax_in_a_wider_type():
    text = """g (float16[2,4,5,8] q, float16[2,4,6,8] k, float16[2,4,6,3] v) => (float16 y) {
        kt = Transpose <perm = [0, 1, 3, 2]> (k)
        s = MatMul (q, kt)
        wide = Cast <to = 1> (s)
        p = Softmax (wide)
        back = Cast <to = 10> (p)
        y = MatMul (back, v)
    }"""
    fused, _ = fuse(model_of(text))
    assert types(fused) == ["Attention"]
    assert attentions(fused)[0].attributes.get_int("softmax_precision") == 1


def cached(mask: str, rows: int, **constants) -> ir.Model:
    text = f"""g (float[2,4,{rows},8] q, float[2,4,{rows},8] k, float[2,4,{rows},8] v, float[2,4,3,8] pk,
        float[2,4,3,8] pv, {mask}) => (float y, float keys, float values) {{
        keys = Concat <axis = 2> (pk, k)
        values = Concat <axis = -2> (pv, v)
        kt = Transpose <perm = [0, 1, 3, 2]> (keys)
        raw = MatMul (q, kt)
        s = {"Add (raw, m)" if "f" not in constants else "Where (m, raw, f)"}
        p = Softmax (s)
        y = MatMul (p, values)
    }}"""
    return model_of(text, **constants)


def test_cached_keys_and_values_become_past_and_present():
    fused, _ = fuse(cached("float[1,4] m", 1))
    node = attentions(fused)[0]
    assert types(fused) == ["Max", "Attention"]
    assert [value.name for value in fused.graph.outputs] == ["y", "keys", "values"]
    assert list(node.outputs) == list(fused.graph.outputs)


def test_a_causal_triangle_over_cached_keys_keeps_its_place():
    mask = np.tril(np.ones((3, 6), bool))
    fused, left = fuse(cached("bool[3,6] m, float f", 3, m=mask, f=LOW))
    assert types(fused) == ["Concat", "Concat", "Attention"]
    assert "the causal triangle would move with the length of the past" in left


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("=> (float y)", "=> (float y, float s)"), "'s' has other readers"),
        (("=> (float y)", "=> (float y, float p)"), "'p' has other readers"),
        (("s = Mul (raw, c)", "e = Exp (raw)\n s = Mul (e, c)"), None),
        (("axis = -1", "axis = 2"), None),
    ],
)
def test_what_is_no_attention_is_left(change, reason):
    fused, left = fuse(model_of(spelled("s = Mul (raw, c)", more="float c").replace(*change), c=0.5))
    assert not attentions(fused)
    assert reason is None or reason in left


@pytest.mark.parametrize(
    ("scores", "more", "constants", "reason"),
    [
        ("s = Mul (raw, c)", "float c", {"c": -0.5}, "its scale is not positive"),
        (
            "s = Where (m, raw, f)",
            "bool[5,6] m, float f",
            {"f": -1e4},
            "scores are replaced by -10000, which may not hide a key (option 'hides')",
        ),
        (
            "t = Where (m, raw, f)\n s = Add (t, b)",
            "bool[5,6] m, float f, float[5,6] b",
            {"f": LOW},
            "more is added to scores of which whole rows may be masked",
        ),
    ],
)
def test_what_attention_cannot_say_is_left(scores, more, constants, reason):
    fused, left = fuse(model_of(spelled(scores, more=more), **constants))
    assert not attentions(fused)
    assert left == [reason]


def test_only_and_skip_are_honoured():
    model = model_of(spelled("s = Mul (raw, c)", more="float c"), c=0.5)
    assert attentions(optimize(model, "fuse-attention{skip=MatMul.*}").model) == []


def test_old_fills_are_taken_on_demand():
    model = model_of(spelled("s = Where (m, raw, f)", more="bool[5,6] m, float f"), f=-1e4)
    assert attentions(fuse(model, "fuse-attention{hides=-1e4}", [random_inputs(model, seed=0)])[0])


def test_a_wrong_option_is_named():
    with pytest.raises(Exception, match="'masked_rows' is 'keep' or 'zero'"):
        optimize(model_of(spelled("s = Identity (raw)")), "fuse-attention{masked_rows=nan}")


@pytest.mark.parametrize("low", [float(np.finfo(np.float32).min), -1e9, float("-inf")])
def test_a_float_mask_times_a_low_number_keeps_rows_without_keys(low):
    # Feeds of ones, zeros, negative and tiny numbers are among those that prove it: whole rows of the lowest
    # number, and of -infinity where the product overflows.
    text = spelled(
        "g = Sub (one, m)\n h = Mul (g, low)\n s = Add (raw, h)",
        more="float[1,1,1,6] m, float one, float low",
    )
    fused, left = fuse(model_of(text, one=1.0, low=low))
    if low == float("-inf"):
        assert len(attentions(fused)) + len(left) == 1
        return
    assert len(attentions(fused)) == 1 and not left
    edges = [np.zeros(6), np.ones(6), np.full(6, -2.0), np.full(6, 1e-30), np.array([0, 1, 1, 0, 1, 0])]
    model = model_of(text, one=1.0, low=low)
    for edge in edges:
        feeds = feeds_of(model, m=edge.astype(np.float32).reshape(1, 1, 1, 6))
        wanted, found = run_reference(model, feeds)["y"], run_reference(fused, feeds)["y"]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_one_head_expanded_in_keys_only():
    text = """g (float[2,4,5,8] q, float[2,1,6,8] k, float[2,1,6,8] v, int64[4] wide) => (float y) {
        many = Expand (k, wide)
        kt = Transpose <perm = [0, 1, 3, 2]> (many)
        s = MatMul (q, kt)
        p = Softmax (s)
        y = MatMul (p, v)
    }"""
    fused, _ = fuse(model_of(text, wide=[2, 4, 6, 8]))
    assert types(fused) == ["Attention"]
    assert [value.name for value in attentions(fused)[0].inputs] == ["q", "k", "v"]


def test_attention_in_double():
    fused, _ = fuse(model_of(spelled("s = Mul (raw, c)", more="double c", dtype="double"), c=np.float64(0.3)))
    assert types(fused) == ["Mul", "Attention"]
    rng = np.random.default_rng(0)
    feeds = {value.name: rng.standard_normal(value.shape.numpy()) for value in fused.graph.inputs}
    scores = np.einsum("bhqd,bhkd->bhqk", feeds["q"], feeds["k"]) * 0.3
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ feeds["v"]
    np.testing.assert_allclose(run_reference(fused, feeds)["y"], expected, rtol=1e-12)


def test_attention_in_half_precision_is_proven_on_edge_cases_too():
    text = spelled("s = Div (raw, c)", more="float16 c", dtype="float16")
    result = optimize(model_of(text, c=2.828), "fuse-attention", check_each=True)
    assert types(result.model) == ["Attention"]
