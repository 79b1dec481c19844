"""LSTM, GRU and RNN as kernels that run all steps: every attribute and optional operand, threads, targets."""

import dataclasses
import tempfile
from pathlib import Path

import graphwright as gw
import numpy as np
import onnx_ir as ir
import pytest
from graphwright.backends.target import host_target, resolve_target
from graphwright.backends.tvm.build import build as build_library
from graphwright.backends.tvm.decompose import decompose
from graphwright.backends.tvm.lower import lower
from graphwright.backends.tvm.runtime import TvmProgram
from graphwright.ir.compare import compare
from graphwright.ir.errors import CompileError
from graphwright.ir.reference import run_reference
from graphwright.ir.shapes import infer_shapes
from hypothesis import given, settings
from hypothesis import strategies as st

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FUNCTIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}
ACTIVATIONS = {
    "Affine": 2,
    "Elu": 1,
    "HardSigmoid": 2,
    "LeakyRelu": 1,
    "Relu": 0,
    "ScaledTanh": 2,
    "Sigmoid": 0,
    "Softplus": 0,
    "Softsign": 0,
    "Tanh": 0,
    "ThresholdedRelu": 1,
}
OPTIONAL = ("b", "lengths", "h0", "c0", "p")


@dataclasses.dataclass(frozen=True)
class Layer:
    kind: str = "LSTM"
    steps: int = 5
    batch: int = 1
    inputs: int = 3
    hidden: int = 8
    direction: str = "forward"
    attributes: tuple[str, ...] = ()
    operands: frozenset[str] = frozenset({"b"})
    outputs: frozenset[str] = frozenset({"y", "h", "c"})
    layout: int = 0
    constant: bool = True

    def model(self) -> ir.Model:
        d, g = 1 + (self.direction == "bidirectional"), GATES[self.kind]
        b, t, h, i = self.batch, self.steps, self.hidden, self.inputs
        state = (b, d, h) if self.layout else (d, b, h)
        shapes = {
            "x": (b, t, i) if self.layout else (t, b, i),
            "w": (d, g * h, i),
            "r": (d, g * h, h),
            "b": (d, 2 * g * h),
            "lengths": (b,),
            "h0": state,
            "c0": state,
            "p": (d, 3 * h),
        }
        results = {"y": (b, t, d, h) if self.layout else (t, d, b, h), "h": state, "c": state}
        if self.kind != "LSTM":
            shapes.pop("c0"), shapes.pop("p"), results.pop("c")
        named = {name: ir.val(name, shape=shape, dtype=_dtype(name)) for name, shape in shapes.items()}
        taken = [named[n] if n in self.operands or n in "xwr" else None for n in named]
        text = f"{self.kind}<{', '.join(self._attributes())}>(x)"
        parsed = ir.from_onnx_text(
            f'<ir_version: 10, opset_import: ["" : 22]> g (float[1] x) => (float[1] y) {{ y = {text} }}'
        )
        attributes = next(iter(parsed.graph)).attributes.values()
        node = ir.Node("", self.kind, taken, attributes, num_outputs=len(results), name="layer")
        kept = []
        for value, (name, shape) in zip(node.outputs, results.items(), strict=True):
            value.name = name if name in self.outputs else f"unused_{name}"
            if name in self.outputs:
                value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
                kept.append(value)
        weights = (
            [v for v in taken if v is not None and v.name in ("w", "r", "b", "p")] if self.constant else []
        )
        feeds = self.feeds(0)
        for value in weights:
            value.const_value = ir.tensor(feeds[value.name], name=value.name)
        inputs = [value for value in taken if value is not None and value not in weights]
        graph = ir.Graph(inputs, kept, nodes=[node], initializers=weights, opset_imports={"": 22}, name="g")
        return ir.Model(graph, ir_version=10)

    def _attributes(self) -> list[str]:
        layout = ["layout = 1"] if self.layout else []
        return [f"hidden_size = {self.hidden}", f'direction = "{self.direction}"', *layout, *self.attributes]

    def feeds(self, seed: int) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(seed)
        d, g = 1 + (self.direction == "bidirectional"), GATES[self.kind]
        b, h = self.batch, self.hidden
        state = (b, d, h) if self.layout else (d, b, h)
        sequence = (b, self.steps) if self.layout else (self.steps, b)
        shapes = {
            "x": (*sequence, self.inputs),
            "b": (d, 2 * g * h),
            "h0": state,
            "c0": state,
            "p": (d, 3 * h),
        }
        shapes |= {"w": (d, g * h, self.inputs), "r": (d, g * h, h)}
        made = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for name, fan_in in (("w", self.inputs), ("r", 2 * h)):
            made[name] /= np.float32(np.sqrt(fan_in))
        made["lengths"] = generator.integers(0, self.steps + 1, b).astype(np.int32)
        return made


