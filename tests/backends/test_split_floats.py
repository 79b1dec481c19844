"""float32 on AMX as products of bfloat16: every way to use the registers against exact arithmetic."""

import ml_dtypes
import numpy as np
import pytest
from graphwright.backends.target import resolve_target
from graphwright.backends.tvm.kernels import (
    Conv2dSpec,
    Epilogue,
    ExtraInput,
    MatmulSpec,
    Operand,
    conv2d,
    matmul,
)
from graphwright.backends.tvm.kernels.choices import Choices, choosing
from graphwright.backends.tvm.kernels.tile_panels import split_float32
from graphwright.backends.tvm.kernels.tile_registers import BF16X3, BF16X6, float_format
from hypothesis import given, settings
from hypothesis import strategies as st

from .test_kernels import CONVOLUTIONS, PRODUCTS, call, compile_kernels, logical, normal, reference_conv

THREE, SIX = resolve_target("sapphirerapids,+bf16x3"), resolve_target("sapphirerapids,+bf16x6")
BOUND = {3: 2e-5, 6: 2e-6}
"""Largest error relative to the largest output, per number of products."""
SHAPES = ((2, 2), (1, 4), (1, 3), (3, 1), (1, 2), (2, 1), (1, 1))
here = pytest.mark.skipif(not THREE.runs_here, reason=f"needs AMX: {THREE.why_not_here()}")
both = pytest.mark.parametrize(("target", "products"), [(THREE, 3), (SIX, 6)], ids=["bf16x3", "bf16x6"])


def on_tiles(make, spec, target, epilogue=None, **schedule):
    """A kernel that takes tile registers where it can."""
    with choosing(Choices({"tiles": 1, **schedule})):
        return make(spec, epilogue, target)


def error(actual, expected):
    return np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30)


def run_all(kernels, target, cases, products):
    """Run kernels built together; `cases` are (name, arrays, expected output)."""
    library = compile_kernels(kernels, target)
    for i, (name, arrays, expected) in enumerate(cases):
        actual = call(library[f"f{i}"], arrays, expected.shape)
        bound = BOUND[products] if "tdpbf16ps" in kernels[i].note else 1e-5
        assert error(actual, expected) < bound, f"{name}: {kernels[i].note}"


def convolution_case(name, spec, kernel, rng):
    data = normal(rng, spec.data_shape)
    weights = normal(rng, (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel))
    return name, [data, kernel.pack[0](weights)], reference_conv(spec, data, weights)


@here
@both
@pytest.mark.parametrize("way", ["rows", "gather"])
def test_convolutions(target, products, way):
    rng = np.random.default_rng(0)
    kernels = [on_tiles(conv2d, spec, target, way=way) for spec in CONVOLUTIONS.values()]
    used = [name for name, kernel in zip(CONVOLUTIONS, kernels, strict=True) if "tdpbf16ps" in kernel.note]
    assert len(used) >= 12
    cases = [
        convolution_case(name, spec, kernel, rng)
        for (name, spec), kernel in zip(CONVOLUTIONS.items(), kernels, strict=True)
    ]
    run_all(kernels, target, cases, products)


@here
@both
def test_products(target, products):
    rng = np.random.default_rng(0)
    specs = {name: spec for name, spec in PRODUCTS.items() if spec.constant_b}
    kernels = [on_tiles(matmul, spec, target) for spec in specs.values()]
    assert sum("tdpbf16ps" in kernel.note for kernel in kernels) >= 4
    cases = []
    for (name, spec), kernel in zip(specs.items(), kernels, strict=True):
        a, b = normal(rng, spec.a.shape), normal(rng, spec.b.shape)
        cases.append(
            (name, [a, kernel.pack[0](b)], logical(a, spec.a).astype("f8") @ logical(b, spec.b).astype("f8"))
        )
    run_all(kernels, target, cases, products)


