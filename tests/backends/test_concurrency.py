"""Executables in programs with threads and processes of their own: right results, and no process that hangs."""

from __future__ import annotations

import subprocess
import sys
import threading

import graphwright as gw
import numpy as np
import pytest

ROWS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import onnx_ir as ir

    weights = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    x = ir.val("x", ir.DataType.FLOAT, [32, 64])
    w = ir.Value(name="w", const_value=ir.tensor(weights, name="w"))
    product = ir.node("MatMul", [x, w])
    y = ir.node("Relu", product.outputs)
    y.outputs[0].name = "y"
    graph = ir.Graph([x], y.outputs, nodes=[product, y], initializers=[w], opset_imports={"": 21}, name="net")
    model = ir.Model(graph, ir_version=10)
    return gw.compile(model, "host").save(tmp_path_factory.mktemp("artifact") / "net")


def _inputs():
    return [np.random.default_rng(row).standard_normal((32, 64)).astype(np.float32) for row in range(ROWS)]


@pytest.mark.parametrize("count", [1, 2])
def test_threads_share_an_executable(folder, count):
    exe = gw.load_executable(folder, threads=count)
    inputs = _inputs()
    expected = [exe(x) for x in inputs]
    wrong = []

    def work(start):
        for turn in range(30):
            which = (start + turn) % ROWS
            if not np.array_equal(exe(inputs[which]), expected[which]):
                wrong.append(which)

    workers = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)
    assert not wrong


def test_executables_keep_their_own_numbers_of_threads(folder):
    one, two = (gw.load_executable(folder, threads=count) for count in (1, 2))
    for x in _inputs():
        np.testing.assert_array_equal(one(x), two(x))
    assert one.threads == 1
    one.set_threads(2)
    two.set_threads(1)
    for x in _inputs():
        np.testing.assert_array_equal(one(x), two(x))


FORKS = """
import multiprocessing, os, sys
import numpy as np
import graphwright as gw

exe = gw.load_executable(sys.argv[1], threads=int(sys.argv[2]))
x = np.ones((32, 64), np.float32)
expected = exe(x)

def child(queue):
    queue.put(bool(np.array_equal(exe(x), expected)))

context = multiprocessing.get_context("fork")
queue = context.Queue()
children = [context.Process(target=child, args=(queue,)) for _ in range(2)]
for each in children:
    each.start()
assert all(queue.get(timeout=30) for _ in children)
for each in children:
    each.join(30)
    assert each.exitcode == 0
for act in (lambda: None, lambda: exe(x)):  # leaves by way of the runtime's destructors
    pid = os.fork()
    if not pid:
        act()
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
assert np.array_equal(exe(x), expected)
print("fine")
"""


@pytest.mark.parametrize("count", [1, 2])
def test_forks(folder, count):
    finished = subprocess.run(
        [sys.executable, "-c", FORKS, str(folder), str(count)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.stdout == "fine\n", finished.stderr


def test_one_thread_starts_no_others(folder):
    program = """
import os, sys
import numpy as np
import graphwright as gw
exe = gw.load_executable(sys.argv[1], threads=1)
before = len(os.listdir("/proc/self/task"))
exe(np.ones((32, 64), np.float32))
print(len(os.listdir("/proc/self/task")) - before)
"""
    command = [sys.executable, "-c", program, str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert finished.stdout == "0\n"
