"""Files whose weights are read past protobuf: the same model, the same errors."""

import copy
import os
import pickle
import shutil

import numpy as np
import onnx
import pytest
from graphwright.ir import file_data, wire_split
from graphwright.ir.errors import GraphwrightError, ModelError
from graphwright.ir.file_data import FileSpan, FileTensor
from graphwright.ir.load import load
from graphwright.ir.save import save
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture(autouse=True)
def split_small_files(monkeypatch):
    monkeypatch.setattr(wire_split, "_SPLIT_ABOVE", 1)
    monkeypatch.setattr(wire_split, "_LARGE", 64)


def proto(*tensors: TensorProto) -> onnx.ModelProto:
    size = 100
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size]) for name in "xy"]
    graph = helper.make_graph([node], "g", info[:1], info[1:], initializer=tensors, doc_string="text")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def tensors() -> list[TensorProto]:
    rng = np.random.default_rng(1)
    return [
        numpy_helper.from_array(rng.standard_normal(100).astype(np.float32), "floats"),
        numpy_helper.from_array(np.arange(4, dtype=np.int64), "small"),
        numpy_helper.from_array(np.arange(60, dtype=np.int16).reshape(3, 20), "shorts"),
        helper.make_tensor("bfloats", TensorProto.BFLOAT16, [64], np.arange(64, dtype=np.uint16).tobytes(), raw=True),
        helper.make_tensor("nibbles", TensorProto.INT4, [200], bytes(range(100)), raw=True),
        helper.make_tensor("typed", TensorProto.FLOAT, [40], np.arange(40.0).tolist()),
        helper.make_tensor("texts", TensorProto.STRING, [40], [b"twenty bytes of text"] * 40),
    ]  # fmt: skip


def test_the_same_tensors(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(proto(*tensors()).SerializeToString())
    message, data = wire_split.read_message(path)
    assert set(data) == {"floats", "shorts", "bfloats", "nibbles"}
    assert [t.name for t in message.graph.initializer] == [t.name for t in tensors()]
    assert message.graph.doc_string == "text"

    split = load(path)
    monkeypatch.setattr(wire_split, "_SPLIT_ABOVE", 1 << 40)
    whole = load(path)

    assert list(split.graph.initializers) == list(whole.graph.initializers)
    for name, value in whole.graph.initializers.items():
        ours = split.graph.initializers[name].const_value
        assert (ours.dtype, ours.shape) == (value.const_value.dtype, value.const_value.shape)
        np.testing.assert_array_equal(ours.numpy(), value.const_value.numpy())
        assert ours.numpy().flags.aligned


@pytest.mark.parametrize("block", [64, 256, 600, 1 << 20])
def test_blocks_of_any_size_hold_the_same(monkeypatch, block):
    monkeypatch.setattr(wire_split, "_BLOCK", block)
    lengths = [100, 0, 64, 300, 1, 65, 1000, 128]

    arrays = wire_split._room(lengths)
    for number, array in enumerate(arrays):
        array[:] = number

    assert [array.size for array in arrays] == lengths
    assert all((array == number).all() for number, array in enumerate(arrays))
    assert all(array.ctypes.data % 16 == 0 for array in arrays if array.size)


@pytest.mark.parametrize("dims", [[99], [-100], [101]])
def test_contradicting_data_is_found(tmp_path, dims):
    tensor = tensors()[0]
    del tensor.dims[:]
    tensor.dims.extend(dims)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto(tensor).SerializeToString())
    with pytest.raises(ModelError, match="'floats'"):
        load(path)


def test_every_truncation_is_an_error(tmp_path):
    path = tmp_path / "m.onnx"
    data = proto(*tensors()).SerializeToString()
    for kept in range(1, len(data) - 12, 37):
        path.write_bytes(data[:kept])
        with pytest.raises(GraphwrightError):
            load(path)


def test_unusual_files_are_left_to_protobuf(tmp_path):
    first, second = tensors()[0], tensors()[0]
    path = tmp_path / "twice.onnx"
    path.write_bytes(proto(first, second).SerializeToString())
    assert wire_split.read_message(path)[1] == {}

    # A message may come in two parts, which are merged.
    parts = (
        proto(first).SerializeToString()
        + onnx.ModelProto(graph=onnx.GraphProto(name="late")).SerializeToString()
    )
    path.write_bytes(parts)
    message, data = wire_split.read_message(path)
    assert (message.graph.name, data) == ("late", {})
    np.testing.assert_array_equal(
        load(path).graph.initializers["floats"].const_value.numpy(), numpy_helper.to_array(first)
    )