@here
@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(2, 150),
    st.integers(1, 120),
    st.sampled_from(SHAPES),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([3, 6]),
)
def test_products_of_any_size(rows, depth, columns, registers, chunk, fused, products):
    target = THREE if products == 3 else SIX
    spec = MatmulSpec(Operand((rows, depth)), Operand((depth, columns)), constant_b=True)
    schedule = {"registers": registers, "row_blocks": chunk, "fused": int(fused), "ahead": chunk % 2}
    kernel = on_tiles(matmul, spec, target, **schedule)
    rng = np.random.default_rng(rows)
    a, b = normal(rng, (rows, depth)), normal(rng, (depth, columns))
    case = ("product", [a, kernel.pack[0](b)], a.astype("f8") @ b.astype("f8"))
    run_all([kernel], target, [case], products)


@here
@settings(max_examples=10, deadline=None)
@given(st.data())
def test_convolutions_of_any_size(data):
    groups = data.draw(st.sampled_from([1, 1, 2]))
    kernel = data.draw(st.sampled_from([(1, 1), (3, 3), (1, 5), (2, 3)]))
    spec = Conv2dSpec(
        data.draw(st.integers(1, 2)),
        groups * data.draw(st.integers(3, 40)),
        data.draw(st.integers(5, 20)),
        data.draw(st.integers(5, 40)),
        groups * data.draw(st.integers(1, 50)),
        kernel,
        data.draw(st.sampled_from([(1, 1), (2, 2), (1, 3)])),
        (1, 1),
        data.draw(st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (0, 2, 1, 0)])),
        groups,
    )
    products = data.draw(st.sampled_from([3, 6]))
    target = THREE if products == 3 else SIX
    schedule = {
        "registers": data.draw(st.sampled_from(SHAPES)),
        "way": data.draw(st.sampled_from(["rows", "gather"])),
        "row_blocks": data.draw(st.integers(1, 4)),
        "fused": data.draw(st.integers(0, 1)),
    }
    made = on_tiles(conv2d, spec, target, **schedule)
    run_all([made], target, [convolution_case("any", spec, made, np.random.default_rng(1))], products)


@here
@both
def test_panels_in_pieces(target, products):
    """All blocks of rows use a piece of a panel before the next one comes; their sums wait in memory."""
    rng = np.random.default_rng(5)
    kernels, cases = [], []
    schedule = {"pieces": 1, "fused": 0, "ahead": 1, "row_blocks": 2}
    for rows, depth, columns in ((98, 1024, 70), (130, 1590, 33), (33, 1056, 64)):
        spec = MatmulSpec(Operand((rows, depth)), Operand((depth, columns)), constant_b=True)
        kernel = on_tiles(matmul, spec, target, **schedule)
        a, b = normal(rng, (rows, depth)), normal(rng, (depth, columns))
        kernels.append(kernel)
        cases.append((f"{rows} rows", [a, kernel.pack[0](b)], a.astype("f8") @ b.astype("f8")))
        assert "for piece" in kernel.func.script()
    convolution = Conv2dSpec(1, 128, 7, 9, 48, (3, 3), pads=(1, 1, 1, 1))
    kernels.append(on_tiles(conv2d, convolution, target, way="gather", **schedule))
    cases.append(convolution_case("windows", convolution, kernels[-1], rng))
    run_all(kernels, target, cases, products)


@both
def test_the_code_is_made_of_tile_products(target, products):
    """Needs no such CPU: one instruction per pair of parts for each of four registers of sums."""
    spec = MatmulSpec(Operand((64, 64)), Operand((64, 64)), constant_b=True)
    kernel = on_tiles(matmul, spec, target, registers=(2, 2), fused=0)
    code = compile_kernels([kernel], target).mod.inspect_source("asm")
    steps = code.count("tdpbf16ps") // (4 * products)
    assert steps >= 1 and code.count("tdpbf16ps") == steps * 4 * products
    assert "vcvtneps2bf16" in code and "vfmadd" not in code


