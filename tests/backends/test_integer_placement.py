"""Every form of quantization that we write, on every CPU: which layers end as integer kernels, and which do not."""

import graphwright as gw
import numpy as np
import pytest
import torch
from graphwright.backends.target import resolve_target
from graphwright.backends.tvm.lower import lower
from graphwright.ir.shapes import infer_shapes


class Layers(torch.nn.Module):
    """One of each: dense, grouped, depthwise, 1x1, residual, pooled, Gemm and MatMul."""

    def __init__(self):
        super().__init__()
        self.dense = torch.nn.Conv2d(16, 32, 3, padding=1)
        self.grouped = torch.nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.depthwise = torch.nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.pointwise = torch.nn.Conv2d(32, 32, 1)
        self.product = torch.nn.Linear(32, 64)
        self.last = torch.nn.Linear(64, 32)

    def forward(self, x):
        y = self.dense(x).relu()
        y = (y + self.depthwise(self.grouped(y).relu())).relu()
        y = torch.nn.functional.avg_pool2d(self.pointwise(y), 2).flatten(2).transpose(1, 2)
        return self.last(self.product(y).relu())


class Volume(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = torch.nn.Conv3d(16, 16, 3, padding=1)
        self.pointwise = torch.nn.Conv3d(16, 16, 1)

    def forward(self, x):
        return self.pointwise(self.dense(x).relu())


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = torch.nn.Conv1d(16, 32, 3, padding=1)
        self.grouped = torch.nn.Conv1d(32, 32, 3, padding=1, groups=2)

    def forward(self, x):
        return self.grouped(self.dense(x).relu())


MODELS = {
    "layers": (Layers, (3, 16, 12, 12), 6),
    "volume": (Volume, (3, 16, 5, 8, 8), 2),
    "line": (Line, (3, 16, 30), 2),
}
INTEGER = {
    "static": "insert-qdq{target=x86-vnni}",
    "reduced": "insert-qdq{target=x86}",
    "signed": "insert-qdq{target=arm}",
    "symmetric": "insert-qdq{target=cuda}",
    "tvm": "insert-qdq{target=tvm}",
    "symmetric activations": "insert-qdq{target=x86-vnni symmetric_activations=true}",
    "asymmetric weights": "insert-qdq{target=x86-vnni symmetric_weights=false}",
    "a8w4": "insert-qdq{target=x86-vnni precision=a8w4}",
    "a8w4 asymmetric": "insert-qdq{target=x86-vnni precision=a8w4 symmetric_weights=false}",
    "dynamic": "quantize-dynamic{min_size=1}",
}
FLOAT = {
    "a16w16": "insert-qdq{target=x86-vnni precision=a16w16}",
    "weights": "quantize-weights{form=int4}",
}
CPUS = {
    "sapphirerapids": ("tdpb", "vpdpbusd"),
    "icelake-server": ("vpdpbusd",),
    "x86-64-v3": ("vpmaddwd",),
    "armv8.2-a-dotprod": ("sdot", "multiply"),
    "armv8-a": ("widening", "multiply"),
}
_PRODUCTS = ("conv", "gemm", "matmul", "integer conv", "integer matmul", "integer weightmatmul")


@pytest.fixture(scope="module")
def traced():
    torch.manual_seed(0)
    models = {}
    for name, (module, shape, _) in MODELS.items():
        x = torch.randn(shape)
        model = gw.trace(module().eval(), (x,))
        models[name] = gw.optimize(model, "simplify,fold-batch-norm").model, {"x": x.numpy()}
    return models


def kernels_of(traced, name, pipeline, target):
    model, feeds = traced[name]
    quantized = gw.optimize(model, pipeline, calibration=[feeds]).model
    infer_shapes(quantized)
    lowered = lower(quantized, resolve_target(target))
    return [kernel for kernel in lowered.kernels for _ in range(kernel.calls) if kernel.kind in _PRODUCTS]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", INTEGER)
def test_layers_are_integer_kernels(traced, form, name):
    kernels = kernels_of(traced, name, INTEGER[form], "sapphirerapids")
    assert [kernel.kind for kernel in kernels if not kernel.kind.startswith("integer ")] == []
    assert len(kernels) == MODELS[name][2] and all(kernel.note.startswith("int8 ") for kernel in kernels)
    # Weights with a zero point need nine bits, unless they have four.
    wide = form == "asymmetric weights"
    words = ("vpdpwssd",) if wide else CPUS["sapphirerapids"]
    assert all(any(word in kernel.note for word in words) for kernel in kernels)


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("form", ["static", "a8w4", "dynamic"])
def test_every_cpu_uses_its_instructions(traced, form, cpu):
    for name, (_, _, count) in MODELS.items():
        kernels = kernels_of(traced, name, INTEGER[form], cpu)
        assert len(kernels) == count
        notes = [kernel.note for kernel in kernels]
        assert all(any(word in note for word in CPUS[cpu]) for note in notes), notes


@pytest.mark.parametrize("cpu", CPUS)
def test_activations_of_16_bits_are_integer_kernels(traced, cpu):
    """One product of 16-bit numbers, or one of each byte; float where that filters with fewer products."""
    for name, (_, _, count) in MODELS.items():
        kernels = kernels_of(traced, name, "insert-qdq{target=x86-vnni precision=a16w8}", cpu)
        apart = sum(word in each.note for each in kernels for word in ("tdpb", "sdot"))
        assert len(kernels) - apart // 2 == count
        floats = [each.note for each in kernels if not each.kind.startswith("integer ")]
        quick = name == "layers" and cpu in ("x86-64-v3", "armv8-a")
        assert len(floats) == quick and all("in float: minimal filtering" in note for note in floats)
        words = (*CPUS[cpu], "vpdpwssd", "widening", "multiply")
        assert all(any(word in each.note for word in words) for each in kernels if each.note not in floats)


@pytest.mark.parametrize("form", FLOAT)
def test_other_forms_compute_in_float_with_small_weights(traced, form):
    """16-bit activations and weights alone: sums of such products need more than 32 bits, or are of floats."""
    kinds = [kernel.kind for kernel in kernels_of(traced, "layers", FLOAT[form], "x86-64-v3")]
    assert kinds.count("conv") == 4 and len(kinds) == 6
    assert set(kinds) <= {"conv", "matmul", "gemm", "integer weightmatmul"}


@pytest.mark.parametrize(
    ("form", "name", "signed"),
    [("a8w4", "layers", False), ("dynamic", "layers", True), ("dynamic", "volume", True)],
)
def test_numbers_are_those_of_the_reference(traced, form, name, signed, monkeypatch):
    from graphwright.backends.tvm import integer
    from graphwright.ir.reference import run_reference

    # What is quantized at run time is stored as int8 where the instructions read that: so here as well.
    monkeypatch.setattr(integer, "_SIGNED", {"x86": signed, "arm": True})
    model, feeds = traced[name]
    quantized = gw.optimize(model, INTEGER[form], calibration=[feeds]).model
    made = gw.compile(quantized, target="host", pipeline="eliminate-dead")
    (expected,) = run_reference(quantized, feeds).values()
    found = made(feeds["x"])
    noise = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert noise < 1e-3
