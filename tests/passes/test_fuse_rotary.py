"""fuse-rotary: each way to write rotary embeddings becomes the standard operator with the same numbers."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.inputs import random_inputs
from graphwright.passes.equivalence import check_equivalent
from graphwright.passes.optimize import optimize

from .test_fuse_attention import model_of, types

SIZE, LENGTH = 8, 5
ANGLES = np.outer(np.arange(LENGTH), 0.5 ** np.arange(SIZE // 2))
TWICE = np.concatenate([ANGLES, ANGLES], -1)
PAIRS = np.repeat(ANGLES, 2, -1)


def fuse(model: ir.Model, pipeline: str = "fuse-rotary"):
    result = optimize(model, pipeline)
    half = model.graph.inputs[0].dtype == ir.DataType.FLOAT16
    inputs = [random_inputs(model, seed=seed) for seed in range(3)] if half else None
    found = check_equivalent(model, result.model, inputs=inputs)
    assert found.passed, found
    return result.model, [one.reason for record in result.report.records for one in record.left_alone]


def node_of(model: ir.Model) -> ir.Node:
    (node,) = (node for node in model.graph if node.op_type == "RotaryEmbedding")
    return node


def halves(shape: str, table: str, *, first="Slice (x, zero, half, last, one)", dtype="float") -> str:
    return f"""g ({dtype}[{shape}] x, {dtype}[{table}] cos, {dtype}[{table}] sin, int64[1] zero, int64[1] half,
        int64[1] end, int64[1] last, int64[1] one) => ({dtype} y) {{
        a = {first}
        b = Slice (x, half, end, last, one)
        n = Neg (b)
        r = Concat <axis = -1> (n, a)
        p = Mul (x, cos)
        q = Mul (r, sin)
        y = Add (p, q)
    }}"""


CUTS = {"zero": [0], "half": [SIZE // 2], "end": [2**63 - 1], "last": [-1], "one": [1]}


def tables(angles, shape) -> dict:
    return {"cos": np.cos(angles).reshape(shape), "sin": np.sin(angles).reshape(shape)}


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize(
    ("shape", "table"),
    [
        ((2, 3, LENGTH, SIZE), (LENGTH, SIZE)),
        ((2, 3, LENGTH, SIZE), (1, 1, LENGTH, SIZE)),
        ((1, 3, LENGTH, SIZE), (1, LENGTH, SIZE)),
        ((2, LENGTH, 3, SIZE), (LENGTH, 1, SIZE)),
        ((2, LENGTH, 3, SIZE), (1, LENGTH, 1, SIZE)),
        ((2, LENGTH, SIZE), (LENGTH, SIZE)),
    ],
)
def test_halves_in_each_layout(shape, table, dtype):
    text = halves(",".join(map(str, shape)), ",".join(map(str, table)), dtype=dtype)
    fused, _ = fuse(model_of(text, **CUTS, **tables(TWICE, table)))
    node = node_of(fused)
    assert node.attributes.get_int("interleaved", 0) == 0
    assert list(node.inputs[1].shape) == [shape[0], LENGTH, SIZE // 2]
    assert "Neg" not in types(fused)


def test_tables_per_batch_entry():
    angles = np.stack([TWICE, 2 * TWICE])
    model = model_of(
        halves(f"2,3,{LENGTH},{SIZE}", f"2,1,{LENGTH},{SIZE}"), **CUTS, **tables(angles, (2, 1, LENGTH, SIZE))
    )
    assert node_of(fuse(model)[0])


def test_tables_with_two_different_halves_are_left():
    model = model_of(
        halves(f"2,3,{LENGTH},{SIZE}", f"{LENGTH},{SIZE}"), **CUTS, **tables(PAIRS, (LENGTH, SIZE))
    )
    fused, left = fuse(model)
    assert "RotaryEmbedding" not in types(fused)
    assert "not known to hold every angle twice" in left[0]


def test_tables_that_are_inputs_are_left():
    fused, left = fuse(model_of(halves(f"2,3,{LENGTH},{SIZE}", f"{LENGTH},{SIZE}"), **CUTS))
    assert "RotaryEmbedding" not in types(fused)
    assert "not known to hold every angle twice" in left[0]


def test_halves_turned_the_wrong_way_are_left():
    text = halves(f"2,3,{LENGTH},{SIZE}", f"{LENGTH},{SIZE}").replace("(n, a)", "(a, n)")
    fused, _ = fuse(model_of(text, **CUTS, **tables(TWICE, (LENGTH, SIZE))))
    assert "RotaryEmbedding" not in types(fused)


def test_tables_that_differ_between_heads_are_left():
    angles = np.stack([TWICE, 2 * TWICE, 3 * TWICE])
    text = halves(f"2,3,{LENGTH},{SIZE}", f"3,{LENGTH},{SIZE}")
    fused, left = fuse(model_of(text, **CUTS, **tables(angles, (3, LENGTH, SIZE))))
    assert "RotaryEmbedding" not in types(fused)
    assert left == ["angles differ between heads, or dimensions are not known"]


def test_tables_computed_from_positions_of_unknown_length():
    text = f"""g (float[b,3,n,{SIZE}] x, int64[b,n] places, float[1,4] f, int64[1] zero, int64[1] half, int64[1] end,
        int64[1] last, int64[1] one, int64[1] two) => (float y) {{
        long = Unsqueeze (places, two)
        t = Cast <to = 1> (long)
        angles = Mul (t, f)
        twice = Concat <axis = -1> (angles, angles)
        wide = Unsqueeze (twice, one)
        cos = Cos (wide)
        sin = Sin (wide)
        a = Slice (x, zero, half, last, one)
        b = Slice (x, half, end, last, one)
        n = Neg (b)
        r = Concat <axis = -1> (n, a)
        p = Mul (cos, x)
        q = Mul (sin, r)
        y = Add (q, p)
    }}"""
    model = model_of(text, **CUTS, two=[2], f=[[1.0, 0.5, 0.25, 0.125]])
    assert node_of(fuse(model)[0])


def test_the_two_halves_written_as_products():
    text = f"""g (float[2,3,{LENGTH},{SIZE}] x, float[{LENGTH},4] cos, float[{LENGTH},4] sin) => (float y) {{
        a, b = Split <axis = -1, num_outputs = 2> (x)
        ac = Mul (a, cos)
        bs = Mul (b, sin)
        bc = Mul (b, cos)
        as = Mul (a, sin)
        l = Sub (ac, bs)
        r = Add (bc, as)
        y = Concat <axis = -1> (l, r)
    }}"""
    fused, _ = fuse(model_of(text, **tables(ANGLES, (LENGTH, 4))))
    assert node_of(fused).attributes.get_int("interleaved", 0) == 0


@pytest.mark.parametrize("sides", ["l, r", "r, l"])
def test_neighbours_written_as_complex_numbers(sides):
    text = f"""g (float[2,{LENGTH},3,{SIZE}] x, float[1,{LENGTH},1,4] cos, float[1,{LENGTH},1,4] sin, int64[5] apart,
        int64 zero, int64 one, int64[1] four, int64[4] back) => (float y) {{
        v = Reshape (x, apart)
        a = Gather <axis = -1> (v, zero)
        b = Gather <axis = -1> (v, one)
        ac = Mul (a, cos)
        bs = Mul (b, sin)
        bc = Mul (b, cos)
        as = Mul (a, sin)
        l0 = Sub (ac, bs)
        r0 = Add (as, bc)
        l = Unsqueeze (l0, four)
        r = Unsqueeze (r0, four)
        c = Concat <axis = -1> ({sides})
        y = Reshape (c, back)
    }}"""
    constants = {
        "apart": [2, LENGTH, 3, 4, 2],
        "zero": 0,
        "one": 1,
        "four": [4],
        "back": [2, LENGTH, 3, SIZE],
    }
    fused, _ = fuse(model_of(text, **constants, **tables(ANGLES, (1, LENGTH, 1, 4))))
    if sides == "l, r":
        assert node_of(fused).attributes.get_int("interleaved") == 1
    else:
        assert "RotaryEmbedding" not in types(fused)


def test_neighbours_with_each_angle_twice():
    text = f"""g (float[2,3,{LENGTH},{SIZE}] x, float[{LENGTH},{SIZE}] cos, float[{LENGTH},{SIZE}] sin, int64[1] zero,
        int64[1] one, int64[1] two, int64[1] end, int64[1] last, int64[1] four, int64[4] back) => (float y) {{
        a = Slice (x, zero, end, last, two)
        b = Slice (x, one, end, last, two)
        n = Neg (b)
        n1 = Unsqueeze (n, four)
        a1 = Unsqueeze (a, four)
        c = Concat <axis = -1> (n1, a1)
        r = Reshape (c, back)
        p = Mul (x, cos)
        q = Mul (r, sin)
        y = Add (p, q)
    }}"""
    constants = {**CUTS, "two": [2], "four": [4], "back": [2, 3, LENGTH, SIZE]}
    constants.pop("half")
    fused, _ = fuse(model_of(text, **constants, **tables(PAIRS, (LENGTH, SIZE))))
    assert node_of(fused).attributes.get_int("interleaved") == 1


def test_partial_rotation_takes_the_rest_along():
    text = f"""g (float[2,3,{LENGTH},12] w, float[{LENGTH},{SIZE}] cos, float[{LENGTH},{SIZE}] sin, int64[1] zero,
        int64[1] half, int64[1] end, int64[1] last, int64[1] one, int64[1] eight) => (float y) {{
        x = Slice (w, zero, eight, last, one)
        rest = Slice (w, eight, end, last, one)
        a = Slice (x, zero, half, last, one)
        b = Slice (x, half, end, last, one)
        n = Neg (b)
        r = Concat <axis = -1> (n, a)
        p = Mul (x, cos)
        q = Mul (r, sin)
        t = Add (p, q)
        y = Concat <axis = -1> (t, rest)
    }}"""
    fused, _ = fuse(model_of(text, **CUTS, eight=[SIZE], **tables(TWICE, (LENGTH, SIZE))))
    node = node_of(fused)
    assert node.attributes.get_int("rotary_embedding_dim") == SIZE
    assert node.inputs[0].name == "w"
    assert types(fused)[-1] == "RotaryEmbedding"


@pytest.mark.parametrize("double", ["float", "double"])
def test_types_without_a_kernel_are_left(double):
    text = halves(f"2,3,{LENGTH},{SIZE}", f"{LENGTH},{SIZE}", dtype=double)
    fused, _ = fuse(model_of(text, **CUTS, **tables(TWICE, (LENGTH, SIZE))))
    assert ("RotaryEmbedding" in types(fused)) == (double == "float")


def test_neighbours_of_heads_that_are_still_joined():
    text = """g (float[2,6,32] x, float[1,6,1,4] cos, float[1,6,1,4] sin, int64[5] pairs, int64 zero,
        int64 one, int64[1] last, int64[4] heads) => (float y) {
        v = Reshape (x, pairs)
        a = Gather <axis = 4> (v, zero)
        b = Gather <axis = 4> (v, one)
        ac = Mul (a, cos)
        bs = Mul (b, sin)
        re = Sub (ac, bs)
        as = Mul (a, sin)
        bc = Mul (b, cos)
        im = Add (as, bc)
        re1 = Unsqueeze (re, last)
        im1 = Unsqueeze (im, last)
        both = Concat <axis = -1> (re1, im1)
        y = Reshape (both, heads)
    }"""
    angles = np.linspace(0, 5, 24).reshape(1, 6, 1, 4).astype(np.float32)
    sizes = {"pairs": [-1, 6, 4, 4, 2], "zero": 0, "one": 1, "last": [-1], "heads": [-1, 6, 4, 8]}
    fused, _ = fuse(model_of(text, **sizes, cos=np.cos(angles), sin=np.sin(angles)))
    node = node_of(fused)
    assert node.attributes.get_int("interleaved") == 1
    assert "Gather" not in [each.op_type for each in fused.graph]