@pytest.fixture
def leave_in_file(monkeypatch):
    monkeypatch.setattr(wire_split, "_HUGE", 64)


def test_weights_survive_the_file(tmp_path):
    """The arrays are ours: what happens to the file afterwards does not matter."""
    path = tmp_path / "m.onnx"
    path.write_bytes(proto(*tensors()).SerializeToString())
    model = load(path)
    path.write_bytes(b"gone")
    np.testing.assert_array_equal(
        model.graph.initializers["floats"].const_value.numpy(), numpy_helper.to_array(tensors()[0])
    )
    check_saved(model, tmp_path)


@pytest.mark.parametrize(
    "change", [os.unlink, lambda path: os.replace(shutil.copy(__file__, f"{path}.new"), path)]
)
def test_weights_left_in_the_file_survive_its_name(tmp_path, leave_in_file, change):
    path = tmp_path / "m.onnx"
    path.write_bytes(proto(*tensors()).SerializeToString())
    model = load(path)
    assert isinstance(model.graph.initializers["bfloats"].const_value, FileTensor)
    change(path)
    check_saved(model, tmp_path)


@pytest.mark.parametrize("by_system", [True, False])
def test_what_nobody_looked_at_is_copied_from_file_to_file(tmp_path, leave_in_file, monkeypatch, by_system):
    if not by_system:
        monkeypatch.delattr(os, "copy_file_range")
        monkeypatch.setattr(file_data, "_STEP", 100)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto(*tensors()).SerializeToString())
    model = load(path)
    read = []
    with monkeypatch.context() as patched:
        patched.setattr(FileSpan, "read", lambda span: read.append(span))
        save(model, path, external_data=False)
        save(model, tmp_path / "apart.onnx", external_data=True)
    assert read == []
    check_saved(model, tmp_path)
    for again in (load(path), load(tmp_path / "apart.onnx")):
        same_tensors(again, model)


def test_a_weight_that_was_changed_in_memory_is_saved_as_it_is(tmp_path, leave_in_file):
    path = tmp_path / "m.onnx"
    path.write_bytes(proto(*tensors()).SerializeToString())
    model = load(path)
    model.graph.initializers["floats"].const_value.numpy()[:] = 7
    save(model, path)
    assert set(load(path).graph.initializers["floats"].const_value.numpy()) == {7}


def test_a_file_that_was_written_to_is_told(tmp_path, leave_in_file):
    path = tmp_path / "m.onnx"
    path.write_bytes(proto(*tensors()).SerializeToString())
    model = load(path)
    path.write_bytes(b"gone")
    tensor = model.graph.initializers["floats"].const_value
    assert tensor.nbytes == 400 and "FLOAT,[100]" in repr(tensor)
    with pytest.raises(ModelError, match="m.onnx' was written to after the model was loaded"):
        tensor.numpy()
    with pytest.raises(ModelError, match="load it again"):
        save(model, tmp_path / "other.onnx")
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_copies_of_a_tensor_in_a_file(tmp_path, leave_in_file):
    path = tmp_path / "m.onnx"
    path.write_bytes(proto(*tensors()).SerializeToString())
    tensor = load(path).graph.initializers["shorts"].const_value
    shallow = copy.copy(tensor)
    shallow.name = "other"
    pickled = pickle.loads(pickle.dumps(tensor))
    for made in (shallow, copy.deepcopy(tensor), pickled):
        np.testing.assert_array_equal(made.numpy(), numpy_helper.to_array(tensors()[2]))
    assert (tensor.name, shallow.name, pickled.name) == ("shorts", "other", "shorts")


def check_saved(model, tmp_path):
    save(model, tmp_path / "again.onnx")
    same_tensors(load(tmp_path / "again.onnx"), model)


def same_tensors(again, model):
    for name, value in model.graph.initializers.items():
        stored = again.graph.initializers[name].const_value
        assert stored.dtype == value.const_value.dtype
        np.testing.assert_array_equal(stored.numpy(), value.const_value.numpy())
