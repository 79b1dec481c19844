"""Saving: whole files or none, no local paths unless asked for, sizes as promised."""

import os
import shutil
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphwright.ir import save as save_module
from graphwright.ir.bodies import all_graphs
from graphwright.ir.compare import compare
from graphwright.ir.errors import ModelError
from graphwright.ir.load import load
from graphwright.ir.reference import run_reference
from graphwright.ir.save import save, serialized_size

STACK_TRACE = 'File "/home/somebody/net.py", line 7, in forward'


def small_model(dtype=np.float32, size: int = 1000) -> ir.Model:
    model = ir.from_onnx_text(
        f'<ir_version: 11, opset_import: ["" : 23]>\n'
        f"agraph (float[{size}] x, float[{size}] w) => (float[{size}] y)"
        "{ [cast] v = Cast<to = 1>(w)\n [add] y = Add(x, v) }"
    )
    value = model.graph.inputs.pop()
    value.const_value = ir.tensor(np.arange(size).astype(dtype), name="w")
    value.dtype = value.const_value.dtype
    model.graph.register_initializer(value)
    return model


def feeds(size: int = 1000) -> dict[str, np.ndarray]:
    return {"x": np.ones(size, np.float32)}


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.int4], ids=str)
def test_round_trip(tmp_path, external, dtype):
    model = small_model(dtype, 4096)
    path = tmp_path / "m.onnx"

    save(model, path, external_data=external)

    assert (tmp_path / "m.onnx.data").exists() == external
    onnx.checker.check_model(str(path))
    assert compare(run_reference(model, feeds(4096)), run_reference(load(path), feeds(4096))).equal
    assert sorted(os.listdir(tmp_path)) == ["m.onnx"] + ["m.onnx.data"] * external


@pytest.mark.parametrize("size", [10, 100, 300, 4000, 5000, 70000])
def test_size_is_what_is_written(tmp_path, size):
    model = small_model(size=size)
    extra = ir.Value(name="extra", const_value=ir.tensor(np.ones((2, 257), np.float16), name="other name"))
    model.graph.register_initializer(extra)
    save(model, tmp_path / "m.onnx")
    assert serialized_size(model) == (tmp_path / "m.onnx").stat().st_size


def test_large_models_go_external_by_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(save_module, "_INLINE_LIMIT", 2000)
    model = small_model()

    save(model, tmp_path / "model.onnx")

    files = [tmp_path / "model.onnx", tmp_path / "model.onnx.data"]
    assert files[1].stat().st_size == 4000
    assert serialized_size(model) == sum(file.stat().st_size for file in files)


def test_external_offsets_are_aligned(tmp_path):
    model = small_model(size=301)
    second = ir.Value(name="u", const_value=ir.tensor(np.ones(300, np.float32), name="u"))
    model.graph.register_initializer(second)
    save(model, tmp_path / "m.onnx", external_data=True)
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    offsets = [int({e.key: e.value for e in t.external_data}["offset"]) for t in proto.graph.initializer]
    assert offsets == [0, 1216]


def test_a_model_is_saved_over_the_file_it_is_mapped_from(tmp_path):
    path = tmp_path / "m.onnx"
    save(small_model(), path, external_data=True)
    loaded = load(path)
    other = ir.Value(name="first", const_value=ir.tensor(np.zeros(500, np.float32), name="first"))
    weights = loaded.graph.initializers.pop("w")
    loaded.graph.register_initializer(other)
    loaded.graph.register_initializer(weights)

    save(loaded, path, external_data=True)

    expected = np.arange(1000, dtype=np.float32) + 1
    np.testing.assert_array_equal(run_reference(loaded, feeds())["y"], expected)
    np.testing.assert_array_equal(run_reference(load(path), feeds())["y"], expected)


def with_paths() -> ir.Model:
    model = small_model()
    node = model.graph[0]
    node.metadata_props["pkg.torch.onnx.stack_trace"] = STACK_TRACE
    node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'conv', 'conv2d']"
    node.metadata_props["other.tool"] = "made by /opt/tool/pass.py"
    node.doc_string = STACK_TRACE
    node.outputs[0].metadata_props["where"] = os.getcwd()
    model.metadata_props["kept"] = "3/4 of a/b"
    return model


