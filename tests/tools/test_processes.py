"""Steps in processes of their own: what they answer, and how they end."""

import os
import time

import pytest
from graphwright.tools.processes import StepFailed, StepTimedOut, environment, last_words, run_step


def test_a_step_answers_in_its_last_line_whatever_its_libraries_print(tmp_path):
    import onnx
    from onnx import helper

    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])], "g", [x], [helper.make_empty_tensor_value_info("y")]
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    found = run_step(
        "simplifiers.judge", [str(tmp_path / "m.onnx")], timeout=120, cores=[min(os.sched_getaffinity(0))]
    )
    assert found["nodes"] == 1


def test_steps_that_fail_say_their_last_words(tmp_path):
    with pytest.raises(StepFailed, match="feeds.npz"):
        run_step("runtimes.prepare", ["compile", str(tmp_path)], timeout=120)
    assert last_words("a\n\n b \n\n", 3) == "b"
    assert last_words("", 3) == "exit code 3 without a word"
    assert last_words("Killed", -9) == "killed by signal 9"


def test_a_step_that_hangs_is_killed_with_what_it_started(tmp_path):
    # A shell that is put before the step leaves a child behind that would outlive it.
    note = tmp_path / "child"
    prefix = ["sh", "-c", f"sleep 100 & echo $! > '{note}'; wait; exec \"$@\"", "sh"]
    start = time.monotonic()
    with pytest.raises(StepTimedOut, match="not done after 1 s"):
        run_step("readme", [], timeout=1.0, prefix=prefix)
    assert time.monotonic() - start < 50
    child = int(note.read_text())
    for _ in range(100):
        # Its parent is gone: who adopted it may take a moment to reap it.
        try:
            with open(f"/proc/{child}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    break
        except OSError:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("what the step started is still there")


def test_libraries_are_told_how_many_threads_they_may_use():
    assert environment(3, {"MORE": "1"})["MKL_NUM_THREADS"] == "3"
    assert environment(3, {"MORE": "1"})["MORE"] == "1"
