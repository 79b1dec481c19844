"""Artifacts from anywhere: whatever stands in their files, loading ends well or in one line, at no great cost."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import resource
import shutil
import struct

import graphwright as gw
import numpy as np
import pytest
from graphwright.backends.artifact import load_executable
from graphwright.backends.checksum import checksum, sha256_of
from graphwright.backends.manifest import is_artifact, read_manifest
from graphwright.backends.weights import read_weights, write_weights
from graphwright.ir.errors import GraphwrightError, ToolError
from hypothesis import given, settings
from hypothesis import strategies as st

from .hostile_headers import PROMISES, promising, promising_compactly

NASTY = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**400, 1.5, float("inf"), float("nan"), "", "x", "../x",
    "/etc/passwd", "a\nb", "\0", "x" * 5000, [], [[]], {}, {"": None}, [-1], [2**62] * 8, ["a", 1, None],
)  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    from onnx_ir import from_onnx_text

    model = from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        net (float[N,6] x) => (float[N,4] y)
        <float[6,4] w = {0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23}>
        { y = MatMul(x, w) }"""
    )
    return gw.compile(model, "host", batch_sizes=(1, 2)).save(tmp_path_factory.mktemp("sound") / "net")


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "net")


@contextlib.contextmanager
def _little_memory(megabytes=600):
    """An allocation that a file of some kilobytes cannot justify fails."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _ends_well(act):
    """Whether it goes through; everything but one clear line fails."""
    try:
        with _little_memory():
            act()
    except GraphwrightError as error:
        assert str(error) and "\n" not in str(error)
        assert len(str(error)) < 3000
        return False
    return True


def _paths(value, path=()):
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from _paths(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from _paths(value[index], (*path, index))


def _put(value, path, new):
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_manifests_with_other_values(sound, tmp_path_factory, data):
    manifest = json.loads((sound / "manifest.json").read_text())
    places = [path for path in _paths(manifest) if path]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places))
        with contextlib.suppress(KeyError, IndexError, TypeError):
            _put(manifest, place, copy.deepcopy(data.draw(st.sampled_from(NASTY))))
    folder = _copy(sound, tmp_path_factory)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    _ends_well(lambda: load_executable(folder))
    shutil.rmtree(folder)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_manifests_with_other_bytes(sound, tmp_path_factory, data):
    text = bytearray((sound / "manifest.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    folder = _copy(sound, tmp_path_factory)
    (folder / "manifest.json").write_bytes(text[: data.draw(st.integers(0, len(text)))] or text)
    _ends_well(lambda: load_executable(folder))
    shutil.rmtree(folder)


def _copy(sound, factory):
    """Large files are linked: they are not changed."""
    folder = factory.mktemp("hostile") / "net"
    folder.mkdir()
    for path in sound.iterdir():
        os.link(path, folder / path.name)
    (folder / "manifest.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"\xff\xfe", "cannot read"),
        (b"", "cannot read"),
        (b'{"format": ' + b"9" * 10_000 + b"}", "cannot read"),
        (b"null", "another kind"),
    ],
)
def test_manifests_that_are_none(folder, text, said):
    (folder / "manifest.json").write_bytes(text)
    assert not is_artifact(folder)
    with pytest.raises(ToolError, match=said) as caught:
        read_manifest(folder)
    assert "\n" not in str(caught.value)


def test_a_manifest_too_large_to_be_one_is_not_read(folder):
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)
    assert not _ends_well(lambda: load_executable(folder))


def _written(folder, name, data):
    """A file with another content, and a manifest that agrees with it."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {
        "bytes": len(data),
        "checksum": checksum(data),
        "sha256": sha256_of(folder / name),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_weights_with_other_bytes(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("weights") / "w.bin"
    arrays = [np.arange(24, dtype=np.float32).reshape(4, 6), np.arange(5, dtype=np.int8), np.float16(3)[None]]
    write_weights(path, arrays)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 150))
        if data.draw(st.booleans()):
            content[place] = data.draw(st.integers(0, 255))
        else:
            content[place : place + 8] = struct.pack(
                "<Q", data.draw(st.sampled_from([0, 1, 2**32, 2**63, 2**64 - 1]))
            )
    path.write_bytes(
        content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    )

    def act():
        for array in read_weights(path):
            assert array.nbytes <= len(content)

    _ends_well(act)


@pytest.mark.parametrize("header", PROMISES)
def test_weights_that_promise_too_much(folder, header):
    many = struct.pack("<I", 2**32 - 1)
    for content in (promising(header), promising_compactly(header), b"GWW1" + many, b"GWW2" + many):
        _written(folder, "weights.bin", content)
        assert not _ends_well(lambda: load_executable(folder))


@pytest.mark.parametrize("arrays", [[], [np.zeros((6, 4), np.float32)] * 9, [np.zeros(3, np.int8)]])
def test_weights_of_another_model_are_refused(folder, arrays):
    write_weights(folder / "weights.bin", arrays)
    _written(folder, "weights.bin", (folder / "weights.bin").read_bytes())
    assert not _ends_well(lambda: load_executable(folder).run({"x": np.zeros((1, 6), np.float32)}))


@pytest.mark.parametrize("content", [b"", b"no library", b"\x7fELF" + bytes(60), bytes(4096)])
def test_a_library_that_is_none(folder, content):
    _written(folder, "model.so", content)
    with pytest.raises(GraphwrightError, match=r"model\.so does not load") as caught:
        load_executable(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.so", "weights.bin"])
def test_links_out_of_the_folder_are_not_followed(folder, tmp_path, name):
    shutil.move(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ToolError, match="is a link that leaves the folder"):
        load_executable(folder)
    (folder / name).unlink()
    (folder / name).symlink_to(folder / name)  # to itself
    with pytest.raises(ToolError, match="is missing"):
        load_executable(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ToolError, match="is missing"):
        load_executable(folder)


def test_a_linked_folder_is_a_folder(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    x = np.ones((1, 6), np.float32)
    np.testing.assert_array_equal(load_executable(tmp_path / "link")(x), load_executable(folder)(x))
