"""Einsum written as products: any equation of two operands, compared with numpy."""

import string

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.reference import run_reference
from graphwright.ir.shapes import infer_shapes
from graphwright.ir.upgrade import upgrade
from graphwright.passes.optimize import optimize
from hypothesis import given, settings
from hypothesis import strategies as st

SIZES = dict(zip(string.ascii_lowercase[:6], (2, 3, 4, 5, 1, 6), strict=True))


def einsum(equation: str, *shapes, dtype: str = "float", weights=()) -> ir.Model:
    """One Einsum; the operands whose index is in `weights` are stored."""
    names = string.ascii_lowercase[: len(shapes)]
    operands = ", ".join(
        f"{dtype}[{','.join(map(str, shape))}] {name}" for name, shape in zip(names, shapes, strict=True)
    )
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 20]>\ng ({operands}) => ({dtype} y) '
        f'{{ [product] y = Einsum<equation = "{equation}">({", ".join(names)}) }}'
    )
    model.graph.outputs[0].shape = None
    for index in sorted(weights, reverse=True):
        value = model.graph.inputs.pop(index)
        value.const_value = ir.tensor(operand(shapes[index], index), name=value.name)
        model.graph.register_initializer(value)
    upgrade(model)
    infer_shapes(model)
    return model


def operand(shape, index: int) -> np.ndarray:
    return np.random.default_rng(index).standard_normal(shape).astype(np.float32)


def lowered(model: ir.Model, pipeline: str = "lower-einsum") -> ir.Model:
    return optimize(model, pipeline, verify_each=True, check_each=True).model


def types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@st.composite
def equations(draw):
    a, b = (
        draw(st.lists(st.sampled_from(sorted(SIZES)), unique=True, min_size=1, max_size=4)) for _ in range(2)
    )
    both = sorted({*a, *b})
    result = draw(st.permutations(draw(st.lists(st.sampled_from(both), unique=True)) if both else []))
    return "".join(a), "".join(b), "".join(result), draw(st.sampled_from([(), (0,), (1,)]))


@settings(max_examples=120, deadline=None)
@given(equations())
def test_any_equation(drawn):
    a, b, result, weights = drawn
    shapes = [tuple(SIZES[label] for label in labels) for labels in (a, b)]
    arrays = [operand(shape, index) for index, shape in enumerate(shapes)]
    model = lowered(einsum(f"{a},{b}->{result}", *shapes, weights=weights))
    assert "Einsum" not in types(model)
    feeds = {
        name: array
        for index, (name, array) in enumerate(zip("ab", arrays, strict=True))
        if index not in weights
    }
    expected = np.einsum(f"{a},{b}->{result}", *arrays)
    np.testing.assert_allclose(run_reference(model, feeds)["y"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("equation", "shapes", "weights", "wanted"),
    [
        ("bqhd,bkhd->bhqk", ["B,Q,4,8", "B,K,4,8"], (), ["Transpose", "Transpose", "MatMul"]),
        ("bhqk,bkhd->bqhd", ["B,4,Q,K", "B,K,4,8"], (), ["Transpose", "MatMul", "Transpose"]),
        ("b h i d, b h j d -> b h i j", ["B,4,Q,8", "B,4,K,8"], (), ["Transpose", "MatMul"]),
        ("bsd,df->bsf", ["B,S,8", (8, 6)], (1,), ["MatMul"]),
        ("bsd,fd->bsf", ["B,S,8", (6, 8)], (1,), ["MatMul"]),
        ("bnhd,hdf->bnf", ["B,5,2,4", (2, 4, 3)], (1,), ["Shape", "Concat", "Reshape", "MatMul"]),
        ("...i,ij", ["B,7,8", (8, 6)], (1,), ["MatMul"]),
        ("i,j->ij", ["N", (4,)], (1,), ["Unsqueeze", "Mul"]),
        ("bij->bji", ["B,3,4"], (), ["Transpose"]),
        ("bij->b", ["B,3,4"], (), ["ReduceSum"]),
        ("ij->ij", ["N,3"], (), ["Identity"]),
        # One entry of the right operand for every head.
        ("bhid,bjd->bhij", ["B,4,I,8", "B,J,8"], (), ["Transpose", "Unsqueeze", "MatMul"]),
        ("bhij,bjd->bhid", ["B,4,I,J", "B,J,8"], (), ["Unsqueeze", "MatMul"]),
        # Keys in front: the operands are exchanged, which saves a transpose.
        ("bkd,bqd->bqk", ["B,K,8", "B,Q,8"], (), ["Transpose", "MatMul"]),
    ],
)
def test_what_is_written(equation, shapes, weights, wanted):
    shapes = [shape.split(",") if isinstance(shape, str) else shape for shape in shapes]
    assert types(lowered(einsum(equation, *shapes, weights=weights))) == wanted


@pytest.mark.parametrize(
    ("equation", "shapes", "reason"),
    [
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 2)], "it has 3 operands"),
        ("ij,jk->ik", ["A,B", "C,D"], "the sizes of 'j' are not known to be the same"),
        ("bij,jk->bik", [(2, 0, 3), (3, 4)], "an operand is empty"),
        ("abcd,abcf->df", ["A,B,C,4", "A,B,C,5"], ""),
        ("abcd,cdef->abef", ["A,B,C,D", "C,D,E,F"], "more than one group"),
    ],
)
def test_what_is_left(equation, shapes, reason):
    shapes = [shape.split(",") if isinstance(shape, str) else shape for shape in shapes]
    result = optimize(einsum(equation, *shapes), "lower-einsum")
    (left,) = result.report.records[0].left_alone or [None]
    if not reason:
        assert left is None and "Einsum" not in types(result.model)
    else:
        assert reason in left.reason and types(result.model) == ["Einsum"]


def test_a_diagonal_is_left():
    assert types(lowered(einsum("ii->i", (3, 3)))) == ["Einsum"]


@pytest.mark.parametrize("layout", ["bqhd,bkhd->bhqk bhqk,bkhd->bqhd", "bhqd,bhkd->bhqk bhqk,bhkd->bhqd"])
def test_attention_by_einsum(layout):
    scores, values = layout.split()
    shape = "2,5,4,8" if "bqhd" in scores else "2,4,5,8"
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 20]>\ng (float[{shape}] q, float[{shape}] k, float[{shape}] v)'
        f" => (float[{shape}] y) <float scale = {{0.35}}> {{"
        f's = Einsum<equation = "{scores}">(q, k)\n t = Mul(s, scale)\n w = Softmax<axis = -1>(t)\n'
        f' y = Einsum<equation = "{values}">(w, v) }}'
    )
    upgrade(model)
    infer_shapes(model)
    kinds = types(lowered(model, "simplify,fuse"))
    assert "Attention" in kinds and "Einsum" not in kinds and "Softmax" not in kinds
