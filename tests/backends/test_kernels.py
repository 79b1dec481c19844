"""Anchor kernels against plain NumPy, on every instruction set that runs here."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tvm
from graphwright.backends.target import resolve_target
from graphwright.backends.tvm.kernels import (
    Conv2dSpec,
    ConvTransposeSpec,
    Epilogue,
    ExtraInput,
    MatmulSpec,
    Operand,
    PoolSpec,
    conv2d,
    conv_transpose,
    matmul,
    pool,
)
from graphwright.backends.tvm.kernels.tile import choose_slices, choose_tile
from graphwright.backends.tvm.stack import lowering
from graphwright.ir.errors import CompileError
from tvm import tirx

TARGETS = [name for name in ("host", "x86-64-v3", "x86-64-v2") if resolve_target(name).runs_here]

CONVOLUTIONS = {
    "3x3": Conv2dSpec(1, 16, 14, 14, 32, (3, 3), pads=(1, 1, 1, 1)),
    "several border and inner tiles": Conv2dSpec(1, 5, 9, 61, 40, (3, 3), pads=(1, 1, 1, 1)),
    "first layer": Conv2dSpec(1, 3, 33, 35, 24, (7, 7), (2, 2), pads=(3, 3, 3, 3)),
    "large stride": Conv2dSpec(1, 3, 30, 30, 7, (11, 11), (4, 4)),
    "prime width": Conv2dSpec(2, 7, 13, 149, 21, (3, 3), pads=(0, 0, 1, 2)),
    "asymmetric": Conv2dSpec(2, 6, 9, 11, 10, (3, 2), (2, 1), (1, 2), (0, 1, 2, 3)),
    "dilated beyond the border": Conv2dSpec(
        1, 8, 17, 17, 16, (3, 3), dilation=(12, 12), pads=(12, 12, 12, 12)
    ),
    "one-dimensional": Conv2dSpec(1, 6, 1, 50, 10, (1, 5), (1, 2), pads=(0, 4, 0, 0)),
    "one pixel": Conv2dSpec(1, 33, 1, 1, 10, (3, 3), pads=(1, 1, 1, 1)),
    "rows wholly in the padding": Conv2dSpec(1, 4, 3, 3, 5, (3, 3), pads=(3, 3, 3, 3)),
    "pointwise": Conv2dSpec(3, 33, 7, 5, 21, (1, 1)),
    "pointwise strided": Conv2dSpec(1, 16, 15, 15, 48, (1, 1), (2, 2)),
    "pointwise grouped": Conv2dSpec(2, 40, 6, 6, 60, (1, 1), groups=4),
    "grouped": Conv2dSpec(1, 12, 10, 10, 18, (3, 3), pads=(1, 1, 1, 1), groups=3),
    "channel multiplier": Conv2dSpec(1, 8, 9, 9, 16, (3, 3), pads=(1, 1, 1, 1), groups=8),
    "groups of four": Conv2dSpec(1, 24, 9, 30, 24, (3, 3), pads=(1, 1, 1, 1), groups=6),
    "groups of three to two": Conv2dSpec(2, 27, 8, 8, 18, (3, 3), (2, 2), pads=(1, 1, 1, 1), groups=9),
    "depthwise": Conv2dSpec(1, 50, 19, 23, 50, (3, 3), pads=(1, 1, 1, 1), groups=50),
    "depthwise strided": Conv2dSpec(2, 20, 14, 14, 20, (5, 5), (2, 2), pads=(1, 2, 2, 1), groups=20),
    "depthwise few channels": Conv2dSpec(1, 3, 14, 14, 3, (3, 3), pads=(1, 1, 1, 1), groups=3),
    "depthwise dilated": Conv2dSpec(1, 9, 21, 21, 9, (3, 3), dilation=(9, 9), pads=(9, 9, 9, 9), groups=9),
}

TRANSPOSED = {
    "depthwise": ConvTransposeSpec(1, 20, 7, 9, 20, 14, 18, (4, 4), (2, 2), pads=(1, 1, 1, 1), groups=20),
    "depthwise padded": ConvTransposeSpec(
        2, 40, 5, 6, 40, 10, 12, (3, 3), (2, 2), pads=(1, 1, 1, 1), groups=40
    ),
    "depthwise multiplied": ConvTransposeSpec(1, 16, 5, 6, 32, 10, 12, (2, 2), (2, 2), groups=16),
    "depthwise line": ConvTransposeSpec(
        1, 24, 1, 30, 24, 1, 120, (1, 8), (1, 4), pads=(0, 2, 0, 2), groups=24
    ),
    "one output": ConvTransposeSpec(1, 40, 1, 50, 1, 1, 400, (1, 16), (1, 8), pads=(0, 4, 0, 4)),
    "few outputs": ConvTransposeSpec(2, 24, 6, 7, 5, 12, 14, (2, 2), (2, 2)),
    "few outputs, many phases": ConvTransposeSpec(1, 24, 6, 7, 3, 24, 28, (4, 4), (4, 4)),
    "nineteen outputs": ConvTransposeSpec(1, 24, 6, 7, 19, 12, 14, (2, 2), (2, 2)),
    "few outputs, gaps": ConvTransposeSpec(1, 8, 5, 6, 2, 20, 24, (4, 2), (4, 4)),
    "doubling": ConvTransposeSpec(1, 12, 6, 6, 20, 12, 12, (2, 2), (2, 2)),
    "overlapping": ConvTransposeSpec(2, 5, 7, 5, 6, 14, 10, (4, 4), (2, 2), pads=(1, 1, 1, 1)),
    "output padding": ConvTransposeSpec(1, 8, 5, 5, 9, 10, 10, (3, 3), (2, 2), pads=(1, 1, 1, 1)),
    "holes": ConvTransposeSpec(1, 5, 4, 4, 6, 10, 10, (1, 1), (3, 3)),
    "dilated": ConvTransposeSpec(1, 6, 7, 7, 9, 17, 17, (3, 3), (2, 2), (2, 2), groups=3),
    "many phases": ConvTransposeSpec(1, 5, 4, 9, 18, 16, 36, (5, 5), (4, 4), pads=(2, 2, 2, 2)),
    "cropped": ConvTransposeSpec(1, 4, 6, 6, 3, 5, 5, (3, 3), (2, 2), pads=(4, 4, 4, 4)),
    "stride one": ConvTransposeSpec(1, 4, 6, 8, 3, 6, 8, (3, 3), pads=(1, 1, 1, 1)),
}

PRODUCTS = {
    "weights": MatmulSpec(Operand((31, 40)), Operand((40, 50)), constant_b=True),
    "weights transposed": MatmulSpec(Operand((2, 7, 19)), Operand((33, 19), perm=(1, 0)), constant_b=True),
    "row transposed": MatmulSpec(Operand((19, 6), perm=(1, 0)), Operand((19, 5)), constant_b=True),
    "vector by weights": MatmulSpec(Operand((1, 300)), Operand((300, 129)), constant_b=True),
    "one output": MatmulSpec(Operand((3, 64)), Operand((64, 1)), constant_b=True),
    "long reduction": MatmulSpec(Operand((1, 25088)), Operand((25088, 17)), constant_b=True),
    "activations": MatmulSpec(Operand((2, 3, 13, 17)), Operand((2, 3, 17, 37))),
    "broadcast": MatmulSpec(Operand((2, 1, 5, 33)), Operand((3, 33, 9))),
    "keys transposed": MatmulSpec(Operand((2, 21, 8)), Operand((2, 23, 8), perm=(0, 2, 1))),
    "split heads": MatmulSpec(
        Operand((2, 21, 24), (0, 2, 1, 3), (2, 21, 3, 8)), Operand((2, 19, 24), (0, 2, 3, 1), (2, 19, 3, 8))
    ),
    "column": MatmulSpec(Operand((5, 7)), Operand((2, 7, 1))),
}

POOLS = {
    "max": PoolSpec("max", 1, 21, 15, 15, 7, 7, (3, 3), (2, 2)),
    "max padded": PoolSpec("max", 2, 64, 14, 30, 7, 15, (3, 3), (2, 2), pads=(1, 1, 1, 1)),
    "max dilated": PoolSpec("max", 1, 20, 13, 13, 2, 2, (5, 5), (3, 3), (2, 2), (2, 1, 0, 2)),
    "average": PoolSpec("average", 1, 5, 12, 12, 6, 6, (2, 2), (2, 2)),
    "average padded": PoolSpec("average", 1, 17, 15, 15, 15, 15, (3, 3), pads=(1, 1, 1, 1)),
    "average with padding": PoolSpec(
        "average", 1, 17, 15, 15, 15, 15, (3, 3), pads=(1, 1, 1, 1), count_include_pad=True
    ),
    "average rounded up": PoolSpec("average", 1, 5, 8, 8, 4, 4, (3, 3), (2, 2)),
    "average rounded up with padding": PoolSpec(
        "average", 1, 5, 8, 8, 5, 5, (3, 3), (2, 2), pads=(1, 1, 1, 1), count_include_pad=True
    ),
    "global": PoolSpec("average", 2, 70, 13, 12, 1, 1, (13, 12)),
    "small global": PoolSpec("max", 1, 10, 4, 4, 1, 1, (4, 4)),
}


def reference_conv(spec, data, weights):
    top, left, bottom, right = spec.pads
    padded = np.pad(data.astype("f8"), ((0, 0), (top, bottom), (left, right), (0, 0)))
    out = np.zeros(spec.out_shape)
    depth, per_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    for kh in range(spec.kernel[0]):
        for kw in range(spec.kernel[1]):
            h, w = kh * spec.dilation[0], kw * spec.dilation[1]
            seen = padded[:, h:, w:][:, :: spec.stride[0], :: spec.stride[1]]
            seen = seen[:, : spec.out_height, : spec.out_width]
            for g in range(spec.groups):
                own = weights[g * per_group : (g + 1) * per_group, :, kh, kw].astype("f8")
                out[..., g * per_group : (g + 1) * per_group] += (
                    seen[..., g * depth : (g + 1) * depth] @ own.T
                )
    return out


def reference_transposed(spec, data, weights):
    depth, per_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    out = np.zeros(spec.out_shape)
    for h in range(spec.height):
        for w in range(spec.width):
            for kh in range(spec.kernel[0]):
                for kw in range(spec.kernel[1]):
                    oh = h * spec.stride[0] + kh * spec.dilation[0] - spec.pads[0]
                    ow = w * spec.stride[1] + kw * spec.dilation[1] - spec.pads[1]
                    if not (0 <= oh < spec.out_height and 0 <= ow < spec.out_width):
                        continue
                    for g in range(spec.groups):
                        own = slice(g * depth, (g + 1) * depth)
                        out[:, oh, ow, g * per_group : (g + 1) * per_group] += (
                            data[:, h, w, own].astype("f8") @ weights[own, :, kh, kw]
                        )
    return out


def reference_pool(spec, data):
    top, left, bottom, right = spec.pads
    out = np.zeros(spec.out_shape)
    for oh in range(spec.out_height):
        for ow in range(spec.out_width):
            rows = [oh * spec.stride[0] - top + k * spec.dilation[0] for k in range(spec.kernel[0])]
            columns = [ow * spec.stride[1] - left + k * spec.dilation[1] for k in range(spec.kernel[1])]
            counted = sum(
                -top <= h < spec.height + bottom and -left <= w < spec.width + right
                for h in rows
                for w in columns
            )
            rows = [h for h in rows if 0 <= h < spec.height]
            columns = [w for w in columns if 0 <= w < spec.width]
            seen = data[:, rows][:, :, columns].astype("f8")
            if spec.mode == "max":
                out[:, oh, ow] = seen.max((1, 2))
            else:
                divisor = counted if spec.count_include_pad else len(rows) * len(columns)
                out[:, oh, ow] = seen.sum((1, 2)) / divisor
    return out


def logical(array, operand):
    return array.reshape(operand.stored).transpose(operand.perm or range(len(operand.stored)))


def compile_kernels(kernels, target):
    """One library for many kernels: far quicker than a library each."""
    functions = {f"f{i}": kernel.func.with_attr("global_symbol", f"f{i}") for i, kernel in enumerate(kernels)}
    return tvm.compile(
        tvm.IRModule(functions), target=tvm.target.Target(target.to_tvm()), tir_pipeline=lowering()
    )


def call(function, arrays, shape, dtype="float32"):
    out = tvm.runtime.tensor(np.full(shape, 99, dtype))
    function(*[tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arrays], out)
    return out.numpy()


def close(actual, expected):
    scale = max(np.abs(expected).max(), 1e-30)
    return np.abs(actual - expected).max() / scale < 2e-6 * max(1, np.log2(expected.size))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def normal(rng, shape):
    return rng.standard_normal(shape, dtype="f4")


@pytest.mark.parametrize("name", TARGETS)
def test_convolutions_match(name, rng):
    target = resolve_target(name)
    kernels = [conv2d(spec, None, target) for spec in CONVOLUTIONS.values()]
    library = compile_kernels(kernels, target)
    for i, (case, spec) in enumerate(CONVOLUTIONS.items()):
        data = normal(rng, spec.data_shape)
        weights = normal(rng, (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel))
        actual = call(library[f"f{i}"], [data, kernels[i].pack[0](weights)], spec.out_shape)
        assert close(actual, reference_conv(spec, data, weights)), case


@pytest.mark.parametrize("name", TARGETS)
def test_transposed_convolutions_match(name, rng):
    target = resolve_target(name)
    kernels = [conv_transpose(spec, None, target) for spec in TRANSPOSED.values()]
    library = compile_kernels(kernels, target)
    for i, (case, spec) in enumerate(TRANSPOSED.items()):
        data = normal(rng, spec.data_shape)
        weights = normal(rng, (spec.in_channels, spec.out_channels // spec.groups, *spec.kernel))
        actual = call(library[f"f{i}"], [data, kernels[i].pack[0](weights)], spec.out_shape)
        assert close(actual, reference_transposed(spec, data, weights)), case


@pytest.mark.parametrize("name", TARGETS)
def test_products_match(name, rng):
    target = resolve_target(name)
    kernels = [matmul(spec, None, target) for spec in PRODUCTS.values()]
    library = compile_kernels(kernels, target)
    for i, (case, spec) in enumerate(PRODUCTS.items()):
        a, b = normal(rng, spec.a.shape), normal(rng, spec.b.shape)
        right = kernels[i].pack[0](b) if spec.constant_b else b
        expected = logical(a, spec.a).astype("f8") @ logical(b, spec.b)
        actual = call(library[f"f{i}"], [a, right], spec.out_shape)
        assert expected.shape == spec.out_shape
        assert np.abs(actual - expected).max() < 1e-5 * np.sqrt(spec.k), case


def test_few_rows_beside_weights_from_memory_match(rng):
    """The last blocks ask for weights behind the end."""
    target = dataclasses.replace(resolve_target(TARGETS[0]), l2_bytes=64 << 10)
    specs = [
        MatmulSpec(Operand((rows, depth)), Operand((depth, columns)), constant_b=True)
        for rows, depth, columns in ((5, 301, 70), (8, 640, 33), (1, 900, 77))
    ]
    kernels = [matmul(spec, None, target) for spec in specs]
    library = compile_kernels(kernels, target)
    for i, spec in enumerate(specs):
        a, b = normal(rng, spec.a.shape), normal(rng, spec.b.shape)
        actual = call(library[f"f{i}"], [a, kernels[i].pack[0](b)], spec.out_shape)
        np.testing.assert_allclose(actual, a.astype("f8") @ b, atol=1e-3)


def test_products_larger_than_the_cache_match(rng):
    """Rows in chunks, the reduction in slices whose sums wait in memory; the epilogue is applied once."""
    target = dataclasses.replace(resolve_target(TARGETS[0]), l2_bytes=64 << 10)
    relu = Epilogue(key="relu", apply=lambda value, index, extras: tirx.max(value, tirx.const(0, "float32")))
    specs = [
        MatmulSpec(Operand((1, 77, 900)), Operand((900, 70)), constant_b=True),
        MatmulSpec(Operand((41, 1000)), Operand((129, 1000), perm=(1, 0)), constant_b=True),
    ]
    assert all(
        choose_slices(77, spec.k, 1 << 18, choose_tile(77, 70, spec.k, target), target) for spec in specs
    )
    kernels = [matmul(spec, relu, target) for spec in specs]
    library = compile_kernels(kernels, target)
    for i, spec in enumerate(specs):
        a, b = normal(rng, spec.a.shape), normal(rng, spec.b.shape)
        actual = call(library[f"f{i}"], [a, kernels[i].pack[0](b)], spec.out_shape)
        expected = np.maximum(logical(a, spec.a).astype("f8") @ logical(b, spec.b), 0)
        np.testing.assert_allclose(actual, expected, atol=1e-3)


@pytest.mark.parametrize("name", TARGETS)
def test_pools_match(name, rng):
    target = resolve_target(name)
    kernels = [pool(spec, None, target) for spec in POOLS.values()]
    library = compile_kernels(kernels, target)
    for i, (case, spec) in enumerate(POOLS.items()):
        data = normal(rng, spec.data_shape)
        actual = call(library[f"f{i}"], [data], spec.out_shape)
        assert close(actual, reference_pool(spec, data)), case


def bias_residual_relu(channels, shape):
    """relu(x + bias[c] + residual[n, h, w, c])."""

    def apply(value, index, extras):
        n, c, h, w = index
        return tirx.max(value + extras[0][c] + extras[1][n, h, w, c], tirx.const(0, "float32"))

    return Epilogue((ExtraInput((channels,)), ExtraInput(shape, layout="NHWC")), "bias residual relu", apply)


def polynomial(shape):
    """Enough operations to be looped over instead of repeated."""

    def apply(value, index, extras):
        n, c, h, w = index
        result = value
        for power in range(8):
            result = result * tirx.const(0.5, "float32") + extras[0][n, h, w, c] * tirx.const(
                power, "float32"
            )
        return result

    return Epilogue((ExtraInput(shape),), "polynomial", apply)


def evaluate_polynomial(value, extra):
    for power in range(8):
        value = value * 0.5 + extra * power
    return value


@pytest.mark.parametrize("name", TARGETS)
def test_epilogues_are_applied_at_every_kind_of_tile(name, rng):
    target = resolve_target(name)
    cases = (
        "3x3",
        "several border and inner tiles",
        "pointwise",
        "pointwise grouped",
        "grouped",
        "depthwise",
    )
    specs = [CONVOLUTIONS[case] for case in cases]
    kernels = []
    for spec in specs:
        kernels.append(conv2d(spec, bias_residual_relu(spec.out_channels, spec.out_shape), target))
        kernels.append(conv2d(spec, polynomial(spec.out_shape), target))
    library = compile_kernels(kernels, target)
    for i, spec in enumerate(specs):
        data = normal(rng, spec.data_shape)
        weights = normal(rng, (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel))
        bias, residual = normal(rng, (spec.out_channels,)), normal(rng, spec.out_shape)
        packed, plain = kernels[2 * i].pack[0](weights), reference_conv(spec, data, weights)
        actual = call(library[f"f{2 * i}"], [data, packed, bias, residual], spec.out_shape)
        assert close(actual, np.maximum(plain + bias + residual, 0)), cases[i]
        actual = call(library[f"f{2 * i + 1}"], [data, packed, residual], spec.out_shape)
        assert close(actual, evaluate_polynomial(plain, residual)), cases[i]


def test_an_epilogue_may_store_elsewhere_in_another_type(rng):
    """A slice of a concatenation, rounded to int8, and a transposed matmul."""
    target = resolve_target(TARGETS[0])
    spec = Conv2dSpec(1, 6, 5, 7, 9, (3, 3), pads=(1, 1, 1, 1))
    slice_of = Epilogue(
        apply=lambda value, index, extras: tirx.round(value).astype("int8"),
        out_dtype="int8",
        out_shape=(1, 5, 7, 16),
        out_index=lambda index: (index[0], index[2], index[3], index[1] + 4),
    )
    product = MatmulSpec(Operand((5, 11)), Operand((11, 20)), constant_b=True)
    transposed = Epilogue(out_shape=(20, 5), out_index=lambda index: (index[1], index[0]))
    kernels = [conv2d(spec, slice_of, target), matmul(product, transposed, target)]
    library = compile_kernels(kernels, target)

    data, weights = normal(rng, spec.data_shape), normal(rng, (9, 6, 3, 3))
    actual = call(library["f0"], [data, kernels[0].pack[0](weights)], (1, 5, 7, 16), "int8")
    assert np.array_equal(actual[..., 4:13], np.round(reference_conv(spec, data, weights)).astype("int8"))
    assert (actual[..., :4] == 99).all() and (actual[..., 13:] == 99).all()

    a, b = normal(rng, (5, 11)), normal(rng, (11, 20))
    actual = call(library["f1"], [a, kernels[1].pack[0](b)], (20, 5))
    np.testing.assert_allclose(actual, (a @ b).T, atol=1e-5)


def test_an_epilogue_sees_logical_indices_whatever_is_stored(rng):
    """A large epilogue of a convolution over one axis, stored with three axes."""
    target = resolve_target(TARGETS[0])
    spec = CONVOLUTIONS["one-dimensional"]
    stored = (spec.batch, spec.out_width, spec.out_channels)

    def apply(value, index, extras):
        n, c, _, w = index
        return polynomial(stored).apply(value, index, [_Reordered(extras[0], (n, w, c))])

    epilogue = Epilogue(
        (ExtraInput(stored),), "1d", apply, out_shape=stored, out_index=lambda i: (i[0], i[3], i[1])
    )
    kernel = conv2d(spec, epilogue, target)
    data, weights = normal(rng, spec.data_shape), normal(rng, (spec.out_channels, 6, 1, 5))
    extra = normal(rng, stored)
    actual = call(compile_kernels([kernel], target)["f0"], [data, kernel.pack[0](weights), extra], stored)
    assert close(actual, evaluate_polynomial(reference_conv(spec, data, weights)[:, 0], extra))


class _Reordered:
    """A buffer read at a fixed place, whatever index is asked for."""

    def __init__(self, source, place):
        self._source, self._place = source, place

    def __getitem__(self, index):
        return self._source[self._place]


def test_a_batched_constant_is_refused():
    spec = MatmulSpec(Operand((2, 3, 4)), Operand((2, 4, 5)), constant_b=True)
    with pytest.raises(CompileError, match="rank 2"):
        matmul(spec, None, resolve_target("x86-64-v3"))
