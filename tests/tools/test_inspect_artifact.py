import shutil

import graphwright as gw
import pytest
from graphwright.tools.artifact_facts import artifact_facts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from onnx_ir import from_onnx_text

    model = from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        net (float[N,6] x) => (float[N,2] y)
        <float[6,2] w = {0,1,2,3,4,5,6,7,8,9,10,11}> { y = MatMul(x, w) }"""
    )
    return gw.compile(model, "host", batch_sizes=(1, 4)).save(tmp_path_factory.mktemp("made") / "net")


def test_batch_sizes_files_and_features_are_shown(cli, folder):
    shown = cli("inspect", folder)
    assert shown.code == 0, shown.err
    for word in ("model.so", "weights.bin", "whole", "batch size", "in pieces", "runs here: yes"):
        assert word in shown.out
    facts = cli("inspect", folder, "--json").json
    assert [row["size"] for row in facts["batch_sizes"]] == [1, 4]
    assert facts["batch_sizes"][0]["weight_bytes"] >= 48
    assert facts["files"]["model.so"]["bytes"] == (folder / "model.so").stat().st_size
    assert {each["state"] for each in facts["files"].values()} == {"whole"}
    assert facts["inputs"] == [{"name": "x", "shape": ["N", 6], "dtype": "float32"}]


def test_damage_is_told_file_by_file(cli, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    data = bytearray((copy / "weights.bin").read_bytes())
    data[-1] ^= 1
    (copy / "weights.bin").write_bytes(data)
    (copy / "model.onnx").unlink()
    (copy / "model.so").write_bytes(b"x")
    (copy / "report.json").write_text('{"kernels": 3, "batches": []}')
    states = {name: each["state"] for name, each in artifact_facts(str(copy))["files"].items()}
    assert states["weights.bin"] == "altered"
    assert states["model.onnx"] == "missing"
    assert states["model.so"] == "has 1 bytes"
    assert cli("inspect", copy).code == 0
    (copy / "manifest.json").write_text('{"format": "graphwright-artifact"}')
    refused = cli("inspect", copy)
    assert (refused.code, refused.out) == (2, "")
    assert "artifact version" in refused.err
