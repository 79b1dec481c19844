from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.errors import ToolError
from graphwright.tools.feeds import calibration_feeds, match_feeds, read_npz, write_npz

SIGNATURE = [("ids", (1, 4), np.int64), ("mask", (1, "n"), np.float32)]


def test_arrays_are_taken_by_name():
    ids, mask = np.arange(4)[None], np.ones((1, 7), np.float32)
    feeds = match_feeds({"mask": mask, "ids": ids}, SIGNATURE, "in.npz")
    assert list(feeds) == ["ids", "mask"]
    np.testing.assert_array_equal(feeds["ids"], ids)


def test_unnamed_arrays_are_taken_in_order():
    feeds = match_feeds({"arr_0": np.zeros((1, 4), int), "arr_1": np.ones((1, 2), np.float32)}, SIGNATURE, "")
    assert feeds["mask"].shape == (1, 2)


def test_types_are_converted_within_their_kind():
    feeds = match_feeds({"ids": np.zeros((1, 4), np.int32), "mask": np.ones((1, 2))}, SIGNATURE, "in.npz")
    assert feeds["ids"].dtype == np.int64
    assert feeds["mask"].dtype == np.float32


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"ids": np.zeros((1, 4), int)}, "lacks input 'mask'"),
        ({"ids": np.zeros((1, 4), int), "mask": np.ones((1, 2)), "more": np.ones(1)}, "holds 'more'"),
        (
            {"ids": np.zeros((1, 5), int), "mask": np.ones((1, 2))},
            "'ids' has shape [1, 5], the model takes [1, 4]",
        ),
        ({"ids": np.zeros(4, int), "mask": np.ones((1, 2))}, "'ids' has shape [4]"),
        ({"ids": np.zeros((1, 4)), "mask": np.ones((1, 2))}, "'ids' is float64, the model takes int64"),
    ],
)
def test_what_does_not_fit_is_named(arrays, words):
    with pytest.raises(ToolError) as raised:
        match_feeds(arrays, SIGNATURE, "in.npz")
    assert words in str(raised.value) and "in.npz" in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 but no more", b"text"])
def test_a_file_that_is_no_npz_is_named(content, tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(ToolError, match=r"x\.npz"):
        read_npz(path)


def test_a_single_array_is_refused(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(ToolError, match=r"x\.npy' holds a single array"):
        read_npz(path)


def test_pickled_objects_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ToolError, match="not a readable"):
        read_npz(path)


def test_written_arrays_come_back_under_any_name(tmp_path):
    arrays = {"file": np.arange(3), "gpu_0/softmax": np.eye(2, dtype=np.float32), "scalar": np.float32(2)}
    write_npz(tmp_path / "out.npz", arrays)
    back = read_npz(tmp_path / "out.npz")
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(ValueError):
        write_npz(tmp_path / "out.npz", {"x": np.array([object()])})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ToolError, match=r"cannot write '.*out\.npz'"):
        write_npz(tmp_path / "gone" / "out.npz", {"x": np.zeros(1)})


def batches(model: ir.Model, path: Path) -> list[dict[str, np.ndarray]]:
    feeds = calibration_feeds(model, path)
    assert feeds is not None
    return list(feeds.batches(model))


def test_a_long_array_is_cut_into_batches(tiny, tmp_path):
    images = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=images)
    feeds = batches(tiny, tmp_path / "c.npz")
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), images)


def test_a_folder_gives_all_its_files_in_order(tiny, tmp_path):
    for index in (1, 0, 2):
        np.savez(tmp_path / f"{index}.npz", np.full((1, 3, 8, 8), index, np.float32))
    assert [feed["x"].flat[0] for feed in batches(tiny, tmp_path)] == [0, 1, 2]


def test_random_calibration_is_repeatable(tiny):
    first, again = calibration_feeds(tiny, None, 3), calibration_feeds(tiny, None, 3)
    assert first is not None and again is not None and first.random and first.total == 3
    drawn = list(first.batches(tiny))
    for one, other in zip(drawn, again.batches(tiny), strict=True):
        np.testing.assert_array_equal(one["x"], other["x"])
    assert not np.array_equal(drawn[0]["x"], drawn[1]["x"])


def test_calibration_data_that_does_not_fit_is_refused(tiny, tmp_path):
    np.savez(tmp_path / "c.npz", x=np.zeros((4, 1, 8, 8), np.float32))
    with pytest.raises(ToolError, match="has shape"):
        calibration_feeds(tiny, tmp_path / "c.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ToolError, match="no .npz"):
        calibration_feeds(tiny, tmp_path / "empty")
    with pytest.raises(ToolError, match="not both"):
        calibration_feeds(tiny, tmp_path / "c.npz", 3)
    np.savez(tmp_path / "none.npz", x=np.zeros((0, 3, 8, 8), np.float32))
    with pytest.raises(ToolError, match="no samples"):
        calibration_feeds(tiny, tmp_path / "none.npz")


def test_no_calibration_is_none(tiny):
    assert calibration_feeds(tiny, None) is None
