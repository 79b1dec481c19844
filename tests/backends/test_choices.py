"""Every schedule that a template offers computes the same, and what it does not offer is passed over."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from graphwright.backends.target import resolve_target
from graphwright.backends.tvm.kernels import Conv2dSpec, MatmulSpec, Operand, conv2d, matmul
from graphwright.backends.tvm.kernels.choices import Choices, Option, choose, choose_size, choosing
from graphwright.backends.tvm.stack import lowering

TARGETS = [name for name in ("host", "x86-64-v3") if resolve_target(name).runs_here]
KERNELS = {
    "3x3": (conv2d, Conv2dSpec(1, 19, 13, 13, 36, (3, 3), pads=(1, 1, 1, 1))),
    "strided": (conv2d, Conv2dSpec(2, 3, 17, 23, 20, (5, 5), (2, 2), pads=(2, 2, 2, 2))),
    "pointwise": (conv2d, Conv2dSpec(1, 800, 5, 7, 40, (1, 1))),
    "strided pointwise": (conv2d, Conv2dSpec(2, 38, 15, 13, 44, (1, 1), (2, 3), groups=2)),
    "depthwise": (conv2d, Conv2dSpec(1, 37, 9, 14, 37, (3, 3), pads=(1, 1, 1, 1), groups=37)),
    "weights": (matmul, MatmulSpec(Operand((21, 784)), Operand((784, 50)), constant_b=True)),
    "activations": (matmul, MatmulSpec(Operand((2, 13, 17)), Operand((2, 17, 37)))),
}


def schedules(make, spec, target, count, rng):
    """The analytic schedule and random ones, each drawn parameter by parameter."""
    found = []
    for number in range(count):
        given = {}
        while True:
            with choosing(Choices(given)) as choices:
                kernel = make(spec, None, target)
            asked = [each for each in choices.asked.values() if each.name not in given]
            if number == 0 or not asked:
                break
            options = asked[0].options
            given[asked[0].name] = options[rng.integers(len(options))].value
        found.append((choices.schedule, kernel))
    return found


@pytest.mark.parametrize(
    ("name", "target_name"), [*((name, "host") for name in KERNELS), *(("3x3", name) for name in TARGETS[1:])]
)
def test_every_schedule_computes_the_same(name, target_name):
    make, spec = KERNELS[name]
    target, rng = resolve_target(target_name), np.random.default_rng(0)
    made = schedules(make, spec, target, 6, rng)
    assert len({str(schedule) for schedule, _ in made}) >= 3
    functions = {f"f{i}": k.func.with_attr("global_symbol", f"f{i}") for i, (_, k) in enumerate(made)}
    library = tvm.compile(
        tvm.IRModule(functions), target=tvm.target.Target(target.to_tvm()), tir_pipeline=lowering()
    )
    if isinstance(spec, Conv2dSpec):
        data = rng.standard_normal(spec.data_shape, dtype="f4")
        right = rng.standard_normal(
            (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel), dtype="f4"
        )
    else:
        data, right = (rng.standard_normal(each.shape, dtype="f4") for each in (spec.a, spec.b))
    results = []
    for i, (_, kernel) in enumerate(made):
        second = kernel.pack[0](right) if kernel.pack else right
        out = tvm.runtime.tensor(np.full(spec.out_shape, np.nan, "f4"))
        library[f"f{i}"](tvm.runtime.tensor(data), tvm.runtime.tensor(np.ascontiguousarray(second)), out)
        results.append(out.numpy())
    for (schedule, _), result in zip(made, results, strict=True):
        scale = np.abs(results[0]).max()
        assert np.abs(result - results[0]).max() <= 1e-5 * scale, schedule


@pytest.mark.parametrize("gathered", [0, 1])
def test_strided_pointwise_convolution_with_and_without_a_copy(gathered):
    """Both ways against numpy: every second column of every third row."""
    spec = Conv2dSpec(2, 20, 10, 9, 24, (1, 1), (3, 2), groups=2)
    target, rng = resolve_target("host"), np.random.default_rng(1)
    with choosing(Choices({"tiles": 0, "gathered": gathered})) as choices:
        kernel = conv2d(spec, None, target)
    assert choices.schedule["gathered"] == gathered and ("gathered" in kernel.note) == bool(gathered)
    library = tvm.compile(
        tvm.IRModule({"main": kernel.func.with_attr("global_symbol", "main")}),
        target=tvm.target.Target(target.to_tvm()),
        tir_pipeline=lowering(),
    )
    data = rng.standard_normal(spec.data_shape, dtype="f4")
    weights = rng.standard_normal((24, 10, 1, 1), dtype="f4")
    out = tvm.runtime.tensor(np.zeros(spec.out_shape, "f4"))
    library["main"](tvm.runtime.tensor(data), tvm.runtime.tensor(kernel.pack[0](weights)), out)
    picked = data[:, ::3, ::2].reshape(2, 4, 5, 2, 10)
    expected = np.einsum("nhwgc,goc->nhwgo", picked, weights.reshape(2, 12, 10)).reshape(out.shape)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_short_rows_of_strided_pointwise_convolution_share_tiles():
    narrow, wide = (Conv2dSpec(1, 1024, size, size, 2048, (1, 1), (2, 2)) for size in (14, 96))
    assert "gathered" in conv2d(narrow, None, resolve_target("x86-64-v3")).note
    assert "gathered" not in conv2d(wide, None, resolve_target("x86-64-v3")).note


def test_winograd_and_direct_loops_are_both_offered():
    spec = Conv2dSpec(1, 64, 28, 28, 64, (3, 3), pads=(1, 1, 1, 1))
    with choosing(Choices()) as choices:
        conv2d(spec, None, resolve_target("x86-64-v3"))
    assert {option.value for option in choices.asked["algorithm"].options} == {"direct", "F(2,3)", "F(4,3)"}
    with choosing(Choices({"algorithm": "direct", "tile": (3, 2, 8)})):
        assert conv2d(spec, None, resolve_target("x86-64-v3")).note == "conv2d 3x2x8"


def test_nobody_chooses_by_default():
    spec = Conv2dSpec(1, 32, 14, 14, 32, (1, 1))
    target = resolve_target("x86-64-v3")
    with choosing(Choices()) as choices:
        chosen = conv2d(spec, None, target)
    assert conv2d(spec, None, target).note == chosen.note
    assert all(each.value == each.analytic for each in choices.asked.values())


@pytest.mark.parametrize("wrong", [(0, 0, 0), (99, 1, 16), "8", 7, (1, 2)])
def test_what_is_not_offered_is_passed_over(wrong):
    target = resolve_target("x86-64-v3")
    spec = Conv2dSpec(1, 32, 14, 14, 32, (1, 1))
    with choosing(Choices({"tile": wrong, "colour": 3})) as choices:
        kernel = conv2d(spec, None, target)
    assert kernel.note == conv2d(spec, None, target).note
    assert choices.ignored == {"tile": wrong, "colour": 3}


def test_sizes_are_offered_up_to_the_most():
    with choosing(Choices({"rows": 5})) as choices:
        assert choose_size("rows", 3, 5) == 5
        assert choose("order", "a", lambda: [Option("b")]) == "a"
    assert [option.value for option in choices.asked["rows"].options] == [3, 1, 2, 4, 5]
    assert choices.schedule == {"rows": 5, "order": "a"}
