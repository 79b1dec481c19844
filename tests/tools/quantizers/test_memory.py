"""What calibration takes: data written sample by sample, and a killed run that loses nothing."""

import json
import zipfile

import numpy as np
import pytest
import typer
from graphwright.tools.quantizers.memory import LIMIT, _text, main, write_samples
from typer.testing import CliRunner

app = typer.Typer()
app.command()(main)


def test_samples_are_an_array(tmp_path):
    write_samples(tmp_path / "data.npz", "x", (3, 4), 5)
    with np.load(tmp_path / "data.npz") as file:
        assert file["x"].shape == (5, 3, 4) and file["x"].dtype == np.float32 and file["x"].std() > 0.5
    assert zipfile.ZipFile(tmp_path / "data.npz").namelist() == ["x.npy"]


def test_the_lines_say_what_was_found():
    found = {
        "model": "m",
        "method": "mse",
        "samples": 8,
        "batch": 2,
        "bytes_above_model": 5e8,
        "seconds": 3.0,
    }
    found |= {"model_bytes": 1e8, "killed_after": 5, "went_on_at": 4, "same_ranges": True}
    text = _text(found)
    assert "500.0 MB above the model (100.0 MB)" in text and "went on at 4 and found the same ranges" in text
    assert "OTHER" in _text(found | {"same_ranges": False})


def test_a_model_without_images_is_refused():
    result = CliRunner().invoke(app, ["bert_base_small", "--json"])
    assert result.exit_code == 2 and "does not take one array of floats" in result.output


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path):
    arguments = ["resnet18_small", "--samples", "64", "--batch", "4", "--folder", str(tmp_path), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["same_ranges"] and 0 < found["bytes_above_model"] < LIMIT
    # Two passes over 16 batches, told one by one.
    assert found["progress"] == [32, 1, 32] and found["killed_after"] >= 19