def test_local_paths_stay_at_home(tmp_path):
    model = with_paths()
    save(model, tmp_path / "m.onnx")

    data = (tmp_path / "m.onnx").read_bytes()
    for secret in (b"somebody", b"/opt", os.getcwd().encode()):
        assert secret not in data
    loaded = load(tmp_path / "m.onnx")
    assert dict(loaded.graph[0].metadata_props) == {"pkg.torch.onnx.name_scopes": "['', 'conv', 'conv2d']"}
    assert loaded.metadata_props["kept"] == "3/4 of a/b"
    assert model.graph[0].metadata_props["pkg.torch.onnx.stack_trace"] == STACK_TRACE


def test_local_paths_are_kept_on_request(tmp_path):
    save(with_paths(), tmp_path / "m.onnx", keep_paths=True)
    loaded = load(tmp_path / "m.onnx")
    assert loaded.graph[0].metadata_props["pkg.torch.onnx.stack_trace"] == STACK_TRACE


def test_paths_in_bodies_and_functions_are_dropped(tmp_path):
    model = ir.from_onnx_text(
        """<ir_version: 11, opset_import: ["" : 23, "local" : 1]>
        agraph (bool c, float[2] x) => (float[2] y) {
            y = If(c) <
                then_branch = t () => (float[2] p) { p = local.twice(x) },
                else_branch = e () => (float[2] q) { q = Neg(x) }
            >
        }
        <domain: "local", opset_import: ["" : 23]>
        twice (a) => (b) { b = Add(a, a) }"""
    )
    for graph in all_graphs(model):
        for node in graph:
            node.metadata_props["pkg.torch.onnx.stack_trace"] = STACK_TRACE
    save(model, tmp_path / "m.onnx")
    assert b"somebody" not in (tmp_path / "m.onnx").read_bytes()


@pytest.mark.parametrize("external", [False, True])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, external):
    path = tmp_path / "m.onnx"
    save(small_model(), path, external_data=external)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    real = os.replace

    def fail(source, destination):
        if str(destination) == str(path):
            raise OSError(28, "No space left on device")
        real(source, destination)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ModelError, match="cannot write .*: No space left on device"):
        save(small_model(np.float64), path, external_data=external)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


@pytest.mark.parametrize("external", [False, True])
def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch, external):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copymode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(small_model(), tmp_path / "m.onnx", external_data=external)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("external", [False, True])
def test_a_full_disk_is_one_line(tmp_path, external):
    """A real write error: the process may write no more than 2 kB into a file."""
    script = textwrap.dedent(
        f"""
        import resource, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import numpy as np, onnx_ir as ir
        from graphwright.ir.errors import ModelError
        from graphwright.ir.save import save
        model = ir.from_onnx_text('<ir_version: 11, opset_import: ["" : 23]>'
                                  'agraph (float[1000] x) => (float[1000] y) {{ y = Add(x, x) }}')
        value = ir.Value(name="w", const_value=ir.tensor(np.arange(1000.0), name="w"))
        model.graph.register_initializer(value)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
        try:
            save(model, {str(tmp_path / "m.onnx")!r}, external_data={external})
        except ModelError as error:
            print(error)
        """
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == f"cannot write '{tmp_path / 'm.onnx'}': File too large\n"
    assert os.listdir(tmp_path) == []


def test_bad_destinations(tmp_path):
    with pytest.raises(ModelError, match="it is a folder"):
        save(small_model(), tmp_path)
    with pytest.raises(ModelError, match="there is no folder"):
        save(small_model(), tmp_path / "nowhere" / "m.onnx")


def test_links_and_permissions_survive(tmp_path):
    real = tmp_path / "real.onnx"
    save(small_model(), real)
    real.chmod(0o640)
    link = tmp_path / "link.onnx"
    link.symlink_to(real)

    save(small_model(np.float64), link)

    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert load(real).graph.initializers["w"].dtype == ir.DataType.DOUBLE


def test_over_two_gigabytes_need_external_data(tmp_path, monkeypatch):
    monkeypatch.setattr(save_module, "_HARD_LIMIT", 2000)
    with pytest.raises(ModelError, match="over 2 GB"):
        save(small_model(), tmp_path / "m.onnx", external_data=False)
    assert os.listdir(tmp_path) == []
