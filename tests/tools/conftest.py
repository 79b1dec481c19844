from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.tools.cli import main

MODEL = """
<ir_version: 10, opset_import: ["" : 23]>
tiny (float[1, 3, 8, 8] x) => (float[1, 4] y)
{
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)
    b = BatchNormalization (a, scale, shift, mean, variance)
    c = Relu (b)
    d = GlobalAveragePool (c)
    e = Flatten (d)
    same = Identity (e)
    y = Gemm <transB = 1> (same, v, u)
}
"""


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process and collect what it prints."""

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def tiny() -> ir.Model:
    """Conv, batch norm, ReLU, pooling, an identity and a Gemm, with random weights."""
    model = ir.from_onnx_text(MODEL)
    generator = np.random.default_rng(0)
    arrays = {
        "w": generator.normal(0, 0.4, (8, 3, 3, 3)),
        "scale": generator.uniform(0.5, 1.5, 8),
        "shift": generator.normal(0, 0.3, 8),
        "mean": generator.normal(0, 0.3, 8),
        "variance": generator.uniform(0.5, 1.5, 8),
        "v": generator.normal(0, 0.5, (4, 8)),
        "u": generator.normal(0, 0.5, 4),
    }
    by_name = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, array in arrays.items():
        value = by_name[name]
        value.const_value = ir.tensor(array.astype(np.float32), name=name)
        value.shape = ir.Shape(array.shape)
        value.type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(value)
    return model


@pytest.fixture(scope="session")
def tiny_file(tiny: ir.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.onnx"
    ir.save(tiny, path)
    return path


@pytest.fixture(scope="session")
def tiny_input(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "in.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32))
    return path


def assert_one_line_of_trouble(outcome: Outcome, *words: str) -> None:
    """Exit code 2 and, progress lines aside, one line that holds the words."""
    lines = [line for line in outcome.err.splitlines() if not line.endswith(" ...")]
    assert outcome.code == 2, outcome
    assert len(lines) == 1 and lines[0].startswith("graphwright: error: "), outcome.err
    for word in words:
        assert word in lines[0]
