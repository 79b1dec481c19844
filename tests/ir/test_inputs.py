"""Made-up inputs: legal for the model, repeatable, and covering the edges."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.errors import ModelError
from graphwright.ir.inputs import edge_inputs, input_shapes, integer_range, random_inputs
from graphwright.ir.reference import Reference

HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'


def model_of(text: str) -> ir.Model:
    return ir.from_onnx_text(HEADER + text)


EMBEDDING = """agraph (int64[N,S] ids, float[N,S,2] x, bool[N] b) => (float[N,S,2] y)
<float[3,2] table = {1,2,3,4,5,6}> {
    narrow = Cast<to = 6>(ids)
    rows = Gather(table, narrow)
    y = Add(rows, x)
}"""


def test_inputs_are_repeatable_and_depend_on_the_seed():
    model = model_of(EMBEDDING)
    first, again, other = random_inputs(model, 0), random_inputs(model, 0), random_inputs(model, 1)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first["x"], other["x"])


def test_an_input_keeps_its_values_when_others_come_and_go():
    alone = model_of("agraph (float[4] x) => (float[4] y) { y = Neg(x) }")
    both = model_of("agraph (float[3] w, float[4] x) => (float[4] y) { y = Neg(x) }")
    np.testing.assert_array_equal(random_inputs(alone)["x"], random_inputs(both)["x"])


def test_floats_are_standard_normal():
    x = random_inputs(model_of("agraph (float[200,200] x) => (float[200,200] y) { y = Neg(x) }"))["x"]
    assert abs(x.mean()) < 0.02
    assert abs(x.std() - 1) < 0.02
    assert x.dtype == np.float32


def test_symbols_have_one_size_everywhere():
    model = model_of('agraph (float[N,"2*H",H,H] x, float[N,H] z) => (float[N] y) { y = Foo(x, z) }')
    assert input_shapes(model) == {"x": (2, 64, 32, 32), "z": (2, 32)}
    assert input_shapes(model, {"N": 5, "H": 3}) == {"x": (5, 6, 3, 3), "z": (5, 3)}


def test_table_indices_stay_inside_the_table():
    model = model_of(EMBEDDING)
    assert integer_range(model.graph.inputs[0]) == (0, 2)
    ids = random_inputs(model, dims={"N": 50})["ids"]
    assert (ids.min(), ids.max()) == (0, 2)
    for _, feeds in edge_inputs(model):
        assert feeds["ids"].min() >= 0
        assert feeds["ids"].max() <= 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("agraph (int64[2] i, float[4,5] x) => (float[4,2] y) { y = Gather<axis = 1>(x, i) }", (0, 4)),
        (
            "agraph (int64[4,2] i, float[4,5] x) => (float[4,2] y) { y = GatherElements<axis = -1>(x, i) }",
            (0, 4),
        ),
        ("agraph (int64[2] i, float[N,5] x) => (float[2,5] y) { y = Gather(x, i) }", (0, 9)),
        ("agraph (int64[2] i, float[6] x) => (float[A,B] y) { y = Reshape(x, i) }", (1, 1)),
        ("agraph (int64[2] i) => (int64[2] y) { y = Neg(i) }", (0, 9)),
        ("agraph (uint8[2] i) => (uint8[2] y) { y = Identity(i) }", (0, 255)),
        ("agraph (int8[2] i) => (int8[2] y) { y = Identity(i) }", (-128, 127)),
        ("agraph (int4[2] i) => (int4[2] y) { y = Identity(i) }", (-8, 7)),
        ("agraph (int64[2] i) => (bool[2] y) { y = Cast<to = 9>(i) }", (0, 1)),
        (
            """agraph (int64[2] i) => (float[2] y) <int64 whole = {1}>
            { f = Cast<to = 1>(i) one = Cast<to = 1>(whole) y = Sub(one, f) }""",
            (0, 1),
        ),
        ("agraph (int64[2] attention_mask) => (int64[2] y) { y = Neg(attention_mask) }", (0, 1)),
        ("agraph (bool[2] i) => (bool[2] y) { y = Not(i) }", (0, 1)),
    ],
)
def test_integer_ranges(text, expected):
    assert integer_range(model_of(text).graph.inputs[0]) == expected


def test_weights_are_not_inputs():
    model = model_of("agraph (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    model.graph.inputs.append(model.graph.initializers["w"])
    assert list(random_inputs(model)) == ["x"]


def test_edges_are_finite_and_run():
    model = model_of(EMBEDDING)
    reference = Reference(model)
    cases = edge_inputs(model)
    labels = [label for label, _ in cases]
    assert labels == ["zeros", "ones", "negative", "large", "tiny", "denormal", "alternating"]
    for label, feeds in cases:
        assert np.isfinite(reference.run(feeds)["y"]).all(), label


def test_edges_are_what_they_are_called():
    cases = dict(edge_inputs(model_of("agraph (float[64] x) => (float[64] y) { y = Neg(x) }")))
    smallest = np.finfo(np.float32).smallest_normal
    assert not cases["zeros"]["x"].any()
    assert (cases["ones"]["x"] == 1).all()
    assert (cases["negative"]["x"] < 0).all()
    assert np.abs(cases["large"]["x"]).max() > 1e3
    assert (np.abs(cases["tiny"]["x"]) >= smallest).all()
    assert ((np.abs(cases["denormal"]["x"]) < smallest) & (cases["denormal"]["x"] != 0)).all()
    assert cases["alternating"]["x"][:4].tolist() == [1, -1, 1, -1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double"])
def test_other_float_types(dtype):
    model = model_of(f"agraph ({dtype}[8] x) => ({dtype}[8] y) {{ y = Identity(x) }}")
    wanted = model.graph.inputs[0].dtype.numpy()
    assert random_inputs(model)["x"].dtype == wanted
    for label, feeds in edge_inputs(model):
        assert feeds["x"].dtype == wanted
        assert np.isfinite(feeds["x"].astype(np.float64)).all(), label
    assert ml_dtypes.finfo(wanted).smallest_normal > np.abs(dict(edge_inputs(model))["denormal"]["x"]).max()


def test_scalars_and_odd_dimension_names():
    model = model_of('agraph (float x, float["batch size", ?] z) => (float y) { y = Foo(x, z) }')
    feeds = random_inputs(model)
    assert feeds["x"].shape == ()
    assert feeds["z"].shape == (2, 8)


def test_unknown_rank_is_said():
    model = model_of("agraph (float[2] x) => (float[2] y) { y = Neg(x) }")
    model.graph.inputs[0].shape = None
    with pytest.raises(ModelError, match="input 'x' has no shape"):
        random_inputs(model)


def test_strings_sequences_and_positions_in_them():
    model = model_of(
        "g (string[2] s, seq(float[3]) q, seq(int64[2]) k, int64 i) => (string[2] t, float[3] y, int64[2] z)"
        "{ t = Identity(s)\n y = SequenceAt(q, i)\n z = SequenceAt(k, i) }"
    )
    for feeds in [random_inputs(model, seed=seed) for seed in range(3)] + [f for _, f in edge_inputs(model)]:
        assert feeds["s"].shape == (2,) and all(isinstance(word, str) for word in feeds["s"])
        assert [(each.shape, each.dtype) for each in feeds["q"]] == [((3,), np.float32)] * 3
        assert [(each.shape, each.dtype) for each in feeds["k"]] == [((2,), np.int64)] * 3
        assert feeds["i"] == 0
        results = Reference(model).run(feeds)
        np.testing.assert_array_equal(results["y"], feeds["q"][0])
        assert list(results["t"]) == list(feeds["s"])


def test_what_cannot_be_made_up_is_named():
    model = model_of("g (optional(float[3]) o) => (bool y) { y = OptionalHasElement(o) }")
    with pytest.raises(ModelError, match="input 'o' has type .* cannot be made up; feed it from Python"):
        random_inputs(model)
