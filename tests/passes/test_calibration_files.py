"""Calibration files are read batch by batch, and refused before anything as large as they claim is made."""

import json
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.errors import PassError
from graphwright.passes.optimize import optimize
from graphwright.passes.quantization.calibration import Calibration
from graphwright.passes.quantization.calibration_files import digest_of, open_npz
from hypothesis import given, settings
from hypothesis import strategies as st

HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'


def model_of(text: str) -> ir.Model:
    return ir.from_onnx_text(HEADER + text)


@pytest.fixture
def model():
    return model_of("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["float32", "float64", "int64", "uint8", "bool"]),
    st.sampled_from(["C", "F"]),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 17), st.integers(0, 17)), min_size=1, max_size=6),
)
def test_any_runs_of_samples_are_what_was_saved(tmp_path_factory, dtype, order, packed, runs):
    path = tmp_path_factory.mktemp("npz") / "data.npz"
    array = np.random.default_rng(0).integers(0, 2, (17, 2, 3)).astype(dtype, order=order)
    (np.savez_compressed if packed else np.savez)(path, x=array, other=np.arange(17))
    member = open_npz(path)["x"]
    assert member.shape == array.shape and member.dtype == array.dtype and len(member) == 17
    for start, stop in runs:
        np.testing.assert_array_equal(member[start : max(start, stop)], array[start : max(start, stop)])
        if start < 17:
            np.testing.assert_array_equal(member[start], array[start])
    member.close()


def test_the_last_batch_of_a_fixed_size_goes_back(tmp_path):
    model = model_of("g (float[8,3] x, int64[8] k) => (float[8,3] y) { y = Relu(x) }")
    x, k = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32), np.arange(20)
    np.savez_compressed(tmp_path / "data.npz", x=x, k=k)
    data = Calibration.load(tmp_path / "data.npz")
    for _ in range(2):
        batches = list(data.batches(model))
        assert [feeds["k"].tolist() for feeds in batches] == [[*range(8)], [*range(8, 16)], [*range(12, 20)]]
        np.testing.assert_array_equal(batches[-1]["x"], x[12:])
    assert data.count(model) == 3


def test_types_of_ml_dtypes_and_samples_without_an_axis(tmp_path):
    model = model_of("g (bfloat16[3] x) => (bfloat16[3] y) { y = Relu(x) }")
    x = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3)
    np.savez(tmp_path / "data.npz", x=x.view("V2"))
    first, second = Calibration.load(tmp_path / "data.npz").batches(model)
    assert first["x"].shape == (3,) and second["x"].view(ml_dtypes.bfloat16).tolist() == [3, 4, 5]


def test_a_single_npy_file_is_data_for_a_model_with_one_input(tmp_path, model):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "data.npy", x)
    (batch,) = Calibration.load(tmp_path / "data.npy").batches(model)
    np.testing.assert_array_equal(batch["x"], x)
    with pytest.raises(PassError, match=r"cannot read calibration file .*nothing\.npy"):
        Calibration.load(tmp_path / "nothing.npy")
    two = model_of("g (float[N,3] x, float[N,3] z) => (float[N,3] y) { y = Add(x, z) }")
    with pytest.raises(PassError, match="the model has 2 inputs; use .npz"):
        list(Calibration.load(tmp_path / "data.npy").batches(two))


def rewritten(path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)


def npy(shape: str, content: bytes, descr: str = "'<f4'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (npy("(1000000000, 1000000)", b"\0" * 24), "'x' needs 4000000000000000 bytes, but has 24"),
        (npy("(2, 3)", b"\0" * 20), "'x' needs 24 bytes, but has 20"),
        (npy("(2, 3)", b"\0" * 48, "'|O'"), "'x' holds Python objects"),
        (b"no array", "cannot read calibration file"),
        (b"", "cannot read calibration file"),
        (npy("(2, 3", b""), "cannot read calibration file"),
        (npy("(2, -3)", b""), "cannot read calibration file"),
        (b"\x93NUMPY\x09\x00" + npy("(2, 3)", b"\0" * 24)[8:], r"version 9.0 of the .npy format"),
    ],
)
def test_members_that_are_no_arrays_are_one_line(tmp_path, content, line):
    rewritten(tmp_path / "data.npz", "x.npy", content)
    with pytest.raises(PassError, match=line) as caught:
        Calibration.load(tmp_path / "data.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", [True, False])
