"""merge-casts: which detours lose nothing, against numpy and the reference."""

import itertools

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.reference import run_reference
from graphwright.passes.merge_casts import holds, is_detour
from graphwright.passes.optimize import optimize

T = ir.DataType
NUMERIC = [T.BOOL, T.INT8, T.UINT8, T.INT16, T.UINT16, T.INT32, T.UINT32, T.INT64, T.UINT64]
NUMERIC += [T.FLOAT16, T.BFLOAT16, T.FLOAT, T.DOUBLE]


def extremes(dtype):
    """Numbers that a narrower type loses: the ends of the range and the finest steps near them."""
    if dtype == T.BOOL:
        return np.array([False, True])
    array = dtype.numpy()
    if dtype.is_integer():
        info = np.iinfo(array)
        numbers = [info.min, info.min + 1, 0, 1, 3, info.max // 2, info.max - 1, info.max]
        return np.array(numbers, array)
    info = ml_dtypes.finfo(array)
    numbers = [
        0.0,
        1.0,
        1 + float(info.eps),
        3.5,
        -2.25,
        float(info.max),
        float(info.tiny),
        float(info.smallest_subnormal),
    ]
    return np.array([*numbers, -np.inf, np.inf, np.nan], np.float64).astype(array)


@pytest.mark.parametrize(("narrow", "wide"), list(itertools.product(NUMERIC, NUMERIC)))
def test_a_type_holds_another_exactly_if_the_way_back_gives_the_same(narrow, wide):
    numbers = extremes(narrow)
    with np.errstate(all="ignore"):
        back = numbers.astype(wide.numpy()).astype(narrow.numpy())
        signs = np.array_equal(
            numbers.astype(np.float64) < 0, numbers.astype(wide.numpy()).astype(np.float64) < 0
        )
    same = np.array_equal(
        numbers.astype(np.float64), back.astype(np.float64), equal_nan=not narrow.is_integer()
    )
    exact = np.array_equal(numbers, back) if narrow.is_integer() else same
    if holds(narrow, wide):
        assert exact and signs
    elif narrow.is_integer() and wide.is_integer():
        assert not (exact and signs)


def model(first, via, last, moved=False):
    cast = f"a = Cast<to = {int(via)}>(x)\n"
    move = "b = Transpose(a)\n" if moved else "b = Identity(a)\n"
    names = {T.FLOAT: "float", T.DOUBLE: "double"}
    kind = [names.get(each, each.name.lower()) for each in (first, last)]
    text = f'<ir_version: 10, opset_import: ["" : 23]>\ng ({kind[0]}[N] x) => ({kind[1]}[N] y) {{ {cast}{move}y = Cast<to = {int(last)}>(b) }}'
    built = ir.from_onnx_text(text)
    for i, node in enumerate(built.graph):
        node.name = f"n{i}"
    return built


@pytest.mark.parametrize(
    ("first", "via", "last", "left"),
    [
        (T.FLOAT16, T.FLOAT, T.FLOAT16, 0),
        (T.FLOAT, T.FLOAT16, T.FLOAT, 2),
        (T.FLOAT, T.DOUBLE, T.FLOAT16, 1),
        (T.INT32, T.INT64, T.INT32, 0),
        (T.INT64, T.INT32, T.INT64, 2),
        (T.INT64, T.INT32, T.INT8, 1),
        (T.INT32, T.UINT32, T.INT32, 0),
        (T.INT8, T.UINT32, T.INT16, 1),
        (T.INT8, T.UINT8, T.INT16, 2),
        (T.BOOL, T.FLOAT, T.BOOL, 0),
        (T.BOOL, T.INT64, T.FLOAT, 1),
        (T.INT32, T.BOOL, T.INT32, 2),
        (T.INT32, T.FLOAT, T.INT32, 2),
        (T.INT16, T.FLOAT, T.INT16, 0),
        (T.UINT8, T.FLOAT16, T.INT64, 1),
        (T.FLOAT, T.INT32, T.FLOAT, 2),
        (T.FLOAT16, T.FLOAT, T.BOOL, 1),
    ],
)
def test_chains(first, via, last, left):
    before = model(first, via, last)
    result = optimize(before, "eliminate-identity,merge-casts")
    casts = [node for node in result.model.graph if node.op_type == "Cast"]
    assert len(casts) == left
    assert is_detour(first, via, last) == (left < 2)
    numbers = extremes(first)
    if not first.is_integer() and (last.is_integer() or via.is_integer()):
        numbers = np.array([0, 1, 3.5, -2.25, 100.75], first.numpy())
    expected, found = (run_reference(each, {"x": numbers})["y"] for each in (before, result.model))
    np.testing.assert_array_equal(expected, found)


def test_movement_is_done_in_the_narrow_type():
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float16[2,N,4] x) => (float16[4,N] y) <int64[1] one = {1}, int64 zero = {0}> {
        r = Neg(x)
        a = Cast<to = 1>(r)
        t = Transpose<perm = [2, 0, 1]>(a)
        p = Gather<axis = 1>(t, zero)
        y = Cast<to = 10>(p)
    }"""
    result = optimize(ir.from_onnx_text(text), "merge-casts", check_each=True)
    assert [node.op_type for node in result.model.graph] == ["Neg", "Transpose", "Gather"]
    assert {node.outputs[0].dtype for node in result.model.graph} == {T.FLOAT16}


def test_movement_that_others_read_stays():
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float16[2,4] x) => (float16[4,2] y, float[4,2] z) {
        a = Cast<to = 1>(x)
        t = Transpose(a)
        y = Cast<to = 10>(t)
        z = Neg(t)
    }"""
    result = optimize(ir.from_onnx_text(text), "merge-casts", check_each=True)
    assert not result.report.records[0].changed
