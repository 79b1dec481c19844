import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys

import graphwright as gw
import numpy as np
import pytest
from graphwright.backends import artifact, weights
from graphwright.backends.artifact import load_executable, save_artifact
from graphwright.backends.checksum import checksum
from graphwright.backends.manifest import is_artifact, read_manifest
from graphwright.ir.errors import TargetError, ToolError

ONE_LINE_ERRORS = (ToolError, TargetError)


@pytest.fixture(scope="module")
def compiled(build_model):
    model = build_model(
        """net (float[1,3,8,8] x, float[4,3,3,3] w, float[5,256] v) => (float[1,5] y, float[1,4,8,8] r)
        {
          c = Conv<pads = [1, 1, 1, 1]>(x, w)
          r = Relu(c)
          f = Flatten<axis = 1>(r)
          y = Gemm<transB = 1>(f, v)
        }""",
        w=(4, 3, 3, 3),
        v=(5, 256),
    )
    return gw.compile(model, "x86", pipeline="")


@pytest.fixture
def saved(compiled, tmp_path):
    return compiled.save(tmp_path / "net")


def _x():
    return np.random.default_rng(3).standard_normal((1, 3, 8, 8)).astype(np.float32)


def test_the_folder_holds_what_the_manifest_says(compiled, saved):
    expected = {"model.so", "weights.bin", "model.onnx", "report.json", "report.md", "manifest.json"}
    assert {path.name for path in saved.iterdir()} == expected
    manifest = read_manifest(saved)
    assert manifest["files"].keys() == expected - {"manifest.json"}
    for name, recorded in manifest["files"].items():
        data = (saved / name).read_bytes()
        assert recorded == {
            "bytes": len(data),
            "checksum": checksum(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    assert manifest["inputs"] == [{"name": "x", "shape": [1, 3, 8, 8], "dtype": "float32"}]
    assert [spec["name"] for spec in manifest["outputs"]] == ["y", "r"]
    assert manifest["target"] == compiled.target.to_json()
    assert manifest["source"]["sha256"] == compiled.report.source["sha256"]
    assert {"graphwright", "apache-tvm", "apache-tvm-ffi"} <= manifest["versions"].keys()
    report = json.loads((saved / "report.json").read_text())
    assert report["check"]["checked"]
    assert sorted(path.name for path in saved.parent.iterdir()) == ["net"]


def test_a_loaded_executable_computes_the_same(compiled, saved):
    loaded = gw.load_executable(saved)
    assert (loaded.inputs, loaded.outputs, loaded.target) == (
        compiled.inputs,
        compiled.outputs,
        compiled.target,
    )
    for expected, actual in zip(compiled(_x()), loaded(_x()), strict=True):
        np.testing.assert_array_equal(expected, actual)
    assert loaded.benchmark(repeats=3).samples == 3


def test_a_fresh_process_runs_it_without_torch_or_the_compiler_sources(compiled, saved, tmp_path):
    np.save(tmp_path / "x.npy", _x())
    program = """
import sys
import numpy as np
import graphwright as gw
exe = gw.load_executable(sys.argv[1])
y, r = exe(np.load(sys.argv[2]))
heavy = {"torch", "tvm", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "graphwright.backends.compile",
         "graphwright.backends.compile_report", "tvm_ffi.cpp.extension"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
np.savez(sys.argv[3], y=y, r=r)
"""
    paths = [str(saved), str(tmp_path / "x.npy"), str(tmp_path / "out.npz")]
    subprocess.run([sys.executable, "-c", program, *paths], check=True, cwd=tmp_path, timeout=300)
    results = np.load(tmp_path / "out.npz")
    for name, expected in zip(("y", "r"), compiled(_x()), strict=True):
        np.testing.assert_array_equal(results[name], expected)


def test_the_compiler_can_follow_the_runtime_in_one_process(saved):
    """Parts of the foreign-function layer load late; what wants them finds them."""
    program = """
import sys
import graphwright as gw
gw.load_executable(sys.argv[1])
import tvm_ffi.cpp
assert callable(tvm_ffi.cpp.load_inline)
from graphwright.backends.tvm_import import import_tvm
assert import_tvm().get_global_func("runtime.config_threadpool", allow_missing=True)
"""
    subprocess.run([sys.executable, "-c", program, str(saved)], check=True, timeout=300)


def test_a_fresh_process_sorts(build_model, tmp_path):
    model = build_model(
        """net (float[2,9] x) => (float[2,3] values, int64[2,3] places)
        {
          k = Constant<value_ints = [3]>()
          values, places = TopK(x, k)
        }"""
    )
    gw.compile(model, "x86").save(tmp_path / "top")
    x = np.random.default_rng(0).standard_normal((2, 9)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    program = """
import sys
import numpy as np
import graphwright as gw
np.save(sys.argv[3], gw.load_executable(sys.argv[1])(np.load(sys.argv[2]))[1])
"""
    paths = [str(tmp_path / name) for name in ("top", "x.npy", "places.npy")]
    subprocess.run([sys.executable, "-c", program, *paths], check=True, cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "places.npy"), np.argsort(-x, axis=1)[:, :3])


def test_the_folder_can_be_moved_and_saved_again(compiled, saved, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.move(saved, moved)
    again = gw.load_executable(moved).save(tmp_path / "again")
    first, second = read_manifest(moved), read_manifest(again)
    assert second["source"] == first["source"]
    assert second["files"] == first["files"]
    np.testing.assert_array_equal(gw.load_executable(again)(_x())[0], compiled(_x())[0])


def test_an_onnxruntime_artifact(mlp, tmp_path):
    exe = gw.compile(mlp, "x86", backend="onnxruntime")
    folder = exe.save(tmp_path / "mlp")
    assert read_manifest(folder)["backend"] == "onnxruntime"
    assert not (folder / "model.so").exists()
    x = np.ones((4, 24), np.float32)
    np.testing.assert_array_equal(load_executable(folder)(x), exe(x))
    data = bytearray((folder / "model.onnx").read_bytes())
    data[-1] ^= 1
    (folder / "model.onnx").write_bytes(data)
    with pytest.raises(ToolError, match=r"model\.onnx is damaged"):
        load_executable(folder)


def test_large_graphs_keep_their_weights_beside_them(mlp, tmp_path, monkeypatch):
    import graphwright.ir.save as saving

    monkeypatch.setattr(
        saving, "save", lambda model, path, _save=saving.save: _save(model, path, external_data=True)
    )
    exe = gw.compile(mlp, "x86", backend="onnxruntime")
    folder = exe.save(tmp_path / "mlp")
    assert "model.onnx.data" in read_manifest(folder)["files"]
    again = load_executable(folder).save(tmp_path / "again")
    x = np.ones((4, 24), np.float32)
    np.testing.assert_array_equal(load_executable(again)(x), exe(x))


def _damage(folder, name, change):
    path = folder / name
    data = bytearray(path.read_bytes())
    path.write_bytes(change(data))


def _flip(data):
    data[len(data) // 2] ^= 0x10
    return data


@pytest.mark.parametrize("name", ["model.so", "weights.bin"])
@pytest.mark.parametrize(
    ("change", "said"), [(_flip, "is damaged"), (lambda data: data[:-70], "truncated or altered")]
)
def test_damaged_files_are_refused(saved, name, change, said):
    _damage(saved, name, change)
    with pytest.raises(ToolError, match=said) as caught:
        load_executable(saved)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.so", "weights.bin"])
def test_what_a_checksum_cannot_see_a_sha256_does(saved, name):
    _damage(saved, name, _flip)
    files = read_manifest(saved)["files"]
    del files[name]["checksum"]  # an artifact of an earlier version
    _edit(saved, files=files)
    with pytest.raises(ToolError, match="its SHA-256 is not"):
        load_executable(saved)
    files[name]["checksum"] = checksum((saved / name).read_bytes())
    _edit(saved, files=files)
    with pytest.raises(ToolError, match="its SHA-256 is not"):
        load_executable(saved, verify="sha256")


@pytest.mark.parametrize("name", ["model.so", "weights.bin"])
def test_missing_files_are_refused(saved, name):
    (saved / name).unlink()
    with pytest.raises(ToolError, match=f"{name} is missing"):
        load_executable(saved)


def _edit(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "something"}, "is of another kind"),
        ({"version": 3}, "has artifact version 3"),
        ({"versions": {"apache-tvm": "0.99.1"}}, "built with apache-tvm 0.99.1"),
        ({"target": {"name": "x"}}, "not a target description"),
        ({"target": None}, "'target' is not of the form"),
        ({"backend": "abacus"}, "'backend' is not of the form"),
        ({"inputs": [{}]}, "'inputs' is not of the form"),
        ({"outputs": "y"}, "'outputs' is not of the form"),
        ({"inputs": [{"name": "x", "shape": [1], "dtype": "flaot32"}]}, "'inputs' is not of the form"),
        ({"files": []}, "'files' is not of the form"),
        ({"files": {"model.so": {}}}, "'files' is not of the form"),
    ],
)
def test_manifests_that_do_not_fit_are_refused(saved, changes, said):
    _edit(saved, **changes)
    with pytest.raises(ONE_LINE_ERRORS, match=said) as caught:
        load_executable(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot read"),
        ("[]", "another kind"),
        ('{"format": "graphwright-artifact", "version": 1}', "lacks"),
    ],
)
def test_broken_manifests_are_refused(saved, text, said):
    (saved / "manifest.json").write_text(text)
    with pytest.raises(ToolError, match=said):
        load_executable(saved)


