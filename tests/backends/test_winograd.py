"""Winograd convolution: the algebra of its transforms, numbers against NumPy, and when it is chosen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tvm
from graphwright.backends.target import resolve_target
from graphwright.backends.tvm.kernels import Conv2dSpec, Epilogue, ExtraInput, conv2d
from graphwright.backends.tvm.kernels.minimal_filtering import F2, F4, multiply
from graphwright.backends.tvm.kernels.winograd import winograd
from graphwright.backends.tvm.kernels.winograd_plan import choose_winograd, divisions
from graphwright.backends.tvm.stack import lowering
from tvm import tirx

TARGETS = [name for name in ("host", "x86-64-v3", "x86-64-v2") if resolve_target(name).runs_here]

SPECS = {
    "whole tiles": Conv2dSpec(1, 16, 16, 16, 32, (3, 3), pads=(1, 1, 1, 1)),
    "last tiles moved back": Conv2dSpec(1, 20, 13, 11, 24, (3, 3), pads=(1, 1, 1, 1)),
    "no padding": Conv2dSpec(1, 17, 15, 9, 16, (3, 3)),
    "uneven padding": Conv2dSpec(2, 16, 9, 12, 19, (3, 3), pads=(0, 2, 1, 0)),
    "odd pruned channels": Conv2dSpec(2, 61, 14, 14, 77, (3, 3), pads=(1, 1, 1, 1)),
    "one tile": Conv2dSpec(1, 16, 4, 4, 16, (3, 3), pads=(1, 1, 1, 1)),
}


def convolved(spec, data, weights):
    top, left, bottom, right = spec.pads
    padded = np.pad(data.astype("f8"), ((0, 0), (top, bottom), (left, right), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    return np.einsum("nhwcij,ocij->nhwo", windows, weights.astype("f8"), optimize=True)


def bias_residual_relu(spec):
    def apply(value, index, extras):
        n, c, h, w = index
        return tirx.max(value + extras[0][c] + extras[1][n, h, w, c], tirx.const(0, "float32"))

    return Epilogue((ExtraInput((spec.out_channels,)), ExtraInput(spec.out_shape)), "tail", apply)


@pytest.mark.parametrize("used", [F2, F4], ids=["F2", "F4"])
def test_minimal_filtering_equals_sliding_the_filter(used):
    """A^T [(G g) * (B^T d)] is the correlation of d with g."""
    rng = np.random.default_rng(0)
    data, taps = rng.standard_normal(used.size), rng.standard_normal(3)
    products = (np.array(used.filter) @ taps) * (np.array(used.data) @ data)
    expected = [data[i : i + 3] @ taps for i in range(used.outputs)]
    np.testing.assert_allclose(np.array(used.result) @ products, expected, atol=1e-12)


@pytest.mark.parametrize("matrix", [F2.data, F2.result, F4.data, F4.result])
def test_shared_sums_make_fewer_operations(matrix):
    values = [tirx.Var(f"v{i}", "float32x8") for i in range(len(matrix[0]))]
    _, statements = multiply(matrix, values, 8, "t")
    plain = sum(np.count_nonzero(row) - 1 for row in matrix)
    made = sum(str(statement).count(" + ") + str(statement).count(" - ") for statement in statements)
    assert made <= plain
    if len(matrix[0]) == 6:
        assert made < plain


@pytest.mark.parametrize("target_name", TARGETS)
@pytest.mark.parametrize("used", [F2, F4], ids=["F2", "F4"])
def test_numbers_and_epilogues(target_name, used):
    target = resolve_target(target_name)
    rng = np.random.default_rng(1)
    cases = []
    for name, spec in SPECS.items():
        plan = min(divisions(spec, used, target), key=lambda plan: plan.cycles)
        # The division that would be taken, and one with several chunks whose last is moved back.
        tiles = plan.tile.pixels
        count = -(-spec.out_height // used.outputs) * -(-spec.out_width // used.outputs) * spec.batch
        split = dataclasses.replace(plan, tiles=min(tiles, count), chunks=-(-count // tiles))
        cases += [(spec, winograd(spec, None, plan, target), False)]
        if name in ("last tiles moved back", "odd pruned channels"):
            cases += [(spec, winograd(spec, bias_residual_relu(spec), split, target), True)]
    functions = {f"f{i}": k.func.with_attr("global_symbol", f"f{i}") for i, (_, k, _) in enumerate(cases)}
    library = tvm.compile(
        tvm.IRModule(functions), target=tvm.target.Target(target.to_tvm()), tir_pipeline=lowering()
    )
    for i, (spec, kernel, has_tail) in enumerate(cases):
        data = rng.standard_normal(spec.data_shape, dtype="f4")
        weights = rng.standard_normal((spec.out_channels, spec.in_channels, 3, 3), dtype="f4")
        bias = rng.standard_normal(spec.out_channels, dtype="f4")
        residual = rng.standard_normal(spec.out_shape, dtype="f4")
        arrays = [data, kernel.pack[0](weights), *([bias, residual] if has_tail else [])]
        out = tvm.runtime.tensor(np.full(spec.out_shape, np.nan, "f4"))
        library[f"f{i}"](*map(tvm.runtime.tensor, arrays), out)
        expected = convolved(spec, data, weights)
        if has_tail:
            expected = np.maximum(expected + bias + residual, 0)
        error = np.abs(out.numpy() - expected).max() / np.abs(expected).max()
        assert error < (2e-6 if used is F2 else 3e-5), (spec, error)


def test_chosen_where_it_pays_and_applies():
    target = resolve_target("x86-64-v3")
    body = Conv2dSpec(1, 64, 56, 56, 64, (3, 3), pads=(1, 1, 1, 1))
    assert conv2d(body, None, target).note.startswith("winograd F(4,3)")
    others = {
        "stride": dataclasses.replace(body, stride=(2, 2)),
        "dilation": dataclasses.replace(body, dilation=(2, 2)),
        "groups": dataclasses.replace(body, groups=2),
        "kernel": dataclasses.replace(body, kernel=(5, 5)),
        "one row": dataclasses.replace(body, height=1),
        "few channels": dataclasses.replace(body, in_channels=3),
    }
    for spec in others.values():
        assert choose_winograd(spec, float("inf"), target) is None
    assert choose_winograd(body, 1.0, target) is None


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4", "armv8-a"])
def test_large_weights_for_few_pixels_are_not_made_four_times_larger(name):
    """Transformed weights are larger; where each is read for a handful of tiles, memory decides."""
    spec = Conv2dSpec(1, 512, 7, 7, 512, (3, 3), pads=(1, 1, 1, 1))
    assert "F(4,3)" not in conv2d(spec, None, resolve_target(name)).note


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4"])
def test_weights_come_from_memory_even_if_they_would_fit_the_cache(name):
    """A run of a whole network leaves no layer's weights in the cache: 36 frequencies of them are not free."""
    spec = Conv2dSpec(1, 128, 14, 14, 32, (3, 3), pads=(1, 1, 1, 1))
    assert "F(2,3)" in conv2d(spec, None, resolve_target(name)).note