def _dtype(name: str) -> ir.DataType:
    return ir.DataType.INT32 if name == "lengths" else ir.DataType.FLOAT


def compiled(model: ir.Model, target="host"):
    """A function of feeds that gives outputs by name, with the program and what was lowered."""
    resolved = resolve_target(target) if isinstance(target, str) else target
    infer_shapes(model)
    lowered = lower(model, resolved)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.so"
        build_library(lowered, resolved, path)
        program = TvmProgram(path, lowered.weights)

    def run(feeds):
        arrays = program.run([feeds[each.name] for each in lowered.inputs])
        return {each.name: array for each, array in zip(lowered.outputs, arrays, strict=True)}

    return run, program, lowered


def assert_equals_reference(layer: Layer, target="host", seed: int = 1) -> None:
    model = layer.model()
    feeds = {value.name: layer.feeds(seed)[value.name] for value in model.graph.inputs}
    run, _, lowered = compiled(model, target)
    assert [each.kind for each in lowered.kernels].count(layer.kind.lower()) == 1
    outputs, expected = run(feeds), run_reference(model, feeds)
    assert outputs.keys() == expected.keys()
    for name, wanted in expected.items():
        assert outputs[name].shape == wanted.shape
        assert compare(wanted, outputs[name]).max_rel <= 1e-5, (name, layer)


@st.composite
def layers(draw) -> Layer:
    kind = draw(st.sampled_from(sorted(GATES)))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    attributes = []
    if draw(st.booleans()):
        attributes.append(f"clip = {draw(st.sampled_from([0.25, 1.5]))}")
    if draw(st.booleans()):
        count = FUNCTIONS[kind] * (1 + (direction == "bidirectional"))
        names = draw(st.lists(st.sampled_from(sorted(ACTIVATIONS)), min_size=count, max_size=count))
        attributes.append("activations = [" + ", ".join(f'"{name}"' for name in names) + "]")
        constants = [0.1 + 0.07 * i for i in range(count)]
        alphas = [a for a, name in zip(constants, names, strict=True) if ACTIVATIONS[name] > 0]
        betas = [a for a, name in zip(constants, names, strict=True) if ACTIVATIONS[name] > 1]
        for name, given_constants in (("alpha", alphas), ("beta", betas)):
            if given_constants and draw(st.booleans()):
                attributes.append(f"activation_{name} = {given_constants}")
    switch = {"LSTM": "input_forget", "GRU": "linear_before_reset"}.get(kind)
    if switch and draw(st.booleans()):
        attributes.append(f"{switch} = 1")
    known = OPTIONAL if kind == "LSTM" else OPTIONAL[:3]
    results = ("y", "h", "c") if kind == "LSTM" else ("y", "h")
    return Layer(
        kind,
        steps=draw(st.sampled_from([1, 2, 7])),
        batch=draw(st.sampled_from([1, 2, 5])),
        inputs=draw(st.sampled_from([1, 3])),
        hidden=draw(st.sampled_from([1, 5, 8, 19, 33])),
        direction=direction,
        attributes=tuple(attributes),
        operands=frozenset(draw(st.sets(st.sampled_from(known)))),
        outputs=frozenset(draw(st.sets(st.sampled_from(results), min_size=1))),
        constant=draw(st.sampled_from([True, True, False])),
    )


@settings(max_examples=8, deadline=None)
@given(layers())
def test_any_layer_equals_the_reference(layer):
    assert_equals_reference(layer)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(layers(), st.sampled_from(["host", "x86-64-v2", "x86-64-v3"]))