def test_folders_that_are_no_artifacts_are_refused(tmp_path):
    with pytest.raises(ToolError, match="is not a folder"):
        load_executable(tmp_path / "nothing")
    with pytest.raises(ToolError, match="has no manifest"):
        load_executable(tmp_path)


def test_a_cpu_that_lacks_a_feature_is_told_which(saved):
    target = read_manifest(saved)["target"]
    _edit(saved, target={**target, "features": [*target["features"], "avx10.2"]})
    with pytest.raises(TargetError, match=r"cannot run here: this CPU lacks avx10\.2"):
        load_executable(saved)
    _edit(saved, target={**target, "triple": "riscv64-linux-gnu"})
    with pytest.raises(TargetError, match="needs riscv64"):
        load_executable(saved)


def test_what_is_in_the_way_stays(compiled, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ToolError, match="is a file"):
        compiled.save(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    with pytest.raises(ToolError, match="holds no artifact"):
        compiled.save(tmp_path / "folder")
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "mine"


def test_an_old_artifact_and_an_empty_folder_are_replaced(compiled, saved, tmp_path):
    _edit(saved, name="old")
    compiled.save(saved)
    assert read_manifest(saved)["name"] == "net"
    (tmp_path / "empty").mkdir()
    compiled.save(tmp_path / "empty")
    assert is_artifact(tmp_path / "empty")
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(ToolError, match=r"holds 'notes\.txt'"):
        compiled.save(saved)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "net"]


