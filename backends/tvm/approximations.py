"""Transcendental functions as polynomials, so that loops over them stay vectors.

LLVM turns `exp` of a vector into one library call per lane. These forms keep within a few units in the last
place of float32 (checked by a test against float64) and treat infinities and NaN as the exact functions do.
Other element types use TVM's intrinsics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .lazy import bound

_exact: ContextVar[bool] = ContextVar("exact", default=False)


@contextmanager
def exact() -> Iterator[None]:
    """Within: the target's own functions instead of polynomials, for devices that have fast ones."""
    token = _exact.set(True)
    try:
        yield
    finally:
        _exact.reset(token)


def _is_exact(x: Any) -> bool:
    return _exact.get() or _dtype(x) != "float32"


_EXP_LOW, _EXP_HIGH = -104.0, 89.0
_EXP_NORMAL = -87.0
"""Above this e^x is a normal number."""
_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
# Cephes expf: exp(r) = 1 + r + r^2 P(r) on |r| <= ln(2)/2.
_EXP_TERMS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
# Rational forms in odd over even powers, as used by Eigen for packets of floats.
_TANH_ODD = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_EVEN = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_ERF_ODD = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_EVEN = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


def exp(x: Any) -> Any:
    """E to the power of x."""
    from tvm import tirx

    if _is_exact(x):
        return tirx.exp(x)
    return _let(_clamp(x, _EXP_LOW, _EXP_HIGH), _exp_clamped)


def _exp_clamped(x: Any) -> Any:
    return _let(_rounded(x), lambda n: _let(_rest(x, n), lambda r: _scaled(_power(r), n)))


def _rounded(x: Any) -> Any:
    """The power of two nearest to e^x."""
    from tvm import tirx

    return tirx.floor(x * _f(_LOG2_E) + _f(0.5))


def _rest(x: Any, n: Any) -> Any:
    return x - n * _f(_LN2_HIGH) - n * _f(_LN2_LOW)


def _power(r: Any) -> Any:
    return _horner(_EXP_TERMS, r) * r * r + r + _f(1.0)


def falling_exp(x: Any) -> Any:
    """E to the power of x <= 0, as softmax needs it; zero below the normal range.

    Arithmetic on numbers below it takes a processor a hundred cycles each, and masks of -100 make many.
    """
    from tvm import tirx

    if _is_exact(x):
        return tirx.exp(x)

    def build(x: Any) -> Any:
        return tirx.Select(x < _f(_EXP_NORMAL), _f(0.0), _let(_rounded(x), lambda n: parts(x, n)))

    def parts(x: Any, n: Any) -> Any:
        return _let(_rest(x, n), lambda r: _power(r) * _exponent(_whole(n)))

    return _let(x, build)


def _scaled(value: Any, n: Any) -> Any:
    """Times 2^n in two steps, so that results below and above the normal range come out right."""
    from tvm import tirx

    def build(whole: Any) -> Any:
        half = tirx.shift_right(whole, tirx.const(1, "int32"))
        return value * _exponent(half) * _exponent(whole - half)

    return _let(_whole(n), build)


def _whole(n: Any) -> Any:
    from tvm import tirx

    return tirx.Cast("int32", n)


def _exponent(n: Any) -> Any:
    from tvm import tirx

    bits = tirx.shift_left(n + tirx.const(127, "int32"), tirx.const(23, "int32"))
    return tirx.reinterpret("float32", bits)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    one = _one(x)
    if _is_exact(x):
        return one / (one + exp(_zero(x) - x))

    def build(c: Any, n: Any) -> Any:
        # Within the clamp 2^n is a normal number or infinite, and one multiplication scales.
        return _let(_rest(c, n), lambda r: one / (one + _power(r) * _exponent(_whole(n))))

    return _let(
        _clamp(_zero(x) - x, _EXP_NORMAL, _EXP_HIGH),
        lambda c: _let(_rounded(c), lambda n: build(c, n)),
    )


def tanh(x: Any) -> Any:
    """Hyperbolic tangent."""
    from tvm import tirx

    if _is_exact(x):
        return tirx.tanh(x)
    rational = _let(
        _clamp(x, -7.90531110763549805, 7.90531110763549805), lambda c: _rational(c, _TANH_ODD, _TANH_EVEN)
    )
    return tirx.Select(tirx.abs(x) < _f(0.0004), x, rational)