@here
def test_what_follows_is_part_of_the_kernel():
    """Bias, residual and maximum are applied to the sums of a tile whose last columns do not exist."""
    spec = Conv2dSpec(1, 40, 9, 11, 37, (3, 3), pads=(1, 1, 1, 1))
    tail = Epilogue(
        (ExtraInput((37,)), ExtraInput(spec.out_shape)),
        "bias, residual",
        lambda value, index, extras: (
            value + extras[0][index[1]] + extras[1][index[0], index[2], index[3], index[1]]
        ),
    )
    rng = np.random.default_rng(2)
    kernel = on_tiles(conv2d, spec, THREE, tail)
    assert "tdpbf16ps x3" in kernel.note
    _, arrays, expected = convolution_case("", spec, kernel, rng)
    bias, residual = normal(rng, (37,)), normal(rng, spec.out_shape)
    run_all([kernel], THREE, [("tail", [*arrays, bias, residual], expected + bias + residual)], 3)


@here
def test_six_products_are_as_exact_as_float32():
    rng = np.random.default_rng(3)
    spec = MatmulSpec(Operand((64, 1000)), Operand((1000, 64)), constant_b=True)
    a, b = normal(rng, (64, 1000)), normal(rng, (1000, 64))
    expected = a.astype("f8") @ b.astype("f8")
    errors = {}
    for name in ("sapphirerapids,+bf16x3", "sapphirerapids,+bf16x6", "sapphirerapids,-amx-bf16"):
        target = resolve_target(name)
        kernel = on_tiles(matmul, spec, target)
        library = compile_kernels([kernel], target)
        errors[name] = error(call(library["f0"], [a, kernel.pack[0](b)], (64, 64)), expected)
    three, six, plain = errors.values()
    assert six < 1.5 * plain < three < 1e-5


@here
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e-40, 3e38])
def test_extraordinary_numbers_reach_their_own_row_alone(value):
    """NaN and infinity make outputs that are not finite, in the rows that read them; tiny ones are zero."""
    rng = np.random.default_rng(4)
    spec = MatmulSpec(Operand((40, 70)), Operand((70, 50)), constant_b=True)
    kernel = on_tiles(matmul, spec, THREE)
    a, b = normal(rng, (40, 70)), normal(rng, (70, 50))
    a[7, 69] = value
    actual = call(compile_kernels([kernel], THREE)["f0"], [a, kernel.pack[0](b)], (40, 50))
    finite = np.isfinite(actual)
    assert finite[:7].all() and finite[8:].all()
    assert finite[7].all() == (abs(value) < 1e30) or value == 3e38
    if value == 1e-40:
        np.testing.assert_allclose(actual[7], a[7].astype("f8") @ b, atol=1e-3)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_subnormal=False), min_size=1, max_size=40))
def test_parts_add_up_to_the_number(numbers):
    values = np.array(numbers, np.float32)
    values = values[np.abs(values) < 1e38]
    parts = [bits.view(ml_dtypes.bfloat16).astype("f8") for bits in split_float32(values, 3)]
    assert np.all(np.abs(parts[0] + parts[1] - values) <= np.abs(values) * 2.0**-16 + 1e-38)
    assert np.all(np.abs(sum(parts) - values) <= np.abs(values) * 2.0**-24 + 1e-38)


def test_infinite_weights_have_one_part():
    high, low, last = split_float32(np.array([np.inf, -np.inf], np.float32), 3)
    assert not low.any() and not last.any()
    assert np.isinf(high.view(ml_dtypes.bfloat16).astype("f4")).all()


def test_pairs_are_those_that_matter_and_change_one_operand_at_a_time():
    for form, most in ((BF16X3, 1), (BF16X6, 2)):
        assert sorted(form.pairs) == sorted(
            (i, j) for i in range(form.parts) for j in range(form.parts) if i + j <= most
        )
        assert all((a == c) != (b == d) for (a, b), (c, d) in zip(form.pairs, form.pairs[1:], strict=False))


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("sapphirerapids", BF16X3),
        ("sapphirerapids,+bf16x6", BF16X6),
        ("sapphirerapids,-amx-bf16", None),
        ("x86-64-v4", None),
    ],
)
def test_the_target_says_how(name, form):
    assert float_format(resolve_target(name)) == form
