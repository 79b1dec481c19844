"""The table of weights alone: same grids for all, records of its own, lines where a rival is ahead."""

import json

import numpy as np
import pytest
import typer
from graphwright.ir.constants import constant_array
from graphwright.ir.load import load
from graphwright.tools.quantizers import worker
from graphwright.tools.quantizers.bench import Bench, main
from graphwright.tools.quantizers.rivals import Job
from graphwright.tools.quantizers.weight_report import weight_markdown, weights_behind
from graphwright.tools.quantizers.weight_rivals import (
    NNCF_DATA,
    NO_DATA,
    ORT_HQQ,
    ORT_PLAIN,
    SETTINGS,
    USES_DATA,
    WEIGHT_MODELS,
    WEIGHT_WAYS,
    WITH_DATA,
    settings_of,
)
from typer.testing import CliRunner

app = typer.Typer()
app.command()(main)
MODEL = "bert_base_small"
GRID = "int4 symmetric 32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("bench")
    worker.prepare(MODEL, place)
    return place


def test_every_side_has_the_grids_of_a_model():
    names = {setting.name for setting in SETTINGS}
    for way, variants in WEIGHT_WAYS.items():
        assert set(variants) <= names and variants, way
    for model in WEIGHT_MODELS:
        grids = {setting.name for setting in settings_of(model)}
        assert grids <= set(WEIGHT_WAYS[NO_DATA]) and grids <= set(WEIGHT_WAYS[WITH_DATA])
        assert {"int8 symmetric row", "int8 asymmetric row"} < grids


def test_ours_and_onnx_runtimes_are_measured(folder):
    found = {way: worker.measure(MODEL, folder, way, GRID) for way in (NO_DATA, ORT_PLAIN)}
    for way, record in found.items():
        assert 5.0 < record["sqnr_db"] < 40.0, way
    # 4 bits of what was 32, beside embeddings that both leave in float.
    sizes = [record["size"] for record in found.values()]
    assert abs(sizes[0] - sizes[1]) < 0.1 * sizes[1]


def test_ours_touches_the_weights_of_products_alone(folder, monkeypatch):
    from graphwright.tools.quantizers import rivals

    made = []
    monkeypatch.setattr(rivals, "_run", lambda model, job: made.append(model))
    path = worker.place_of(MODEL, folder) / "float.onnx"
    WEIGHT_WAYS[NO_DATA][GRID](Job(lambda: None, path, [], [], True))
    kinds = {}
    for node in made[0].graph:
        stored = node.inputs[1].producer() if len(node.inputs) > 1 and node.inputs[1] is not None else None
        if node.op_type == "MatMul" and stored is not None and stored.op_type == "DequantizeLinear":
            kinds.setdefault(stored.attributes.get_int("block_size"), []).append(node)
    products = [
        node for node in load(path).graph
        if node.op_type == "MatMul" and constant_array(node.inputs[1]) is not None
    ]  # fmt: skip
    assert set(kinds) == {32} and len(kinds[32]) == len(products)
    tables = [node.inputs[0] for node in made[0].graph if node.op_type == "Gather"]
    assert any(
        constant_array(table) is not None and constant_array(table).dtype == np.float32 for table in tables
    )


def test_records_stand_in_a_file_of_their_own(tmp_path, monkeypatch):
    cells = []
    record = {"sqnr_db": 1.0, "held_out_db": 1.0}
    monkeypatch.setattr(Bench, "_step", lambda self, *key: key[0] == "cell" and (cells.append(key) or record))
    arguments = [MODEL, "--weights", "--only", f"{NO_DATA},{ORT_HQQ}", "--folder", str(tmp_path), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)) == {
        *(f"{MODEL}/{NO_DATA}/{setting.name}" for setting in settings_of(MODEL)),
        f"{MODEL}/{ORT_HQQ}/int4 asymmetric 32",
    }
    assert (tmp_path / "quantization" / "weight-records.json").is_file()
    assert not (tmp_path / "quantization" / "records.json").exists()
    count = len(cells)
    assert CliRunner().invoke(app, arguments).exit_code == 0 and len(cells) == count


def key(way, grid=GRID):
    return f"{MODEL}/{way}/{grid}"


def test_rivals_are_compared_on_the_same_grid_and_with_the_same_knowledge():
    records = {
        key(NO_DATA): {"sqnr_db": 10.0, "metric": "accuracy 90%"},
        key(ORT_PLAIN): {"sqnr_db": 11.5},
        key(WITH_DATA): {"sqnr_db": 15.0},
        key(NNCF_DATA): {"sqnr_db": 14.0},
        key(ORT_PLAIN, "int4 asymmetric 32"): {"sqnr_db": 99.0},
        key(ORT_HQQ, "int4 asymmetric 32"): {"error": "ValueError: no"},
    }
    ways = list(WEIGHT_WAYS)
    assert weights_behind(records, [MODEL], ways) == [(MODEL, GRID, ORT_PLAIN, 1.5)]
    text = weight_markdown(records, [MODEL], ways)
    assert f"- {MODEL}, {GRID}: {ORT_PLAIN}: 1.5 dB" in text
    assert f"- {MODEL}, {ORT_HQQ}: ValueError: no (int4 asymmetric 32)" in text
    assert "accuracy 90%" in text and text.count("SQNR at the output") == 2
    first, second = text.split("with calibration data, dB:")
    assert NNCF_DATA not in first and all(way not in second.split("Task")[0] for way in (NO_DATA, ORT_PLAIN))
    del records[key(ORT_PLAIN)]
    assert "No rival is ahead" in weight_markdown(records, [MODEL], ways)
    assert set(USES_DATA) < set(WEIGHT_WAYS)
