"""Whole quantized models on integer kernels against ONNX Runtime with its optimizations off."""

import graphwright as gw
import numpy as np
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import run_reference
from graphwright.tools.int8_measure import FLOAT, quantize
from graphwright.tools.zoo import zoo_model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18_small", "mobilenet_v2_small", "vit_s16_small", "bert_base_small"])
def test_models_of_the_zoo_run_on_integers(name):
    model = gw.optimize(zoo_model(name), FLOAT).model
    quantized = quantize(model, "x86-vnni")
    executable = gw.compile(quantized, "x86", pipeline="eliminate-dead")
    kinds = [kernel["kind"] for kernel in executable.report.kernels]
    assert not {"conv", "gemm", "matmul"} & set(kinds), kinds
    feeds = random_inputs(quantized, seed=1)
    expected, original = run_reference(quantized, feeds), run_reference(model, feeds)
    found = compare(expected, executable.run(feeds))
    # What kernels differ by is little beside what quantization itself costs, and nothing if no step flips.
    assert found.sqnr_db >= compare(original, expected).sqnr_db + 20, found


@pytest.mark.slow
def test_the_artifact_of_a_convolutional_network_is_a_quarter(tmp_path):
    model = gw.optimize(zoo_model("resnet18"), FLOAT).model
    sizes = {}
    for name, graph in (("float", model), ("int8", quantize(model, "x86-vnni"))):
        folder = gw.compile(graph, "x86", pipeline="eliminate-dead").save(tmp_path / name)
        sizes[name] = sum(
            (folder / part).stat().st_size for part in ("model.so", "weights.bin", "model.onnx")
        )
    assert sizes["int8"] <= 0.27 * sizes["float"], sizes


def test_compiling_leaves_the_file_ordinary_onnx(cnn):
    quantized = quantize(gw.optimize(cnn, FLOAT).model, "x86-vnni")
    executable = gw.compile(quantized, "x86", pipeline="eliminate-dead")
    assert {node.domain for node in executable.model.graph} <= {"", "graphwright"}
    notes = [kernel["note"] for kernel in executable.report.kernels]
    assert sum(note.startswith("int8") for note in notes) == 4, notes
    feeds = random_inputs(quantized, seed=1)
    (result,), (expected,) = executable.run(feeds).values(), run_reference(quantized, feeds).values()
    assert np.abs(result - expected).max() <= 0.01 * np.abs(expected).max()