def test_any_layer_equals_the_reference_on_many_targets(layer, target):
    assert_equals_reference(layer, target)


@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_narrower_vectors(kind, target):
    operands = frozenset(OPTIONAL) if kind == "LSTM" else frozenset(OPTIONAL[:3])
    assert_equals_reference(Layer(kind, 6, 3, 4, 37, "bidirectional", operands=operands), target)


@pytest.mark.parametrize(
    ("layer", "shared"),
    [
        (Layer("LSTM", 9, 1, 4, 256), "share each step"),
        (Layer("GRU", 9, 1, 4, 257), "share each step"),
        (Layer("GRU", 9, 1, 4, 200, attributes=("linear_before_reset = 1",)), "share each step"),
        (Layer("LSTM", 9, 1, 4, 96, "bidirectional"), "thread per sequence"),
        (Layer("RNN", 9, 40, 4, 96), "thread per sequence"),
        (Layer("LSTM", 3, 1, 4, 8), ""),
    ],
)
def test_threads_share_what_pays_and_change_nothing(layer, shared):
    two = dataclasses.replace(host_target(), cores=2)
    model = layer.model()
    run, program, lowered = compiled(model, two)
    (note,) = (each.note for each in lowered.kernels if each.kind == layer.kind.lower())
    assert note.endswith(shared) if shared else "thread" not in note
    feeds = {value.name: layer.feeds(2)[value.name] for value in model.graph.inputs}
    expected = run_reference(model, feeds)
    results = []
    for threads in (1, 2):
        program.set_threads(threads)
        results.append(run(feeds))
        for name, wanted in expected.items():
            assert compare(wanted, results[-1][name]).max_rel <= 1e-5
    assert all(np.array_equal(results[0][name], results[1][name]) for name in expected)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_layout_with_the_batch_first(kind, direction):
    """The reference has only layout 0: the same layer with its operands turned."""
    operands = frozenset({"b", "lengths", "h0"} | ({"c0"} if kind == "LSTM" else set()))
    plain = Layer(kind, 6, 3, 4, 9, direction, operands=operands)
    turned = dataclasses.replace(plain, layout=1)
    feeds = plain.feeds(3)
    expected = run_reference(plain.model(), {v.name: feeds[v.name] for v in plain.model().graph.inputs})
    own = turned.model()
    for value in own.graph.initializers.values():
        value.const_value = ir.tensor(plain.feeds(0)[value.name], name=value.name)
    for name in ("x", "h0", "c0"):
        feeds[name] = np.ascontiguousarray(feeds[name].swapaxes(0, 1))
    outputs = compiled(own)[0](feeds)
    assert compare(expected["y"].transpose(2, 0, 1, 3), outputs["y"]).max_rel <= 1e-5
    for name in set(expected) - {"y"}:
        assert compare(expected[name].swapaxes(0, 1), outputs[name]).max_rel <= 1e-5


def test_halves_are_widened():
    layer = Layer("LSTM", 7, 2, 4, 20, "bidirectional", operands=frozenset({"b", "h0", "c0"}))
    wide, half = layer.model(), layer.model()
    rounded = {name: array.astype(np.float16) for name, array in layer.feeds(0).items()}
    for model, dtype in ((wide, np.float32), (half, np.float16)):
        kind = ir.DataType.from_numpy(np.dtype(dtype))
        for value in (*model.graph.inputs, *model.graph.outputs):
            value.type = ir.TensorType(kind)
        for value in model.graph.initializers.values():
            value.const_value = ir.tensor(rounded[value.name].astype(dtype), name=value.name)
            value.type = ir.TensorType(kind)
    feeds = {value.name: rounded[value.name] for value in wide.graph.inputs}
    expected = run_reference(wide, {name: array.astype(np.float32) for name, array in feeds.items()})
    for name, found in compiled(half)[0](feeds).items():
        assert found.dtype == np.float16
        assert np.array_equal(found, expected[name].astype(np.float16)) or (
            np.abs(found.astype(np.float32) - expected[name]).max() < 1e-3
        )


