"""Tensors of a program in one piece of memory: places, lifetimes, and that kernels find them."""

import numpy as np
import pytest
from graphwright.backends.target import resolve_target
from graphwright.backends.tvm.arena import ALIGNMENT, Lifetime, place, plan_arena
from graphwright.backends.tvm.lower import lower
from graphwright.ir.compare import compare
from graphwright.ir.shapes import infer_shapes
from hypothesis import given, settings
from hypothesis import strategies as st

lifetimes = st.builds(
    lambda size, first, length: Lifetime(size, first, first + length),
    st.integers(0, 1 << 20),
    st.integers(0, 30),
    st.integers(0, 8),
)


@given(st.lists(lifetimes, max_size=24))
@settings(max_examples=200, deadline=None)
def test_tensors_that_are_needed_at_once_lie_apart(tensors):
    offsets = place(tensors)
    assert all(offset >= 0 and offset % ALIGNMENT == 0 for offset in offsets)
    for at, one in enumerate(tensors):
        for other, another in enumerate(tensors[:at]):
            if one.meets(another):
                first, second = sorted([(offsets[at], one.bytes), (offsets[other], another.bytes)])
                assert first[0] + first[1] <= second[0] or not first[1] or not second[1]


def test_two_small_tensors_take_the_place_of_a_large_one():
    skip = Lifetime(384, 0, 9)  # lives along with everything
    tensors = [skip, Lifetime(768, 1, 2), Lifetime(384, 4, 5), Lifetime(384, 5, 6)]
    offsets = place(tensors)
    assert max(offset + each.bytes for offset, each in zip(offsets, tensors, strict=True)) == 768 + 384


def test_the_smallest_gap_that_is_large_enough_is_taken():
    tensors = [
        Lifetime(1024, 0, 9),
        Lifetime(640, 0, 1),
        Lifetime(576, 0, 9),
        Lifetime(320, 0, 1),
        Lifetime(256, 0, 9),
        Lifetime(192, 3, 4),  # when 640 and 320 bytes are free
    ]
    offsets = place(tensors)
    assert offsets[5] == offsets[3]


def _storages(function):
    """Bytes of what a function allocates, and the offsets of its tensors."""
    from tvm import ir

    sizes, offsets = [], []
    for binding in (each for block in function.body.blocks for each in block.bindings):
        operator = getattr(binding.value, "op", None)
        name = operator.name if isinstance(operator, ir.Op) else ""
        if name == "relax.memory.alloc_storage":
            sizes.append(int(binding.value.args[0].values[0]))
        elif name == "relax.memory.alloc_tensor":
            offsets.append(int(binding.value.args[1]))
    return sizes, offsets


@pytest.fixture
def skips(build_model):
    """A skip over smaller tensors, a view, a sort (whose function TVM's runtime brings along), two outputs."""
    return build_model(
        """skips (float[1,16,32,32] x, float[16,16,3,3] w, float[32,16,3,3] v, float[32,32,3,3] u)
            => (float[1,48,32,32] y, int64[1,32,3] i)
        <int64[1] three = {3}, int64[3] flat = {1, 32, 256}, int64[4] shape = {1, 32, 16, 16},
         float[4] scales = {1.0, 1.0, 2.0, 2.0}> {
            a = Conv<pads = [1, 1, 1, 1]>(x, w)
            b = Relu(a)
            c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(b, v)
            d = Relu(c)
            e = Conv<pads = [1, 1, 1, 1]>(d, u)
            f = Softmax(e)
            r = Reshape(f, flat)
            t, i = TopK<axis = 2>(r, three)
            s = ReduceMax<keepdims = 1>(r)
            n = Div(r, s)
            g = Reshape(n, shape)
            h = Resize<mode = "nearest">(g, , scales)
            y = Concat<axis = 1>(b, h)
        }""",
        w=(16, 16, 3, 3),
        v=(32, 16, 3, 3),
        u=(32, 32, 3, 3),
    )


def test_kernels_find_tensors_at_their_offsets(through_tvm, skips):
    outputs, expected, _ = through_tvm(skips)
    np.testing.assert_array_equal(outputs["i"], expected["i"])
    assert compare(expected["y"], outputs["y"]).max_rel <= 1e-4


def test_one_piece_of_memory_takes_less_than_turns_in_several(skips):
    import tvm
    from tvm import relax, transform

    infer_shapes(skips)
    target = resolve_target("x86-64-v3")
    planned = transform.Sequential(
        [
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
        ]
    )
    with tvm.target.Target(target.to_tvm()):
        module = planned(lower(skips, target).ir_module)
        before, zeros = _storages(module["main"])
        after, offsets = _storages(plan_arena()(module)["main"])
    assert not any(zeros) and any(offsets)
    assert sum(after) < sum(before)
    assert len(after) < len(before)


def test_definitions_of_tvm_read_at_offsets_once(through_tvm, build_model):
    model = build_model(
        """scattered (float[64] x, int64[96] places, float[96] updates) => (float[64] y, float[96] z)
        <int64[1] last = {1}, int64 two = {2}, float low = {-1.0}, float high = {1.0}> {
            a = Sin(x)
            halves = Div(places, two)
            m = Clip(updates, low, high)
            b = ScatterElements<reduction = "add">(a, halves, m)
            c = ScatterElements<reduction = "max">(b, halves, m)
            d = ScatterElements<reduction = "add">(c, halves, m)
            y = Exp(d)
            k = Unsqueeze(halves, last)
            g = GatherND(d, k)
            z = Neg(g)
        }"""
    )
    generator = np.random.default_rng(0)
    feeds = {
        "x": generator.standard_normal(64).astype(np.float32),
        "places": generator.integers(0, 128, 96),
        "updates": generator.standard_normal(96).astype(np.float32),
    }
    outputs, expected, _ = through_tvm(model, feeds)
    for name, wanted in expected.items():
        np.testing.assert_allclose(outputs[name], wanted, rtol=1e-5, atol=1e-5)
