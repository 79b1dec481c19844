"""The parts of repair: walking through a model piece by piece, and following channels through reshapes."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.errors import PassError
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import Reference
from graphwright.ir.shapes import infer_shapes
from graphwright.passes.quantization.repair.magnitudes import measure_magnitudes
from graphwright.passes.quantization.repair.places import Place, reshaped, transposed
from graphwright.passes.quantization.repair.walk import Walk
from hypothesis import given, settings
from hypothesis import strategies as st

WITH_BODY = """
<ir_version: 10, opset_import: ["" : 23]>
network (float[2,4] x, bool c) => (float[2,4] y)
<float[4,4] w = {1,2,0,1, 0,1,3,1, 2,0,1,1, 1,1,0,2}>
{
  a = MatMul(x, w)
  b = Relu(a)
  d = If(c) <
    then_branch = yes () => (float[2,4] t) { t = Add(b, x) },
    else_branch = no () => (float[2,4] e) { e = Sub(b, x) }
  >
  f = MatMul(d, w)
  y = Add(f, b)
}
"""


def residual(network):
    net = network(1)
    x = net.op("Relu", net.conv(net.input("n", 3, 8, 8), 6))
    y = net.op("Relu", net.conv(x, 6))
    y = net.op("Add", net.conv(y, 6), x)
    return net.model(net.op("Softmax", net.conv(y, 4), axis=1))


def with_body():
    model = ir.from_onnx_text(WITH_BODY)
    infer_shapes(model)
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{index}"
    return model


@pytest.mark.parametrize("which", ["residual", "with_body"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_walk_sees_what_a_run_sees(network, which, stride):
    model = residual(network) if which == "residual" else with_body()
    batches = [random_inputs(model, seed=seed, dims={"n": 2}) for seed in range(2)]
    walk, reference = Walk(model, batches), Reference(model)
    names = [str(node.outputs[0].name) for node in model.graph]
    for start in range(0, len(names), stride):
        wanted = names[start : start + stride]
        (peeked, *_) = walk.peek(wanted[-1])
        found = walk.values(wanted)
        np.testing.assert_array_equal(peeked, found[0][-1])
        for feeds, values in zip(batches, found, strict=True):
            expected = reference.run_values(feeds, wanted)
            for name, value in zip(wanted, values, strict=True):
                np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-6)


def test_a_walk_forgets_and_says_what_is_gone(network):
    model = residual(network)
    walk = Walk(model, [random_inputs(model, dims={"n": 2})])
    names = [str(node.outputs[0].name) for node in model.graph]
    walk.values([names[-1]])
    assert set(walk._known[0]) == {names[-1]}
    with pytest.raises(PassError, match="is gone already"):
        walk.values([names[0]])


def test_a_walk_sees_changes_ahead_of_it(network):
    model = residual(network)
    walk = Walk(model, [random_inputs(model, dims={"n": 2})])
    nodes = list(model.graph)
    walk.values([str(nodes[1].outputs[0].name)])
    weight = nodes[2].inputs[1]
    weight.const_value = ir.tensor(np.zeros_like(weight.const_value.numpy()), name=weight.name)
    ((result,),) = walk.values([str(nodes[2].outputs[0].name)])
    bias = nodes[2].inputs[2].const_value.numpy()
    np.testing.assert_array_equal(result, np.broadcast_to(bias[None, :, None, None], result.shape))


def test_magnitudes(network):
    net = network()
    model = net.model(net.matmul(net.input("n", 5, 8), 6))
    batches = [random_inputs(model, seed=seed, dims={"n": 3}) for seed in range(3)]
    found = measure_magnitudes(model, ["x"], batches)["x"]
    every = np.abs(np.concatenate([each["x"] for each in batches])).reshape(-1, 8)
    np.testing.assert_allclose(found.largest, every.max(axis=0))
    np.testing.assert_allclose(found.mean, every.mean(axis=0), rtol=1e-5)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_channels_are_where_numpy_puts_them(data):
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    axis = data.draw(st.integers(0, len(sizes) - 1))
    if sizes[axis] == 1:
        return
    array = np.broadcast_to(
        np.arange(sizes[axis]).reshape([-1 if i == axis else 1 for i in range(len(sizes))]), sizes
    )
    place: Place | None = Place((axis,), (sizes[axis],))
    factors = np.arange(sizes[axis], dtype=np.float64)
    for _ in range(data.draw(st.integers(0, 3))):
        if data.draw(st.booleans()):
            order = data.draw(st.permutations(range(array.ndim)))
            array, place = array.transpose(order), transposed(place, list(order))
        else:
            shape = data.draw(st.sampled_from(_factorizations(array.size)))
            place = reshaped(place, ir.Shape(array.shape), ir.Shape(shape))
            array = array.reshape(shape)
            if place is None:
                return
    np.testing.assert_array_equal(np.broadcast_to(place.spread(factors, array.ndim), array.shape), array)


def _factorizations(number):
    """Shapes with that many elements, sizes of 1 among them."""
    found = [(number,), (1, number), (number, 1)]
    for first in range(2, number + 1):
        if number % first == 0:
            found += [(first, number // first), (first, 1, number // first)]
            rest = number // first
            found += [(first, second, rest // second) for second in range(2, rest + 1) if rest % second == 0]
    return found
