"""Models and command lines that could be taken for something: what is refused, and what is done safely."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphwright.ir.load import load
from graphwright.ir.reference import run_reference
from graphwright.ir.save import save
from onnx import TensorProto, helper

from .conftest import assert_one_line_of_trouble


def write(path, *, opset=17, sizes=(1, 4), nodes=1, outputs=1):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in "xy")
    body = [helper.make_node("Relu", ["x"], ["y"])][:nodes]
    graph = helper.make_graph(body, "g", [x], [y if nodes else x][:outputs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 10
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"opset": 99}, "opset 99"),
        ({"opset": 0}, "version 0"),
        ({"sizes": (1, -4)}, "'x' has a size of -4"),
        ({"outputs": 0}, "no outputs"),
    ],
)
def test_models_that_cannot_be_meant_are_refused(cli, tmp_path, what, said):
    path = write(tmp_path / "m.onnx", **what)
    for command in (("inspect", path), ("opt", path, "--pipeline", "simplify", "-o", tmp_path / "o.onnx")):
        done = cli(*command)
        assert_one_line_of_trouble(done, said)
    assert not (tmp_path / "o.onnx").exists()


def test_a_size_of_minus_one_is_an_unknown_one(tmp_path):
    model = load(write(tmp_path / "m.onnx", sizes=(-1, 4)))
    first, second = model.graph.inputs[0].shape
    assert isinstance(first, ir.SymbolicDim) and second == 4
    found = run_reference(model, {"x": np.full((3, 4), -1.0, np.float32)})["y"]
    assert found.shape == (3, 4) and not found.any()


def test_a_model_without_nodes_hands_its_input_on(cli, tmp_path):
    path = write(tmp_path / "m.onnx", nodes=0)
    assert cli("opt", path, "--pipeline", "simplify", "-o", tmp_path / "o.onnx").code == 0
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    assert np.array_equal(run_reference(load(tmp_path / "o.onnx"), {"x": x})["x"], x)


@pytest.mark.parametrize("external", [False, True])
def test_a_model_may_be_replaced_by_its_own_result(cli, tmp_path, external):
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Identity", ["b"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [onnx.numpy_helper.from_array(weight, "w")])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    save(load(path), path, external_data=external)
    feeds = {"x": np.ones((1, 64), np.float32)}
    before = run_reference(load(path), feeds)["y"]
    assert cli("opt", path, "--pipeline", "simplify", "-o", path).code == 0
    after = load(path)
    assert [node.op_type for node in after.graph] == ["MatMul"]
    assert np.array_equal(run_reference(after, feeds)["y"], before)
    assert not [each for each in tmp_path.iterdir() if not each.name.startswith("m.onnx")], "nothing is left"


def test_an_own_input_stays_whole_where_the_result_cannot_be_written(cli, tmp_path, monkeypatch):
    path = write(tmp_path / "m.onnx")
    whole = path.read_bytes()
    monkeypatch.setattr(
        "os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    done = cli("opt", path, "--pipeline", "simplify", "-o", path)
    assert_one_line_of_trouble(done, "No space left")
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_may_not_be_written_to_is_refused_at_once(cli, tmp_path, monkeypatch):
    path = write(tmp_path / "m.onnx")
    monkeypatch.setattr("os.access", lambda place, mode: False)
    done = cli("opt", path, "--pipeline", "simplify", "-o", tmp_path / "o.onnx")
    assert_one_line_of_trouble(done, "may not be written to")


@pytest.mark.parametrize("command", ["opt", "compile"])
def test_an_option_that_takes_one_value_is_refused_twice(cli, tmp_path, command):
    path = write(tmp_path / "m.onnx")
    done = cli(
        command, path, "--pipeline", "simplify", "-o", tmp_path / "a.onnx", "--output", tmp_path / "b.onnx"
    )
    assert_one_line_of_trouble(done, "--output is given 2 times")
    assert list(tmp_path.iterdir()) == [path]


def test_options_for_several_values_and_flags_may_be_repeated(cli, tmp_path):
    path = write(tmp_path / "m.onnx", sizes=("n", "m"))
    done = cli("inspect", path, "--dim", "n=1", "--dim", "m=4", "--json", "--json")
    assert done.code == 0