def test_work_to_compile_does_not_grow_with_the_sequence():
    short, long = (lower_only(Layer("GRU", steps, 1, 4, 16)) for steps in (300, 3000))
    assert [each.name for each in short.kernels] == [each.name for each in long.kernels]
    lines = [str(each.ir_module.script()).count("\n") for each in (short, long)]
    assert abs(lines[0] - lines[1]) < 10
    assert_equals_reference(Layer("GRU", 3000, 1, 4, 16))


def lower_only(layer: Layer):
    model = layer.model()
    infer_shapes(model)
    return lower(model, host_target())


def test_transposes_around_a_layer_are_no_work():
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 22]>
        g (float[2,6,4] x, float[2,32,4] w, float[2,32,8] r) => (float[2,6,16] y)
        <int64[3] shape = {2, 6, 16}> {
          first = Transpose<perm = [1, 0, 2]>(x)
          all = LSTM<hidden_size = 8, direction = "bidirectional">(first, w, r)
          back = Transpose<perm = [2, 0, 1, 3]>(all)
          y = Reshape(back, shape) }"""
    )
    feeds = {n: a for n, a in Layer("LSTM", 6, 2, 4, 8, "bidirectional").feeds(4).items() if n in "wr"}
    for name, array in feeds.items():
        value = next(value for value in model.graph.inputs if value.name == name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    x = {"x": np.random.default_rng(5).standard_normal((2, 6, 4)).astype(np.float32)}
    run, _, lowered = compiled(model)
    assert [each.kind for each in lowered.kernels] == ["matmul", "lstm"]
    assert compare(run_reference(model, x)["y"], run(x)["y"]).max_rel <= 1e-5


def test_lengths_that_the_model_was_not_made_for_stay_inside():
    layer = Layer("LSTM", 4, 2, 3, 8, "bidirectional", operands=frozenset({"b", "lengths"}))
    run = compiled(layer.model())[0]
    feeds = layer.feeds(6)
    whole = run({**feeds, "lengths": np.array([4, 0], np.int32)})
    wild = run({**feeds, "lengths": np.array([2**31 - 1, -(2**31)], np.int32)})
    assert all(np.array_equal(whole[name], wild[name]) for name in whole)


def test_lengths_that_are_whole_cost_nothing():
    layer = Layer("GRU", 4, 2, 3, 8, operands=frozenset({"b", "lengths"}))
    model = layer.model()
    lengths = next(value for value in model.graph.inputs if value.name == "lengths")
    model.graph.inputs.remove(lengths)
    lengths.const_value = ir.tensor(np.array([4, 4], np.int32), name="lengths")
    model.graph.register_initializer(lengths)
    lowered = compiled(model)[2]
    assert "int32" not in str(lowered.ir_module["main"])


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (('activations = ["Gelu"]',), "'Gelu' is no activation of recurrent operators"),
        (('activations = ["Tanh", "Tanh"]',), "2 activations are given where 1 are needed"),
    ],
)
def test_activations_that_onnx_does_not_know_are_refused(attributes, message):
    model = Layer("RNN", attributes=attributes, outputs=frozenset({"y"})).model()
    infer_shapes(model)
    with pytest.raises(CompileError, match=message):
        lower(model, host_target())


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_without_a_kernel_steps_are_unrolled_and_share_their_functions(kind):
    layer = Layer(kind, 12, 2, 6, 8, "bidirectional", outputs=frozenset({"y", "h"}))
    model = layer.model()
    feeds = {"x": layer.feeds(7)["x"]}
    expected = run_reference(model, feeds)
    infer_shapes(model)
    decompose(model)
    run, _, lowered = compiled(model)
    assert sum(each.calls for each in lowered.kernels) > 24
    assert len(lowered.kernels) < 25
    for name, found in run(feeds).items():
        assert compare(expected[name], found).max_rel <= 1e-5


def test_a_whole_model_compiles_checks_and_says_what_ran():
    exe = gw.compile(Layer("LSTM", 20, 1, 8, 48, outputs=frozenset({"y"})).model(), "x86")
    assert exe.report.check.checked
    assert exe.report.check.comparison.max_rel <= 1e-5
