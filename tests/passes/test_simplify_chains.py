"""simplify on random chains of operators: same numbers, and nothing left to do the second time."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.load import load
from graphwright.ir.reference import run_reference
from graphwright.ir.verify import verify
from graphwright.passes.equivalence import check_equivalent
from graphwright.passes.manager import PassManager
from graphwright.tools.simplifiers.models import MODELS, build_model
from graphwright.tools.zoo.synthetic import build_control_flow, build_synthetic
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st


class Chain:
    """Grows a graph: each step reads one or two of the values so far and makes one of at most 4 axes."""

    def __init__(self, net, draw, dtype):
        self.net, self.draw = net, draw
        shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
        self.values = [net.input(*shape, dtype=dtype)]

    def pick(self):
        newest = self.draw(st.sampled_from([True] * 5 + [False]))
        return self.values[-1] if newest else self.draw(st.sampled_from(self.values))

    def grow(self, step):
        value = self.pick()
        made = getattr(self, step)(value)
        if made is not None and 1 <= len(made.shape) <= 5 and int(np.prod(made.shape.numpy())) <= 600:
            self.values.append(made)

    def number(self, value, *choices):
        number = self.draw(st.sampled_from(choices or (0.5, 2.0, -1.0, 1.0, 3.0, 4.0, -0.25)))
        return self.net.constant(np.array(number, value.dtype.numpy()))

    def axis(self, value):
        return self.draw(st.integers(-len(value.shape), len(value.shape) - 1))

    def unary(self, value):
        kind = self.draw(
            st.sampled_from(
                ["Relu", "Abs", "Neg", "Ceil", "Floor", "Round", "Sign", "Sigmoid", "Identity", "Tanh"]
            )
        )
        return self.net.op(kind, value)

    def clip(self, value):
        low, high = self.number(value, -2.0, 0.0, 0.25), self.number(value, 0.5, 1.0, 6.0)
        kind = self.draw(st.sampled_from(["both", "low", "high", "max", "min"]))
        if kind in ("max", "min"):
            return self.net.op(kind.capitalize(), *self.either(value, low if kind == "max" else high))
        return self.net.op("Clip", value, None if kind == "high" else low, None if kind == "low" else high)

    def either(self, a, b):
        return (a, b) if self.draw(st.booleans()) else (b, a)

    def arithmetic(self, value):
        kind = self.draw(st.sampled_from(["Add", "Sub", "Mul", "Div", "Sum", "Max"]))
        operand = self.number(value) if self.draw(st.booleans()) else self.vector(value)
        return (
            self.net.op(kind, value, operand)
            if kind == "Div"
            else self.net.op(kind, *self.either(value, operand))
        )

    def vector(self, value):
        shape = [dim if self.draw(st.booleans()) else 1 for dim in value.shape]
        return self.net.constant(
            self.net.rng.choice([0.5, 1.0, 2.0, -3.0], shape).astype(value.dtype.numpy())
        )

    def gated(self, value):
        return self.net.op("Mul", *self.either(value, self.net.op("Sigmoid", value)))

    def together(self, value):
        other = next((v for v in reversed(self.values) if v is not value and v.shape == value.shape), value)
        kind = self.draw(st.sampled_from(["Add", "Sub", "Mul", "Max", "Concat"]))
        if kind == "Concat":
            return self.net.op(kind, value, other, axis=self.axis(value))
        return self.net.op(kind, value, other)

    def transpose(self, value):
        return self.net.op("Transpose", value, perm=self.draw(st.permutations(range(len(value.shape)))))

    def reshape(self, value):
        sizes = list(value.shape.numpy())
        return self.net.op("Reshape", value, self.net.ints(*self.draw(st.permutations(sizes))))

    def flatten(self, value):
        return self.net.op("Flatten", value, axis=self.draw(st.integers(0, len(value.shape))))

    def unsqueeze(self, value):
        return self.net.op(
            "Unsqueeze", value, self.net.ints(self.draw(st.integers(-len(value.shape) - 1, len(value.shape))))
        )

    def squeeze(self, value):
        ones = [axis for axis, size in enumerate(value.shape) if size == 1]
        return (
            self.net.op("Squeeze", value, self.net.ints(self.draw(st.sampled_from(ones)))) if ones else None
        )

    def cut(self, value):
        axis = self.axis(value)
        size = value.shape[axis]
        start, stop = self.draw(st.integers(-size - 1, size)), self.draw(st.integers(-size - 1, size + 3))
        step = self.draw(st.sampled_from([1, 1, 2, -1, -2]))
        made = [self.net.ints(number) for number in (start, stop, axis, step)]
        return self.net.op("Slice", value, *made) if len(range(size)[start:stop:step]) else None

    def gather(self, value):
        axis = self.axis(value)
        size = value.shape[axis]
        scalar = self.draw(st.booleans())
        picked = self.draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=3))
        indices = np.array(picked[0] if scalar else picked, np.int64)
        return self.net.op("Gather", value, self.net.constant(indices), axis=axis)

    def split(self, value):
        axis = self.axis(value)
        size = value.shape[axis]
        if size < 2:
            return None
        first = self.draw(st.integers(1, size - 1))
        left, right = self.net.op("Split", value, self.net.ints(first, size - first), outputs=2, axis=axis)
        if self.draw(st.booleans()):
            return self.net.op("Concat", left, right, axis=axis)
        self.values.append(left)
        return right

    def pad(self, value):
        rank = len(value.shape)
        pads = self.draw(st.lists(st.integers(0, 1), min_size=2 * rank, max_size=2 * rank))
        number = self.net.constant(np.array(self.draw(st.sampled_from([0.0, 1.0])), value.dtype.numpy()))
        return self.net.op("Pad", value, self.net.ints(*pads), number)

    def expand(self, value):
        wide = [self.draw(st.sampled_from([size, 3])) if size == 1 else size for size in value.shape]
        return self.net.op("Expand", value, self.net.ints(*wide))

    def tile(self, value):
        return self.net.op("Tile", value, self.net.ints(*[self.draw(st.integers(1, 2)) for _ in value.shape]))

    def reduce(self, value):
        kind = self.draw(st.sampled_from(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"]))
        axes = sorted(self.draw(st.sets(st.integers(0, len(value.shape) - 1), min_size=1)))
        keep = self.draw(st.sampled_from([1, 1, 0])) if len(axes) < len(value.shape) else 1
        return self.net.op(kind, value, self.net.ints(*axes), keepdims=keep)

    def cast(self, value):
        wide = self.net.op("Cast", value, to=int(ir.DataType.DOUBLE))
        moved = self.transpose(wide) if self.draw(st.booleans()) else wide
        return self.net.op("Cast", moved, to=int(value.dtype))

    def matmul(self, value):
        if len(value.shape) < 2:
            return None
        weight = self.net.weight(value.shape[-1], self.draw(st.integers(1, 4)))
        return self.net.op("MatMul", value, weight)

    def where(self, value):
        condition = self.net.op("Greater", value, self.number(value))
        if self.draw(st.booleans()):
            condition = self.net.op("Not", condition)
        return self.net.op("Where", condition, value, self.net.op("Neg", value))


STEPS = [name for name in vars(Chain) if name not in ("pick", "grow", "number", "axis", "either", "vector")]
STEPS = [name for name in STEPS if not name.startswith("_")]


EXACT = [
    *([kind] for kind in ("Relu", "Abs", "Neg", "Floor", "Round", "Sign", "Sigmoid", "Transpose", "Cast")),
    *(["Clip", low, high] for low, high in ((-1.0, 1.0), (0.0, 6.0), (2.0, 1.0))),
    *([kind, number] for kind in ("Max", "Min", "Where") for number in (-1.0, 0.0, 2.0)),
    *(["Div", 4.0], ["Mul", -1.0], ["Mul", 1.0], ["Sub", 0.0]),
]


BIG = ("light_vgg", "light_bvlc", "light_zfnet", "light_resnet", "light_inception", "synthetic", "large")
ZOO = [name for name in MODELS if not name.startswith(BIG)]


def simplified(model):
    once, _ = PassManager("simplify").run(model)
    verify(once)
    again, records = PassManager("simplify").run(once)
    return once, [(record.name, record.statistics) for record in records if record.changed]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    phases=[Phase.generate],
)
@given(data=st.data())
def test_random_chains_compute_the_same_and_are_done_at_once(network, data):
    chain = Chain(network(), data.draw, ir.DataType.FLOAT)
    for step in data.draw(st.lists(st.sampled_from(STEPS), min_size=2, max_size=12)):
        chain.grow(step)
    if len(chain.values) == 1:
        return
    outputs = [value for value in chain.values if not value.uses()] or chain.values[-1:]
    model = chain.net.model(*[chain.net.op("Softsign", value) for value in outputs])
    once, later = simplified(model)
    assert not later
    found = check_equivalent(model, once)
    assert found.passed, str(found)
    assert len(once.graph) <= len(model.graph)


EXTREMES = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -2.0, 3e38, -3e38, 1e-40], np.float32)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(seed=st.integers(0, 10_000), steps=st.lists(st.sampled_from(EXACT), min_size=2, max_size=10))
def test_nan_and_infinities_come_out_where_they_did(network, seed, steps):
    rng = np.random.default_rng(seed)
    net = network(seed)
    x = value = net.input(2, 5)
    for kind, *numbers in steps:
        constants = [net.constant(np.float32(number)) for number in numbers]
        if kind == "Transpose":
            value = net.op(kind, value, perm=[1, 0])
        elif kind == "Cast":
            value = net.op(kind, net.op(kind, value, to=int(ir.DataType.DOUBLE)), to=int(ir.DataType.FLOAT))
        elif kind == "Where":
            value = net.op(
                kind, net.op("Not", net.op("Less", value, *constants)), value, net.op("Neg", value)
            )
        else:
            value = net.op(kind, value, *constants)
    model = net.model(net.op("Neg", value), net.op("Abs", value))
    once, later = simplified(model)
    assert not later
    feeds = {x.name: rng.choice(EXTREMES, (2, 5))}
    for name, expected in run_reference(model, feeds).items():
        np.testing.assert_array_equal(expected, run_reference(once, feeds)[name])


@pytest.mark.parametrize(
    "build", [lambda: build_synthetic(150), lambda: build_synthetic(150, idle=True), build_control_flow]
)
def test_nothing_is_left_to_do_on_synthetic_models(build):
    _, later = simplified(build())
    assert not later


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_nothing_is_left_to_do_on_the_zoo(name, tmp_path):
    model = load(build_model(name, tmp_path))
    once, later = simplified(model)
    assert not later
    found = check_equivalent(model, once)
    assert found.passed, str(found)


def test_parts_of_a_function_are_simplified_with_constants_of_their_own():
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23, "my" : 1]>
        g (float[2,3,4] x) => (float[3,2,3] y) { y = my.f(x) }
        <domain: "my", opset_import: ["" : 23]>
        f (x) => (y) <float[2,3,4] x, float[4,2,3] a, float[3,2,3] b> {
            one = Constant<value = int64[1] {1}>()
            zero = Constant<value = int64[1] {0}>()
            many = Constant<value = int64[1] {9}>()
            a = Transpose<perm = [2, 0, 1]>(x)
            b = Slice(a, one, many, zero)
            y = Transpose<perm = [0, 1, 2]>(b)
        }"""
    )
    once, later = simplified(model)
    assert not later
    (function,) = once.functions.values()
    assert [node.op_type for node in function if node.op_type != "Constant"] == ["Slice", "Transpose"]
    assert not once.graph.initializers
    assert check_equivalent(model, once).passed


def test_parameters_of_functions_are_not_taken_for_defaults():
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23, "my" : 1]>
        g (float[2,3,4] x) => (float[4,2,3] y) { y = my.f<p = [1, 2, 0]>(x) }
        <domain: "my", opset_import: ["" : 23]>
        f <p>(x) => (y) <float[2,3,4] x, float[3,4,2] a> {
            a = Transpose<perm : ints = @p>(x)
            y = Transpose<perm = [1, 2, 0]>(a)
        }"""
    )
    once, _ = simplified(model)
    assert check_equivalent(model, once).passed
