"""The analytic choices behind the kernels: packing, phases, tiles, chunks, and what the compiler makes of them."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tvm
from graphwright.backends.target import resolve_target
from graphwright.backends.tvm.kernels import Conv2dSpec, MatmulSpec, Operand, conv2d, matmul
from graphwright.backends.tvm.kernels.conv_transpose import phases
from graphwright.backends.tvm.kernels.matmul import pack_matrix
from graphwright.backends.tvm.kernels.spatial import pack_conv_weights
from graphwright.backends.tvm.kernels.tile import choose_chunks, choose_slices, choose_tile
from graphwright.backends.tvm.stack import lowering


def test_weights_are_packed_in_blocks_with_zeros():
    weights = np.arange(2 * 3 * 2 * 1 * 1, dtype="f4").reshape(6, 2, 1, 1)
    packed = pack_conv_weights(weights, groups=2, block=4)
    assert packed.shape == (2, 1, 1, 2, 4)
    assert packed[1, 0, 0].tolist() == [[6, 8, 10, 0], [7, 9, 11, 0]]

    matrix = pack_matrix(np.arange(6, dtype="f4").reshape(3, 2), Operand((3, 2), perm=(1, 0)), block=2)
    assert matrix.tolist() == [[[0, 2], [1, 3]], [[4, 0], [5, 0]]]


def test_phases_cover_every_output_once():
    for size, kernel, stride, dilation, before in [(12, 4, 2, 1, 1), (17, 3, 2, 2, 0), (10, 1, 3, 1, 0)]:
        found = phases(size, kernel, stride, dilation, before)
        covered = sorted(phase.first + i * stride for phase in found for i in range(phase.count))
        assert covered == list(range(size))


@pytest.mark.parametrize("name", ["x86-64-v2", "x86-64-v3", "x86-64-v4", "armv8-a", "cortex-a53"])
def test_tiles_fit_the_registers(name):
    target = resolve_target(name)
    for width in (1, 3, 7, 13, 14, 27, 56, 149):
        for channels in (3, 10, 24, 60, 512):
            for depth in (3, 64, 4608):
                tile = choose_tile(width, channels, depth, target, sweeps=width)
                assert tile.pixels <= width
                assert tile.pixels * tile.vectors + tile.vectors < target.vector_registers


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4", "armv8-a"])
def test_accumulators_stay_in_registers(name):
    """In the innermost loops at most one accumulator in twelve lives on the stack (LLVM keeps a zero beside them)."""
    target = resolve_target(name)
    kernels = [
        conv2d(Conv2dSpec(1, 64, 56, 56, 64, (5, 5), pads=(2, 2, 2, 2)), None, target),
        conv2d(Conv2dSpec(1, 64, 7, 7, 64, (1, 1)), None, target),
        matmul(MatmulSpec(Operand((128, 768)), Operand((768, 768)), constant_b=True), None, target),
    ]
    functions = {f"f{i}": kernel.func.with_attr("global_symbol", f"f{i}") for i, kernel in enumerate(kernels)}
    library = tvm.compile(
        tvm.IRModule(functions), target=tvm.target.Target(target.to_tvm()), tir_pipeline=lowering()
    )
    loops = inner_loops(library.mod.inspect_source("asm"))
    fused = [loop for loop in loops if re.search(r"vfmadd\d+ps\s.*[yz]mm|fmla\s+v\d+\.4s", loop)]
    assert len(fused) >= len(kernels)
    for loop in fused:
        stored = re.findall(r"[xyz]mm\d+, .*\(%rsp|str\s+q\d+, \[sp", loop)
        assert 12 * len(stored) <= len(re.findall("vfmadd|fmla", loop))


def inner_loops(assembly):
    """Basic blocks that jump back to their own label."""
    found = []
    for block in re.split(r"^(?=\.LBB)", re.sub(r"^\.Ltmp\d+:\n", "", assembly, flags=re.M), flags=re.M):
        label = block.split(":", 1)[0]
        if re.search(rf"(\bj\w+|\bb\.\w+|cbn?z\s+\w+,)\s+{re.escape(label)}\b", block):
            found.append(block)
    return found


def test_chunks_cover_the_rows_and_feed_all_cores():
    target = resolve_target("x86-64-v3")
    for rows in (1, 7, 14, 55, 224):
        for weight_bytes in (1 << 10, 1 << 22):
            chunks = choose_chunks(rows, 1 << 14, weight_bytes, 1, 3, target)
            assert (chunks.count - 1) * chunks.rows < rows <= chunks.count * chunks.rows
            if rows >= 2 * target.cores:
                assert chunks.count * 3 >= target.cores


def test_constant_weights_are_read_once_where_rows_fit_the_cache():
    target = resolve_target("x86-64-v3")
    half = target.l2_bytes // 2
    for weight_bytes in (half // 4, 4 * half):
        assert choose_chunks(28, 1 << 12, weight_bytes, 1, 8, target, swept_bytes=half).count == 1
    spilling = choose_chunks(28, 1 << 12, half // 4, 1, 8, target, swept_bytes=half + 1)
    assert spilling.count > 1
    assert spilling == choose_chunks(28, 1 << 12, half // 4, 1, 8, target)


def test_long_reductions_of_large_products_are_sliced():
    target = resolve_target("x86-64-v3")
    tile = choose_tile(128, 768, 3072, target)
    slices = choose_slices(128, 3072, 4 * 3072 * 768, tile, target)
    assert slices is not None
    assert (slices.count - 1) * slices.steps < 3072 <= slices.count * slices.steps
    assert choose_slices(1, 3072, 4 * 3072 * 768, tile, target) is None
    even = choose_slices(256, 2048, 4 * 2048 * 512, tile, target)
    assert even is not None and even.steps * even.count == 2048
    assert choose_slices(128, 64, 4 * 64 * 768, tile, target) is None


def test_weights_are_prefetched_but_for_few():
    target = resolve_target("x86-64-v3")
    middle = conv2d(Conv2dSpec(1, 160, 7, 7, 960, (1, 1)), None, target)
    assert "prefetch" in middle.func.script()
    deep = conv2d(Conv2dSpec(1, 512, 7, 7, 512, (3, 3), pads=(1, 1, 1, 1)), None, target)
    small = conv2d(Conv2dSpec(1, 16, 7, 7, 16, (3, 3), pads=(1, 1, 1, 1)), None, target)
    assert "prefetch" in deep.func.script()
    assert "prefetch" not in small.func.script()


def test_several_rows_beside_weights_from_memory_are_one_tile_that_asks_ahead():
    target = resolve_target("x86-64-v4")

    def product(rows, depth=2048):
        spec = MatmulSpec(Operand((rows, depth)), Operand((depth, 512)), constant_b=True)
        return matmul(spec, None, target)

    for rows in (5, 8):
        assert product(rows).note == f"matmul {rows}x2x16"
        assert "prefetch" in product(rows).func.script()
    for other in (product(1), product(9), product(8, depth=64)):
        assert "prefetch" not in other.func.script()
