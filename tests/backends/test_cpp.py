"""An artifact used from C++: the example of the documentation is built by g++ and run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import graphwright as gw
import numpy as np
import pytest
from graphwright.backends import runner

SOURCES = Path(runner.__file__).parent


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return build(SOURCES / "example.cc", tmp_path_factory.mktemp("cpp") / "example")


def build(source, program):
    flags = subprocess.run(
        [sys.executable, "-m", "graphwright.backends.runner", "--flags"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout.split()
    subprocess.run(
        [
            "g++",
            "-std=c++17",
            "-O1",
            "-Wall",
            "-Werror",
            str(source),
            *flags,
            "-o",
            str(program),
        ],
        check=True,
        timeout=300,
    )
    return program


def run(example, *arguments):
    return subprocess.run(
        [str(example), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_example_computes_what_python_does(example, cnn, tmp_path):
    executable = gw.compile(cnn, "host")
    executable.save(tmp_path / "out")
    size = 3 * 16 * 16
    ramp = (np.arange(size, dtype=np.float32) / np.float32(size) - np.float32(0.5)).reshape(1, 3, 16, 16)
    expected = executable(ramp)
    finished = run(example, tmp_path / "out", "1,3,16,16")
    assert finished.returncode == 0, finished.stderr
    match = re.fullmatch(r"\[ 1 10 \] largest element (\S+) at (\d+)\n", finished.stdout)
    assert match, finished.stdout
    assert int(match[2]) == expected.argmax()
    np.testing.assert_allclose(float(match[1]), expected.max(), rtol=1e-4)


def test_weights_of_another_model_are_refused(example, cnn, tmp_path):
    from graphwright.backends.native import NativeError
    from graphwright.backends.tvm.runtime import TvmProgram
    from graphwright.backends.weights import read_weights, write_weights

    artifact = gw.compile(cnn, "host").save(tmp_path / "out")
    weights = [np.array(weight) for weight in read_weights(artifact / "weights.bin")]
    wrong = [weights[:-1], [*weights, weights[0]], [weights[0][..., :-1], *weights[1:]]]
    wrong += [[weights[0].astype(np.float64), *weights[1:]]]
    for others in wrong:
        write_weights(artifact / "weights.bin", others)
        finished = run(example, artifact, "1,3,16,16")
        assert finished.returncode == 2
        assert "weights.bin is not the one that model.so was compiled with" in finished.stderr
        with pytest.raises(NativeError, match="not those that the library was compiled with"):
            TvmProgram(artifact / "model.so", others)
    write_weights(artifact / "weights.bin", weights)
    assert run(example, artifact, "1,3,16,16").returncode == 0


def test_wrong_shapes_and_folders_end_in_one_line(example, cnn, tmp_path):
    gw.compile(cnn, "host").save(tmp_path / "out")
    for arguments, said in (
        ((tmp_path / "none", "1,3,16,16"), "cannot read"),
        ((tmp_path / "out", "1,3,8,8"), "example: "),
        ((tmp_path / "out",), "usage: example DIR SHAPE"),
    ):
        finished = run(example, *arguments)
        assert finished.returncode == 2
        assert said in finished.stderr


def test_every_output_of_several(example, build_model, tmp_path):
    model = build_model("g (float[2,6] x) => (float[2,6] a, float[6,2] b) { a = Neg(x) b = Transpose(x) }")
    gw.compile(model, "host").save(tmp_path / "out")
    lines = run(example, tmp_path / "out", "2,6").stdout.splitlines()
    assert [line.split(" largest")[0] for line in lines] == ["[ 2 6 ]", "[ 6 2 ]"]
    assert lines[0].endswith("largest element 0.5 at 0")


def test_batch_sizes_and_pieces_compute_what_python_does(example, build_model, tmp_path):
    model = build_model(
        "net (float[N,6] x, float[6,4] w) => (float[N,4] y, float[N,6] z) { y = MatMul(x, w) z = Abs(x) }",
        w=(6, 4),
    )
    executable = gw.compile(model, "host", batch_sizes=[2, 4])
    executable.save(tmp_path / "out")
    for rows in (2, 4, 7):
        ramp = (np.arange(rows * 6, dtype=np.float32) / np.float32(rows * 6) - np.float32(0.5)).reshape(
            rows, 6
        )
        finished = run(example, tmp_path / "out", f"{rows},6")
        assert finished.returncode == 0, finished.stderr
        found = re.findall(r"\[ (\d+) (\d+) \] largest element (\S+) at (\d+)\n", finished.stdout)
        for (first, second, largest, place), expected in zip(found, executable(ramp), strict=True):
            assert (int(first), int(second)) == expected.shape and int(place) == expected.argmax()
            np.testing.assert_allclose(float(largest), expected.max(), rtol=1e-4)


def test_a_batch_that_cannot_be_cut_ends_in_one_line(example, build_model, tmp_path):
    model = build_model("net (float[N,6] x) => (float[N,6] y) { y = Softmax<axis = 0>(x) }")
    gw.compile(model, "host", batch_sizes=[2, 4]).save(tmp_path / "out")
    finished = run(example, tmp_path / "out", "3,6")
    assert finished.returncode == 2
    assert finished.stderr == (
        "example: a batch of 3 was given; the model was compiled for batches of 2, 4\n"
    )


TWICE = """
#include <filesystem>
#include <iostream>
#include "model.h"
int main(int, char** argv) {
  const std::string folder = argv[1];
  float x[4] = {1, 2, 3, 4};
  graphwright::Model first(folder);
  std::filesystem::rename(folder, folder + ".old");
  std::filesystem::rename(argv[2], folder);
  graphwright::Model second(folder);
  std::cout << first.Run({{x, {4}}})[0].data<float>()[3] << " " << second.Run({{x, {4}}})[0].data<float>()[3];
}
"""


@pytest.mark.slow
def test_an_artifact_that_replaces_another_is_what_runs(build_model, tmp_path):
    for name, op in (("a", "Neg"), ("b", "Sqrt")):
        gw.compile(build_model(f"g (float[4] x) => (float[4] y) {{ y = {op}(x) }}"), "host").save(
            tmp_path / name
        )
    (tmp_path / "twice.cc").write_text(TWICE)
    finished = run(build(tmp_path / "twice.cc", tmp_path / "twice"), tmp_path / "a", tmp_path / "b")
    assert (finished.returncode, finished.stdout) == (0, "-4 2"), finished.stderr


def test_a_cpu_that_lacks_a_feature_is_told_which(example, cnn, tmp_path):
    folder = gw.compile(cnn, "host").save(tmp_path / "out")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["target"]["features"] += ["avx1024", "quantum"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    finished = run(example, folder, "1,3,16,16")
    assert finished.returncode == 2
    assert finished.stderr == f"example: {folder} cannot run here: this CPU lacks avx1024, quantum\n"


COUNTS = """
#include <iostream>
#include "model.h"
int main(int, char** argv) {
  float x[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  graphwright::Model one(argv[1], 1), two(argv[1], 2);
  for (graphwright::Model* model : {&one, &two, &one}) std::cout << model->Run({{x, {8}}})[0].data<float>()[7] << " ";
}
"""


def test_models_have_their_own_numbers_of_threads(build_model, tmp_path):
    folder = gw.compile(build_model("g (float[8] x) => (float[8] y) { y = Neg(x) }"), "host").save(
        tmp_path / "a"
    )
    (tmp_path / "counts.cc").write_text(COUNTS)
    finished = run(build(tmp_path / "counts.cc", tmp_path / "counts"), folder)
    assert (finished.returncode, finished.stdout) == (0, "-8 -8 -8 "), finished.stderr