def test_what_a_process_loads_is_what_lies_there(build_model, tmp_path):
    x = np.array([1.0, 4.0], np.float32)
    loaded = []
    for op in ("Neg", "Sqrt", "Exp"):  # the dynamic linker remembers libraries by name
        exe = gw.compile(build_model(f"g (float[2] x) => (float[2] y) {{ y = {op}(x) }}"), "x86")
        loaded.append(load_executable(exe.save(tmp_path / "net")))
    for exe, expected in zip(loaded, ([-1, -4], [1, 2], np.exp([1, 4])), strict=True):
        np.testing.assert_allclose(exe(x), expected, rtol=1e-6)
    assert loaded[-1].save(tmp_path / "copy")
    for act in (lambda: loaded[0].save(tmp_path / "copy"), loaded[0].profile):
        with pytest.raises(ToolError, match="net was replaced or removed since it was loaded; load it again"):
            act()


def test_relative_and_nested_folders(compiled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compiled.save("a/b/c") == tmp_path / "a" / "b" / "c"
    assert is_artifact("a/b/c")


@pytest.mark.parametrize("where", ["write_weights", "_manifest", "sha256_of"])
@pytest.mark.parametrize(
    ("error", "expected", "said"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ToolError, "No space left on device"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
)
def test_a_full_disk_or_an_interrupt_leaves_nothing(
    compiled, saved, tmp_path, monkeypatch, where, error, expected, said
):
    def fail(*_, **options):
        raise error

    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    monkeypatch.setattr(weights if where == "write_weights" else artifact, where, fail)
    for folder in (tmp_path / "new" / "deep", saved):
        with pytest.raises(expected) as caught:
            compiled.save(folder)
        assert said in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_a_failing_swap_brings_the_old_artifact_back(compiled, saved, tmp_path, monkeypatch):
    rename, calls = os.rename, []

    def second_fails(source, destination):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(ToolError, match="Input/output error"):
        compiled.save(saved)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    load_executable(saved)


def test_further_files_are_taken_and_hashed(compiled, tmp_path):
    folder = save_artifact(
        compiled, tmp_path / "net", files={"report.md": "# Mine\n", "labels.txt": b"a\nb\n"}
    )
    assert (folder / "report.md").read_text() == "# Mine\n"
    assert read_manifest(folder)["files"]["labels.txt"]["bytes"] == 4
    for name in ("../escape", "manifest.json", "model.so"):
        with pytest.raises(ToolError, match="cannot take"):
            save_artifact(compiled, tmp_path / "other", files={name: ""})
    assert not (tmp_path / "other").exists()