def erf(x: Any) -> Any:
    """The error function."""
    from tvm import tirx

    if _is_exact(x):
        return tirx.Cast(
            _dtype(x), tirx.erf(tirx.Cast("float64" if _dtype(x) == "float64" else "float32", x))
        )
    return _let(_clamp(x, -4.0, 4.0), lambda c: _rational(c, _ERF_ODD, _ERF_EVEN))


def softplus(x: Any) -> Any:
    """log(1 + exp(x)), without overflow."""
    from tvm import tirx

    zero = _zero(x)
    return tirx.max(x, zero) + log1p(exp(zero - tirx.abs(x)))


def log1p(x: Any) -> Any:
    """log(1 + x); a series near zero, where the sum would round x away."""
    from tvm import tirx

    def build(x: Any) -> Any:
        series = _zero(x)
        for power in range(9, 0, -1):
            series = (_c(x, (1.0 if power % 2 else -1.0) / power) + series) * x
        return tirx.Select(tirx.abs(x) < _c(x, 0.1), series, tirx.log(_one(x) + x))

    return tirx.log1p(x) if _dtype(x) == "float64" else _let(x, build)


def sinh(x: Any) -> Any:
    """Hyperbolic sine; a series near zero, where the exponentials would cancel."""
    from tvm import tirx

    def build(x: Any) -> Any:
        square = x * x
        series = x * (
            _one(x) + square / _c(x, 6) * (_one(x) + square / _c(x, 20) * (_one(x) + square / _c(x, 42)))
        )
        far = (exp(x) - exp(_zero(x) - x)) * _c(x, 0.5)
        return tirx.Select(tirx.abs(x) < _c(x, 0.25 if _dtype(x) == "float32" else 0.01), series, far)

    return _let(x, build)


def cosh(x: Any) -> Any:
    """Hyperbolic cosine."""
    return _let(x, lambda x: (exp(x) + exp(_zero(x) - x)) * _c(x, 0.5))


def asinh(x: Any) -> Any:
    """Inverse hyperbolic sine, odd by construction."""
    from tvm import tirx

    def build(x: Any) -> Any:
        size = tirx.abs(x)
        square = x * x
        value = log1p(size + square / (_one(x) + tirx.sqrt(square + _one(x))))
        return tirx.Select(x < _zero(x), _zero(x) - value, value)

    return _let(x, build)


def acosh(x: Any) -> Any:
    """Inverse hyperbolic cosine for x >= 1."""
    from tvm import tirx

    return _let(x, lambda x: tirx.log(x + tirx.sqrt(x * x - _one(x))))


def atanh(x: Any) -> Any:
    """Inverse hyperbolic tangent for |x| < 1."""
    return _let(x, lambda x: _c(x, 0.5) * (log1p(x) - log1p(_zero(x) - x)))


def _c(x: Any, value: float) -> Any:
    from tvm import tirx

    return tirx.const(value, _dtype(x))


def _rational(x: Any, odd: Sequence[float], even: Sequence[float]) -> Any:
    return _let(x * x, lambda square: x * _horner(odd, square) / _horner(even, square))


def _horner(terms: Sequence[float], x: Any) -> Any:
    value = _f(terms[0])
    for term in terms[1:]:
        value = value * x + _f(term)
    return value


def _clamp(x: Any, low: float, high: float) -> Any:
    # Comparisons with NaN are false: it passes through.
    from tvm import tirx

    return tirx.Select(x < _f(low), _f(low), tirx.Select(x > _f(high), _f(high), x))


def _let(value: Any, body: Any) -> Any:
    return body(bound(value))


def _dtype(x: Any) -> str:
    return str(x.ty.dtype) if hasattr(x, "ty") else str(x.dtype)


def _f(value: float) -> Any:
    from tvm import tirx

    return tirx.const(value, "float32")


def _one(x: Any) -> Any:
    from tvm import tirx

    return tirx.const(1.0, _dtype(x))


def _zero(x: Any) -> Any:
    from tvm import tirx

    return tirx.const(0.0, _dtype(x))
