"""Recurrent steps that read weights of few bits: every form, attribute and operand, threads, targets, NaN."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.backends.target import host_target, resolve_target
from graphwright.backends.tvm.lower import lower
from graphwright.ir.compare import compare
from graphwright.ir.reference import run_reference
from graphwright.ir.shapes import infer_shapes
from graphwright.passes.optimize import optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from .test_recurrent import OPTIONAL, Layer, compiled, layers

ALL = frozenset(OPTIONAL)
FEW = frozenset(OPTIONAL[:3])
VNNI = "icelake-server"


def quantized(layer: Layer, form: str) -> ir.Model:
    model = layer.model()
    infer_shapes(model)
    return optimize(model, f"quantize-weights{{form={form} min_size=1}}").model


def uncached(target: str):
    """The target with no second-level cache, in which weights might lie as floats."""
    return dataclasses.replace(resolve_target(target), l2_bytes=0)


def lowered_for(model: ir.Model, target):
    infer_shapes(model)
    return lower(model, resolve_target(target) if isinstance(target, str) else target)


def note_of(lowered, kind: str) -> str:
    (note,) = (each.note for each in lowered.kernels if each.kind == kind.lower())
    return note


def assert_equals_reference(layer: Layer, form: str, target="host", seed: int = 1) -> str:
    model = quantized(layer, form)
    feeds = {value.name: layer.feeds(seed)[value.name] for value in model.graph.inputs}
    run, _, lowered = compiled(model, target)
    outputs, expected = run(feeds), run_reference(model, feeds)
    assert outputs.keys() == expected.keys()
    for name, wanted in expected.items():
        assert compare(wanted, outputs[name]).max_rel <= 1e-5, (name, layer, form)
    return note_of(lowered, layer.kind)


@pytest.mark.parametrize(
    ("layer", "form"),
    [
        (Layer("LSTM", 6, 1, 20, 64, "bidirectional", operands=ALL), "int8"),
        (Layer("LSTM", 5, 3, 7, 100, "reverse", ("clip = 0.7", "input_forget = 1"), ALL), "int4 block=32"),
        (Layer("GRU", 6, 2, 5, 70, "bidirectional", operands=FEW), "int8"),
        (Layer("GRU", 6, 2, 5, 64, "bidirectional", ("linear_before_reset = 1",), FEW), "int4"),
        (Layer("GRU", 4, 1, 5, 96, "reverse", ("clip = 1.5",), FEW), "int2"),
        (Layer("RNN", 7, 5, 3, 50, "bidirectional", operands=FEW), "ternary"),
        (Layer("LSTM", 4, 2, 3, 48, operands=ALL), "binary"),
        (Layer("LSTM", 5, 2, 4, 33, operands=ALL), "int4"),
        (Layer("GRU", 4, 2, 3, 24, "bidirectional", operands=FEW), "int2"),
        (Layer("LSTM", 5, 2, 4, 40, operands=ALL), "int8 symmetric=false block=20"),
        (Layer("GRU", 5, 3, 4, 66, "bidirectional", operands=FEW), "int4 symmetric=false"),
    ],
)
def test_integer_sums_equal_the_reference(layer, form):
    assert_equals_reference(layer, form, uncached("host"))
    assert "weights vpdpbusd" in note_of(lowered_for(quantized(layer, form), uncached(VNNI)), layer.kind)


@pytest.mark.parametrize(
    ("layer", "form", "note"),
    [
        (Layer("LSTM", 5, 2, 4, 64, "bidirectional", operands=ALL), "nf4", "16 levels"),
        (Layer("GRU", 5, 1, 4, 48, operands=FEW), "kmeans", "16 levels"),
        (Layer("LSTM", 5, 2, 4, 40, operands=ALL), "int8 symmetric=false block=10", "int8 weights"),
        (Layer("GRU", 5, 3, 4, 66, "reverse", operands=FEW), "int4 block=22", "int4 weights"),
        (Layer("LSTM", 5, 2, 4, 9, "bidirectional", operands=ALL), "int8", "int8 weights"),
        (
            Layer("RNN", 6, 2, 3, 40, "bidirectional", ('activations = ["Relu", "Tanh"]',), FEW),
            "int8",
            "int8",
        ),
    ],
)
def test_decoded_weights_equal_the_reference(layer, form, note):
    """Where bytes of states do not serve: uneven levels, groups, few units, states without a bound."""
    assert_equals_reference(layer, form, uncached("host"))
    found = note_of(lowered_for(quantized(layer, form), uncached(VNNI)), layer.kind)
    assert note in found and "vpdpbusd" not in found


@pytest.mark.parametrize(
    ("batch", "hidden", "form", "note"),
    [
        (1, 128, "int8", "int8 weights"),
        (1, 128, "nf4", ""),
        (8, 128, "int4", ""),
        (1, 512, "nf4", "16 levels"),
        (8, 512, "int4", "int4 weights"),
    ],
)
def test_weights_that_a_cache_holds_as_floats_stay_so_where_that_is_faster(batch, hidden, form, note):
    layer = Layer("LSTM", 3, batch, 4, hidden, operands=frozenset())
    found = note_of(lowered_for(quantized(layer, form), VNNI), "LSTM")
    assert note in found if note else "weights" not in found and "levels" not in found


@pytest.mark.parametrize("form", ["float16", "fp8-e4m3", "power-of-two bits=6"])
def test_forms_without_a_kernel_become_floats(form):
    assert "weights" not in assert_equals_reference(Layer("LSTM", 4, 2, 3, 32, operands=ALL), form)


def test_a_layer_of_one_unit():
    """Its blocks have one scale each, of three axes."""
    layer = Layer("RNN", 1, 1, 1, 1, operands=frozenset(), outputs=frozenset({"y"}))
    assert_equals_reference(layer, "ternary")


@settings(max_examples=6, deadline=None)
@given(layers(), st.sampled_from(["int8", "int4", "int4 symmetric=false", "nf4", "ternary", "int2 block=8"]))
def test_any_layer_equals_the_reference(layer, form):
    assert_equals_reference(layer, form)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    layers(),
    st.sampled_from(["int8", "int4", "int8 symmetric=false block=4", "kmeans", "binary", "int2 block=16"]),
    st.sampled_from(["host", "x86-64-v2", "x86-64-v3"]),
)
def test_any_layer_equals_the_reference_on_many_targets(layer, form, target):
    assert_equals_reference(layer, form, uncached(target))


@pytest.mark.parametrize(
    ("target", "form"), [("x86-64-v2", "int4"), ("x86-64-v3", "int8"), ("x86-64-v3", "nf4")]
)
def test_narrower_vectors(target, form):
    layer = Layer("GRU", 6, 3, 4, 38, "bidirectional", operands=FEW)
    assert "vpdpbusd" not in assert_equals_reference(layer, form, uncached(target))


@pytest.mark.parametrize(
    ("layer", "form", "shared"),
    [
        (Layer("LSTM", 9, 1, 4, 512), "int8", "share each step"),
        (Layer("GRU", 9, 1, 4, 512), "int4", "share each step"),
        (Layer("LSTM", 9, 1, 4, 128, "bidirectional"), "int4", "thread per sequence"),
    ],
)
def test_threads_change_nothing(layer, form, shared):
    model = quantized(layer, form)
    run, program, lowered = compiled(model, dataclasses.replace(host_target(), cores=2))
    assert note_of(lowered, layer.kind).endswith(shared)
    feeds = {"x": layer.feeds(2)["x"]}
    results = []
    for threads in (1, 2):
        program.set_threads(threads)
        results.append(run(feeds))
    for name, wanted in run_reference(model, feeds).items():
        assert compare(wanted, results[0][name]).max_rel <= 1e-5
        assert np.array_equal(results[0][name], results[1][name])


@pytest.mark.parametrize("form", ["int8", "int4 symmetric=false"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_what_is_not_a_number_spreads_as_with_floats(kind, form):
    """To all units of its sequence and no further; ONNX Runtime bounds activations and so may lose it."""
    layer = Layer(kind, 4, 2, 3, 32, operands=frozenset({"b", "h0"}), outputs=frozenset({"y"}))
    feeds = {name: layer.feeds(1)[name] for name in ("x", "h0")}
    run, floats = compiled(quantized(layer, form))[0], compiled(layer.model())[0]
    clean = run(feeds)["y"]
    for name, place in (("h0", (0, 1, 5)), ("x", (1, 1, 0))):
        broken = {**feeds, name: feeds[name].copy()}
        broken[name][place] = np.nan
        found = run(broken)["y"]
        assert np.array_equal(np.isnan(found), np.isnan(floats(broken)["y"]))
        assert np.isnan(found[1:, :, 1]).all()
        assert np.array_equal(found[:, :, 0], clean[:, :, 0])


@pytest.mark.parametrize("size", [1e-6, 30.0, 3e4])
def test_first_states_of_any_size(size):
    layer = Layer("GRU", 6, 2, 3, 64, operands=frozenset({"b", "h0"}))
    model = quantized(layer, "int8")
    feeds = {value.name: layer.feeds(1)[value.name] for value in model.graph.inputs}
    feeds["h0"] = feeds["h0"] * np.float32(size)
    outputs = compiled(model)[0](feeds)
    for name, wanted in run_reference(model, feeds).items():
        assert compare(wanted, outputs[name]).max_rel <= 1e-5


@pytest.mark.parametrize(
    ("form", "share"), [("int8", 0.27), ("int4", 0.16), ("nf4", 0.16), ("ternary", 0.09)]
)
@pytest.mark.parametrize("target", [VNNI, "x86-64-v3", "cortex-a76"])
def test_weights_are_small_in_memory_too(form, share, target):
    layer = Layer("LSTM", 4, 1, 256, 256, "bidirectional", operands=frozenset())
    size = sum(each.nbytes for each in lowered_for(layer.model(), target).weights)
    assert sum(each.nbytes for each in lowered_for(quantized(layer, form), target).weights) <= share * size
