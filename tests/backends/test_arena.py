"""Tensors of a program in one piece of memory: places, lifetimes, and that kernels find them."""

import numpy as np
import pytest
from graphwright.backends.target import resolve_target
from graphwright.backends.tvm.arena import ALIGNMENT, Lifetime, place, plan_arena
from graphwright.backends.tvm.lower import lower
from graphwright.backends.tvm.stack import lowering
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


@pytest.mark.parametrize("extern", [False, True])
def test_functions_look_where_a_tensor_begins_once(extern):
    import tvm
    from tvm import te, tirx, topi

    source = te.placeholder((16,), name="source")
    places = te.placeholder((4,), "int64", name="places")
    if extern:  # TVM's own definition, whose buffers begin at variable offsets
        updates = te.placeholder((4,), name="updates")
        made = topi.scatter_elements(source, places, updates, 0, "add")
        function = te.create_prim_func([source, places, updates, made])
    else:
        made = te.compute((4,), lambda i: source[tirx.Cast("int32", places[i])], name="taken")
        function = te.create_prim_func([source, places, made])
    target = tvm.target.Target(resolve_target("host").to_tvm())
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    with tvm.transform.PassContext(opt_level=2, config={"tirx.disable_assert": True}):
        built = tvm.compile(module, target=target, tir_pipeline=lowering())

    def behind(array):
        """The array at the second of two places in memory, the first of which holds other numbers."""
        gap = 64 // array.itemsize
        whole = tvm.runtime.tensor(np.concatenate([np.full(gap, 3, array.dtype), array]))
        return whole._create_view(array.shape, str(array.dtype), 64)

    values, chosen = np.arange(16, dtype=np.float32), np.array([2, 5, 5, 0])
    added = np.array([1, 2, 4, 8], np.float32)
    result = tvm.runtime.tensor(np.zeros(16 if extern else 4, np.float32))
    built(behind(values), behind(chosen), *([behind(added)] if extern else []), result)
    expected = values[chosen]
    if extern:
        expected = values.copy()
        np.add.at(expected, chosen, added)
    np.testing.assert_array_equal(result.numpy(), expected)
