"""The road as a whole: every model through every lossless pass and the compiler, held against the reference."""

from __future__ import annotations

import functools

import onnx_ir as ir
import pytest
from graphwright.backends.compile import compile as compile_graph
from graphwright.ir.compare import compare
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import run_reference
from graphwright.passes.optimize import optimize
from graphwright.passes.registry import all_names, lookup
from graphwright.tools.zoo import LIGHT_NAMES, SMALL_NAMES, TORCH_NAMES, zoo_model

BOUND = 1e-4
QUICK = (*SMALL_NAMES, "light_squeezenet", "light_shufflenet")
LONG = tuple(name for name in (*LIGHT_NAMES, *TORCH_NAMES) if name not in QUICK)
EVERY = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)]


@functools.lru_cache(maxsize=1)
def graph(name: str) -> ir.Model:
    return zoo_model(name)


def lossless_passes() -> str:
    ours = [lookup(name) for name in all_names()]
    names = [cls.name for cls in ours if cls.lossless and cls.__module__.startswith("graphwright.")]
    return ",".join(["simplify", *names])


@pytest.mark.parametrize("name", EVERY)
def test_every_lossless_pass_keeps_the_outputs_and_the_result_compiles(name):
    model = graph(name)
    feeds = random_inputs(model, seed=3)
    result = optimize(model, lossless_passes(), check_each=True, check_inputs=[feeds], calibration=feeds)
    checks = [record.check for record in result.report.records if record.check is not None]
    assert checks and all(check.worst.max_rel <= BOUND for check in checks)
    expected = run_reference(model, feeds)
    assert compare(expected, run_reference(result.model, feeds)).max_rel <= BOUND
    executable = compile_graph(result.model, pipeline="")
    assert compare(expected, executable.run(feeds)).max_rel <= BOUND


@pytest.mark.parametrize("name", EVERY)
def test_compiling_takes_less_than_a_minute_and_matches(name):
    model = graph(name)
    feeds = random_inputs(model, seed=4)
    executable = compile_graph(model)
    assert executable.report is not None and executable.report.seconds <= 60
    found = compare(run_reference(model, feeds), executable.run(feeds))
    assert found.max_rel <= BOUND


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT_NAMES)
def test_untuned_code_is_at_most_twice_as_slow_as_onnxruntime(name):
    from graphwright.backends.onnxruntime import OnnxRuntimeExecutable
    from graphwright.tools.measure import measure_interleaved

    model = graph(name)
    contenders = {"ours": compile_graph(model), "onnxruntime": OnnxRuntimeExecutable(model)}
    timings = measure_interleaved(contenders, random_inputs(model, seed=5), threads=1, seconds=2.0)
    assert timings["ours"].median_ms <= 2.0 * timings["onnxruntime"].median_ms
