import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

_WEIGHTS_READER = """
#include "gww.h"
int main(int, char** argv) {
  try {
    gww::MappedFile file(argv[1]);
    gww::Write(argv[2], gww::Read(file));
  } catch (const std::exception& error) {
    fprintf(stderr, "%s\\n", error.what());
    return 2;
  }
}
"""


def build(text: str, seed: int = 0, **shapes: tuple[int, ...]) -> ir.Model:
    """A graph from ONNX text; the inputs named in `shapes` become scaled random weights."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23]>\n{text}')
    generator = np.random.default_rng(seed)
    for name, shape in shapes.items():
        value = next(value for value in model.graph.inputs if value.name == name)
        model.graph.inputs.remove(value)
        fan_in = int(np.prod(shape[1:])) or 1
        weights = generator.standard_normal(shape) * (2.0 / fan_in) ** 0.5
        value.const_value = ir.tensor(weights.astype(np.float32), name=name)
        model.graph.register_initializer(value)
    return model


@pytest.fixture(scope="session")
def build_model():
    return build


@pytest.fixture(scope="session")
def arm_tools() -> None:
    """Skips the test, saying so, where there is no cross compiler or emulator."""
    for name in ("aarch64-linux-gnu-g++", "qemu-aarch64-static"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed; `make arm-tools` does it")


@pytest.fixture
def cnn() -> ir.Model:
    """Dense, depthwise and strided convolutions, a residual add, pooling, a linear head."""
    return build(
        """cnn (float[1,3,16,16] x, float[16,3,3,3] w1, float[16] b1, float[16,1,3,3] w2, float[16] b2,
                float[32,16,3,3] w3, float[32] b3, float[10,32] w4, float[10] b4) => (float[1,10] y)
        {
          c1 = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
          r1 = Relu(c1)
          c2 = Conv<pads = [1, 1, 1, 1], group = 16>(r1, w2, b2)
          s = Add(c2, r1)
          r2 = Relu(s)
          c3 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(r2, w3, b3)
          r3 = Relu(c3)
          p = GlobalAveragePool(r3)
          f = Flatten<axis = 1>(p)
          y = Gemm<transB = 1>(f, w4, b4)
        }""",
        w1=(16, 3, 3, 3),
        b1=(16,),
        w2=(16, 1, 3, 3),
        b2=(16,),
        w3=(32, 16, 3, 3),
        b3=(32,),
        w4=(10, 32),
        b4=(10,),
    )


@pytest.fixture
def mlp() -> ir.Model:
    """Two linear layers with a softmax."""
    return build(
        """mlp (float[4,24] x, float[48,24] w1, float[48] b1, float[10,48] w2, float[10] b2) => (float[4,10] y)
        {
          h = Gemm<transB = 1>(x, w1, b1)
          r = Relu(h)
          o = Gemm<transB = 1>(r, w2, b2)
          y = Softmax<axis = -1>(o)
        }""",
        w1=(48, 24),
        b1=(48,),
        w2=(10, 48),
        b2=(10,),
    )


@pytest.fixture
def through_tvm(tmp_path):
    """Lower, build and run a model for this machine.

    `through_tvm(model, feeds=None, target="host", schedules=None)` gives (outputs by name, reference outputs by name,
    what was lowered).
    """
    from graphwright.backends.float_products import first_target
    from graphwright.backends.target import resolve_target
    from graphwright.backends.tvm.build import build as build_library
    from graphwright.backends.tvm.lower import lower
    from graphwright.backends.tvm.runtime import TvmProgram
    from graphwright.ir.inputs import random_inputs
    from graphwright.ir.reference import run_reference
    from graphwright.ir.shapes import infer_shapes

    def run(model, feeds=None, target="host", schedules=None):
        resolved = resolve_target(target)
        if target == "host":
            # Nobody looks here whether three products are enough.
            resolved = first_target(resolved, is_checked=False)
        infer_shapes(model)
        feeds = random_inputs(model, 0) if feeds is None else feeds
        lowered = lower(model, resolved, schedules)
        # A library that was loaded once stays loaded under its name.
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.so"
        build_library(lowered, resolved, path)
        arrays = TvmProgram(path, lowered.weights).run([feeds[each.name] for each in lowered.inputs])
        outputs = {each.name: array for each, array in zip(lowered.outputs, arrays, strict=True)}
        return outputs, run_reference(model, feeds), lowered

    return run


@pytest.fixture(scope="session")
def reader(tmp_path_factory):
    """A program in C++ that restores a file of weights and writes them as they are; undefined behaviour ends it."""
    from graphwright.backends import runner
    from graphwright.backends.runner.build import program_flags

    folder = tmp_path_factory.mktemp("reader")
    (folder / "reader.cc").write_text(_WEIGHTS_READER)
    include = [flag for flag in program_flags() if flag.startswith("-I")]
    include.append(f"-I{Path(runner.__file__).parent}")
    checks = ["-fsanitize=undefined", "-fno-sanitize-recover=all"]
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Werror", *checks, *include, "reader.cc", "-o", "reader"]
    subprocess.run(command, cwd=folder, check=True, timeout=120)
    return folder / "reader"
