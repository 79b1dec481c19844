"""When two models count as equal on the inputs that are made up for them."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.passes.equivalence import check_equivalent


def inverting(scale: float, shift: float = 0.0) -> ir.Model:
    """exp(log) spelled with numbers that do not cancel to the last digit; `shift` is an error."""
    return ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        inverse (float[4,8] x) => (float[4,8] y)
        <float b = {{0.7}}, float s = {{{scale}}}, float t = {{{1.0 / scale}}}, float e = {{{0.7 - shift}}}> {{
            a = Add(x, b)
            m = Mul(a, s)
            n = Mul(m, t)
            y = Sub(n, e)
        }}"""
    )


def test_what_rounding_leaves_of_zeros_is_no_difference():
    found = check_equivalent(inverting(3.0), inverting(7.3))
    assert found.passed, found
    assert found.worst.max_abs > 0


@pytest.mark.parametrize("shift", [1e-2, 1e-3])
def test_an_error_where_everything_cancels_is_one(shift):
    found = check_equivalent(inverting(3.0), inverting(3.0, shift))
    assert not found.passed
    assert found.worst.max_abs == pytest.approx(shift, rel=1e-2)


def test_small_outputs_have_digits_of_their_own():
    def scaled(scale: float) -> ir.Model:
        return ir.from_onnx_text(
            f"""<ir_version: 10, opset_import: ["" : 23]>
            tiny (float[4,8] x) => (float[4,8] y) <float s = {{{scale}}}> {{ y = Mul(x, s) }}"""
        )

    assert not check_equivalent(scaled(1e-9), scaled(1.001e-9)).passed
    assert check_equivalent(scaled(1e-9), scaled(np.nextafter(1e-9, 1.0, dtype=np.float64))).passed
