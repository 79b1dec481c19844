"""The same for C++: whatever stands in the files, programs run or end in one line, with little memory."""

from __future__ import annotations

import random
import resource
import shutil
import struct
import subprocess

import numpy as np
import pytest
from graphwright.backends.runner.build import build_runner
from graphwright.backends.target import host_target
from graphwright.backends.weights import read_weights, write_weights

from .hostile_headers import PROMISES, promising, promising_compactly

LITTLE_MEMORY = 1 << 30


@pytest.fixture(scope="module")
def runner():
    return build_runner(host_target())


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    import graphwright as gw
    from onnx_ir import from_onnx_text

    model = from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        net (float[N,6] x, float[N,6] z) => (float[N,4] y)
        <float[6,4] w = {0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23}>
        { s = Add(x, z) y = MatMul(s, w) }"""
    )
    return gw.compile(model, "host", batch_sizes=(1, 2)).save(tmp_path_factory.mktemp("sound") / "net")


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "net")


def run(runner, folder, inputs, *options):
    """The exit code; anything but a result or one line of error fails."""
    finished = subprocess.run(
        [str(runner), str(folder), str(inputs), str(folder / "out.bin"), *options],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LITTLE_MEMORY, LITTLE_MEMORY)),
    )
    assert finished.returncode in (0, 2), (finished.returncode, finished.stderr)
    if finished.returncode:
        assert len(finished.stderr.splitlines()) == 1 and finished.stderr.startswith("runner: ")
    return finished


def _inputs(path, first=(2, 6), second=(2, 6)):
    write_weights(path, [np.ones(first, np.float32), np.ones(second, np.float32)])
    return path


def test_sound_files_run(runner, folder, tmp_path):
    assert run(runner, folder, _inputs(tmp_path / "in.bin")).returncode == 0
    (y,) = read_weights(folder / "out.bin")
    np.testing.assert_allclose(y, np.full((2, 6), 2) @ np.arange(24).reshape(6, 4))


def test_files_with_other_bytes(runner, folder, tmp_path):
    inputs = _inputs(tmp_path / "in.bin")
    random.seed(0)
    for turn in range(60):
        target = folder / "weights.bin" if turn % 2 else inputs
        sound = target.read_bytes()
        content = bytearray(sound)
        for _ in range(random.randint(1, 3)):
            place = random.randrange(4, 72)
            if random.random() < 0.5:
                content[place] = random.randrange(256)
            else:
                value = random.choice([0, 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1])
                content[place : place + 8] = struct.pack("<Q", value)
        target.write_bytes(content if random.random() < 0.8 else content[: random.randrange(len(content))])
        run(runner, folder, inputs)
        target.write_bytes(sound)


@pytest.mark.parametrize("header", PROMISES)
def test_weights_that_promise_too_much(runner, folder, tmp_path, header):
    inputs = _inputs(tmp_path / "in.bin")
    many = struct.pack("<I", 2**32 - 1) + bytes(64)
    for content in (promising(header), promising_compactly(header), b"GWW1" + many, b"GWW2" + many):
        (folder / "weights.bin").write_bytes(content)
        assert run(runner, folder, inputs).returncode == 2


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ((4, 6), (1, 6), "inputs of 4 and 1 rows"),
        ((3, 6), (1, 6), "inputs of 3 and 1 rows"),
        ((2, 6), (), "has no batch dimension"),
        ((0, 6), (0, 6), "a batch of 0 was given"),
        ((2, 5), (2, 6), ""),
    ],
)
def test_inputs_that_do_not_fit_are_refused(runner, folder, tmp_path, first, second, said):
    finished = run(runner, folder, _inputs(tmp_path / "in.bin", first, second))
    assert finished.returncode == 2
    assert said in finished.stderr


def test_libraries_and_options_that_are_none(runner, folder, tmp_path):
    inputs = _inputs(tmp_path / "in.bin")
    for threads in ("0", "-3", "99999999", "x"):
        assert run(runner, folder, inputs, "--threads", threads).returncode == 2
    for content in (b"", b"\x7fELF" + bytes(60)):
        (folder / "model.so").unlink()
        (folder / "model.so").write_bytes(content)
        assert run(runner, folder, inputs).returncode == 2
