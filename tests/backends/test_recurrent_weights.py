"""Recurrent layers with weights of few bits: small in the artifact, right when it is read back."""

import graphwright as gw
import numpy as np
import pytest
from graphwright.backends.coding import coding_of
from graphwright.backends.weights import read_weights
from graphwright.ir.compare import compare
from graphwright.ir.reference import run_reference
from graphwright.passes.optimize import optimize

from .quantized_models import Graph, tensor


def layer(kind, hidden, size, form, directions):
    g, gates = Graph(0), {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    x = tensor("x", (5, 2, size))

    def weights(*shape):
        return g.constant((g.random.standard_normal(shape) / np.sqrt(hidden)).astype(np.float32))

    y = g(
        kind,
        x,
        weights(directions, gates * hidden, size),
        weights(directions, gates * hidden, hidden),
        weights(directions, 2 * gates * hidden),
        hidden_size=hidden,
        direction="bidirectional" if directions == 2 else "forward",
    )
    model = g.model({"x": x}, y)
    return model if form is None else optimize(model, f"quantize-weights{{form={form}}}").model


@pytest.mark.parametrize(
    ("kind", "hidden", "size", "form", "share"),
    [
        ("LSTM", 128, 96, "int8", 0.27),
        ("LSTM", 100, 64, "int4", 0.20),
        ("GRU", 70, 33, "int8", 0.36),
        ("GRU", 64, 64, "nf4", 0.18),
        ("RNN", 96, 64, "ternary", 0.14),
        ("LSTM", 100, 40, "int8 symmetric=false block=20", 0.42),
    ],
)
@pytest.mark.parametrize("directions", [1, 2])
def test_artifacts_hold_codes(kind, hidden, size, form, share, directions, tmp_path):
    model = layer(kind, hidden, size, form, directions)
    feeds = {"x": np.random.default_rng(1).normal(size=(5, 2, size)).astype(np.float32)}
    exe = gw.compile(model, "host", pipeline="eliminate-dead")
    folder = exe.save(tmp_path / "out")
    floats = gw.compile(layer(kind, hidden, size, None, directions), "host").save(tmp_path / "float")
    sizes = [(each / "weights.bin").stat().st_size for each in (folder, floats)]
    assert sizes[0] < share * sizes[1] + 4096
    weights = read_weights(folder / "weights.bin")
    assert any(coding_of(weight) is not None for weight in weights)
    expected = run_reference(model, feeds)
    for executable in (exe, gw.load_executable(folder)):
        assert compare(expected, executable.run(feeds)).max_rel <= 1e-5
