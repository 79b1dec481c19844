"""The figures of a comparison, against their definitions worked out by hand."""

import json
import math

import ml_dtypes
import numpy as np
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.errors import ModelError


def test_figures_follow_their_definitions():
    expected = np.array([1.0, -2.0, 2.0], np.float32)
    actual = np.array([1.0, -2.0, 1.0], np.float32)

    result = compare(expected, actual)

    assert result.max_abs == 1.0
    assert result.max_rel == 0.5
    assert result.sqnr_db == pytest.approx(10 * math.log10(9 / 1))
    assert result.cosine == pytest.approx(7 / math.sqrt(9 * 6))
    assert not result.equal


def test_equal_arrays():
    array = np.array([0.0, 1.5, np.nan, np.inf, -np.inf], np.float32)

    result = compare(array, array.copy())

    assert result.equal
    assert (result.max_abs, result.max_rel, result.sqnr_db, result.cosine) == (0.0, 0.0, math.inf, 1.0)
    assert str(result) == "equal"


@pytest.mark.parametrize(
    "actual",
    [[1.0, 2.0], [np.inf, 2.0], [-np.inf, np.nan], [np.nan, np.nan]],
    ids=["finite", "inf for nan", "wrong sign", "nan for inf"],
)
def test_special_values_must_stand_in_place(actual):
    result = compare(np.array([np.nan, np.inf]), np.array(actual))

    assert result.max_abs == math.inf
    assert result.sqnr_db == -math.inf
    assert not result.equal


def test_special_values_in_place_leave_the_rest_measurable():
    result = compare(np.array([np.nan, 4.0]), np.array([np.nan, 3.0]))

    assert result.max_abs == 1.0
    assert result.max_rel == 0.25


def test_all_zero_expectation():
    zeros = np.zeros(3, np.float32)

    assert compare(zeros, zeros).cosine == 1.0
    off = compare(zeros, np.array([0, 0, 1e-3], np.float32))
    assert off.sqnr_db == -math.inf
    assert off.cosine == 0.0
    assert off.max_rel > 1e30


def test_squares_neither_overflow_nor_vanish():
    large = compare(np.full(4, 1e300), np.full(4, 1e300) * (1 + 1e-3))
    small = compare(np.full(4, 1e-300), np.full(4, 1e-300) * (1 + 1e-3))

    assert large.sqnr_db == pytest.approx(60, abs=0.01)
    assert small.sqnr_db == pytest.approx(60, abs=0.01)


def test_large_integers_are_compared_exactly():
    expected = np.array([2**62, 2**62 + 1])

    assert compare(expected, expected).equal
    assert not compare(expected, expected - 1).equal


def test_another_dtype_is_not_equal():
    result = compare(np.ones(2, np.float32), np.ones(2, np.float64))

    assert result.max_abs == 0.0
    assert not result.equal


def test_small_and_odd_types():
    half = np.array([1, 2], ml_dtypes.bfloat16)
    assert compare(half, half).equal
    assert compare(np.array([True, False]), np.array([True, True])).max_abs == 1.0
    assert compare(np.array(["a"]), np.array(["a"])).equal
    assert compare(np.array(["a"]), np.array(["b"])).max_abs == math.inf
    assert compare(np.zeros((0, 3)), np.zeros((0, 3))).equal
    assert compare(np.array([1j]), np.array([2j])).max_abs == 1.0


def test_dicts_give_the_worst_output():
    expected = {"a": np.array([1.0]), "b": np.array([10.0]), "c": [np.array([1.0]), np.array([2.0])]}
    actual = {"a": np.array([1.1]), "b": np.array([10.5]), "c": [np.array([1.0]), np.array([2.0])]}

    result = compare(expected, actual)

    assert result.worst == "a"
    assert result.max_rel == pytest.approx(0.1)
    assert result.max_abs == pytest.approx(0.5)
    assert result.outputs["c"].equal


@pytest.mark.parametrize(
    ("expected", "actual", "message"),
    [
        (np.zeros(2), np.zeros(3), r"result has shape \[3\] where \[2\] is expected"),
        ({"y": np.zeros(2)}, {"y": np.zeros((2, 1))}, r"output 'y' has shape"),
        ({"y": np.zeros(2)}, {"z": np.zeros(2)}, r"missing \['y'\], unexpected \['z'\]"),
        ({"y": np.zeros(2)}, np.zeros(2), "cannot compare an array with a dict"),
        ({"y": [np.zeros(2)]}, {"y": []}, "sequence of 0 where 1"),
    ],
)
def test_what_cannot_be_compared_is_said(expected, actual, message):
    with pytest.raises(ModelError, match=message):
        compare(expected, actual)


def test_json_has_no_infinities():
    text = json.dumps(compare({"y": np.ones(2)}, {"y": np.ones(2)}).to_json(), allow_nan=False)

    assert json.loads(text)["sqnr_db"] == "inf"
