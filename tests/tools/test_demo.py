from __future__ import annotations

import json

import numpy as np
import pytest
from graphwright.backends.artifact import load_executable
from graphwright.tools import demo
from graphwright.tools.digits import load_digits


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo")
    return output, demo.digits_demo(output, epochs=3, seconds=0.05)


def test_the_table_has_the_original_and_every_step(table):
    _, steps = table
    assert [step.name for step in steps.steps] == ["original", *demo.STAGES]
    columns, rows = steps.cells()
    assert {"accuracy", "parameters", "MACs", "file", "max diff", "SQNR"} <= set(columns)
    assert {"graphwright ms", "onnxruntime ms"} <= set(columns)
    assert all(cell != "-" for cell in rows[-1][:6])


def test_lossless_steps_are_equal_and_lossy_ones_are_measured(table):
    original, simplified, folded, pruned, quantized = table[1].steps
    for step in (simplified, folded):
        assert step.lossless is True
        assert step.comparison is not None and step.comparison.max_rel <= 1e-4
        assert step.metric == original.metric
    for step in (pruned, quantized):
        assert step.lossless is False
        assert step.comparison is not None and np.isfinite(step.comparison.sqnr_db)


def test_each_step_makes_it_smaller(table):
    original, simplified, folded, pruned, quantized = table[1].steps
    assert simplified.nodes < original.nodes
    assert folded.nodes == simplified.nodes - 7
    assert pruned.parameters < 0.3 * folded.parameters
    assert pruned.macs < 0.3 * folded.macs
    assert quantized.file_bytes < 0.6 * pruned.file_bytes


def test_accuracy_is_that_of_the_compiled_model_on_held_out_images(table):
    output, steps = table
    data = load_digits()
    executable = load_executable(output / "digits-int8")
    predicted = [int(np.argmax(executable(image[None]))) for image in data.test_images]
    assert steps.steps[-1].metric == pytest.approx(np.mean(np.array(predicted) == data.test_labels))
    assert steps.steps[0].metric > 0.5


def test_the_artifacts_are_there(table):
    output, steps = table
    assert json.loads((output / "demo.json").read_text())["metric"] == "accuracy"
    assert (output / "demo.md").read_text().count("\n") == len(steps.steps) + 2
    assert (output / "digits-int8" / "manifest.json").is_file()


@pytest.mark.slow
def test_the_whole_demo(tmp_path, capfd):
    assert demo.main(["-o", str(tmp_path / "out")]) == 0
    out = capfd.readouterr().out
    assert "library against ONNX Runtime: max relative error" in out
    assert (tmp_path / "out" / "light_resnet50" / "model.so").is_file()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    assert demo.main(["-o", str(tmp_path / "file")]) == 2
    assert capfd.readouterr().err.count("\n") == 1