def test_damaged_bytes_are_one_line(tmp_path, model, packed):
    (np.savez_compressed if packed else np.savez)(tmp_path / "data.npz", x=np.ones((4000, 3), np.float32))
    content = bytearray((tmp_path / "data.npz").read_bytes())
    content[len(content) // 2] ^= 0x55
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(PassError, match="cannot read calibration file") as caught:
        list(Calibration.load(tmp_path / "data.npz").batches(model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"z": np.zeros((4, 3))}, "has 'z', but the model's inputs are 'x'"),
        ({"x": np.zeros((4, 3)), "z": np.zeros(4)}, "has 'z', but"),
        ({"x": np.zeros((4, 7))}, r"input 'x' has shape \[4, 7\], but the model wants \[N, 3\]"),
        ({"x": np.zeros((4, 3), np.uint8)}, "input 'x' is uint8, but the model wants float32"),
        ({"x": np.array(["a", "b"])}, "input 'x' is <U1, but"),
        ({"x": np.full((4, 3), np.nan)}, "batch 1: input 'x' holds NaN"),
    ],
)
def test_what_does_not_suit_the_model_is_one_line(tmp_path, model, arrays, line):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(PassError, match=line) as caught:
        list(Calibration.load(tmp_path / "data.npz").batches(model))
    assert "\n" not in str(caught.value)


def test_digests_tell_data_apart(tmp_path):
    arrays = {"x": np.arange(6.0).reshape(2, 3), "k": np.arange(2)}
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    np.savez(tmp_path / "c.npz", x=arrays["x"] + 1, k=arrays["k"])
    np.savez(tmp_path / "d.npz", x=arrays["x"].reshape(2, 1, 3), k=arrays["k"])
    first, same, moved, reshaped = (digest_of(open_npz(tmp_path / f"{name}.npz")) for name in "abcd")
    assert first == same and len({first, moved, reshaped}) == 3
    assert Calibration.load(tmp_path / "a.npz").identity == first


STREAM = """
import resource, sys
import numpy as np, onnx_ir as ir
from graphwright.passes.quantization.calibration import Calibration
model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]> g (float[N,65536] x) => (float[N,65536] y) { y = Relu(x) }')
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = Calibration.load(sys.argv[1])
rows = sum(len(feeds["x"]) for feeds in data.batches(model))
assert data.identity
print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_a_large_file_is_never_in_memory(tmp_path, kind):
    array = np.zeros((768, 65536), np.float32)
    if kind == "npz":
        np.savez_compressed(tmp_path / "data.npz", x=array)
    else:
        np.save(tmp_path / "data.npy", array)
    source = tmp_path / "data.npz" if kind == "npz" else tmp_path
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(source)], capture_output=True, text=True, check=True, timeout=120
    )
    rows, grown = map(float, done.stdout.split())
    # 192 MiB of samples, 2 MiB a batch; pages of a mapped file are the system's to take back.
    assert rows == 768 and (grown < 40 or kind == "npy")


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {},
        {"data": "d", "batches": 1, "ranges": []},
        {"data": "d", "batches": 1, "ranges": {"x": ["a", "b"]}},
        {"data": "d", "batches": 1, "ranges": {"x": [1.0]}},
        {"data": "d", "batches": 1, "ranges": {"x": [5.0, -5.0]}},
    ],
)
def test_a_damaged_cache_is_one_line(tmp_path, network, entry):
    net = network()
    model = net.model(net.linear(net.input(4, 6), 5))
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps({"graphwright ranges": 1, "entries": {"key": entry}}))
    with pytest.raises(PassError, match="ranges.json' is damaged; delete it"):
        optimize(
            model, f'insert-qdq{{calibration_cache="{path}"}}', calibration=[np.ones((4, 6), np.float32)]
        )


def test_saved_ranges_are_no_data(tmp_path, network):
    net = network()
    model = net.model(net.linear(net.input(4, 6), 5))
    path = tmp_path / "ranges.json"
    data = Calibration.from_arrays({"x": np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)})
    optimize(model, "insert-qdq", calibration=data.with_cache(path))
    saved = Calibration.saved(path)
    assert optimize(model, "insert-qdq", calibration=saved).report.records[-1].changed
    for text in ("insert-qdq,gptq", "quantize"):
        with pytest.raises(PassError, match="it looks at the data itself"):
            optimize(model, text, calibration=saved)
    with pytest.raises(PassError, match="holds no ranges for this model and method"):
        optimize(model, "insert-qdq{calibration=entropy}", calibration=saved)
