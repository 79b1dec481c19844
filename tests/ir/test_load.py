"""Loading: every old opset right, every bad file one clear line, nothing read from outside the folder."""

import os
import random
import struct
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.errors import GraphwrightError, ModelError, VerifyError
from graphwright.ir.inputs import random_inputs
from graphwright.ir.load import load, load_any
from graphwright.ir.opset import CANONICAL_OPSET
from graphwright.ir.reference import run_reference
from graphwright.ir.save import save
from onnx import TensorProto, helper

LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))


def original(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The file as ONNX Runtime reads it by itself."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def write(path: Path, opset: int, text: str, *, ir_version: int = 8, imports: str = "") -> Path:
    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}{imports}]>\n'
    path.write_bytes(onnx.parser.parse_model(header + text).SerializeToString())
    return path


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_light_models(path, capfd):
    model = load(path)

    assert capfd.readouterr() == ("", "")
    assert model.opset_imports == {"": CANONICAL_OPSET}
    assert len(model.graph.inputs) == 1
    names = [node.name for node in model.graph]
    assert all(names)
    assert len(set(names)) == len(names)
    feeds = random_inputs(model)
    assert compare(original(path, feeds), run_reference(model, feeds)).max_rel < 1e-6


OLD = [
    (7, "agraph (float[1,2,4,4] x) => (float[1,2,8,8] y) { y = Upsample<scales = [1.0,1.0,2.0,2.0]>(x) }"),
    (9, "agraph (float[1,2,4,4] x) => (float[1,2,8,8] y) <float[4] s = {1,1,2,2}>"
        "{ y = Upsample<mode = \"linear\">(x, s) }"),
    (10, "agraph (float[1,2,4,4] x) => (float[1,2,6,6] y) <float[4] s = {1,1,1.5,1.5}>"
         "{ y = Resize<mode = \"linear\">(x, s) }"),
    (10, "agraph (float[1,2,6,6] x) => (float[1,2,4,4] y) <float[4] s = {1,1,0.7,0.7}>"
         "{ y = Resize<mode = \"nearest\">(x, s) }"),
    (10, "agraph (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax<axis = 1>(x) }"),
    (12, "agraph (float[2,3,4] x) => (float[2,3,4] y) { y = LogSoftmax(x) }"),
    (12, "agraph (float[2,3,4] x) => (float[2,3,4] y) { r = Relu(x) y = Hardmax(r) }"),
    (11, "agraph (float[2,3,4] x) => (float[2,3,4] y) { y = Hardmax<axis = -1>(x) }"),
    (10, "agraph (float[2,3,4] x) => (float[2,3,6] y) { y = Pad<pads = [0,0,1,0,0,1], value = 1.5>(x) }"),
    (10, "agraph (float[2,3,4] x) => (float[2,3,4] y) { y = Clip<max = 0.5>(x) }"),
    (9, "agraph (float[2,3,4] x) => (float[2,2,4] y) { y = Slice<axes = [1], starts = [0], ends = [2]>(x) }"),
    (9, "agraph (float[2,3,4] x) => (float[2,3,2] y, int64[2,3,2] i) { y, i = TopK<k = 2>(x) }"),
    (12, "agraph (float[2,3,4] x) => (float[2,3,1] y, float[2,3,3] z) { y, z = Split<axis = 2, split = [1,3]>(x) }"),
    (12, "agraph (float[2,1,4] x) => (float[2,4] y) { y = Squeeze<axes = [1]>(x) }"),
    (12, "agraph (float[2,3,4] x) => (float[2,1,4] y) { y = ReduceSum<axes = [1]>(x) }"),
    (17, "agraph (float[2,3,4] x) => (float[2,4] y) { y = ReduceMax<axes = [1], keepdims = 0>(x) }"),
    (11, "agraph (float[2,3] x) => (float[2,3] y) { y = Dropout<ratio = 0.3>(x) }"),
    (8, "agraph (float[2,2,3] x) => (float[2,2,3] y) <float[2] s = {1,2}, float[2] v = {1,4}>"
        "{ y = BatchNormalization(x, s, s, s, v) }"),
    (16, "agraph (float[1,1,4,4] x, float[1,2,2,2] g) => (float[1,1,2,2] y) { y = GridSample(x, g) }"),
    (18, "agraph (float[2,4,4] x) => (float[2,4,4] y) <float[2] s = {1,2}, float[2] b = {0,1}>"
         "{ y = GroupNormalization<num_groups = 2>(x, s, b) }"),
    (9, "agraph (float[3,1,2] x, float[1,8,2] w, float[1,8,2] r) => (float[3,1,1,2] y)"
        "{ y = LSTM<hidden_size = 2>(x, w, r) }"),
    (9, "agraph (float[2,3] x, bool b) => (float[3] y) { y = If(b) <"
        "then_branch = g1 () => (float[3] p) { t = ReduceSum<axes = [0]>(x)\n p = Squeeze<axes = [0]>(t) },"
        "else_branch = g2 () => (float[3] q) { u = ReduceMean<axes = [0], keepdims = 0>(x)\n q = Softmax<axis = 0>(u) }"
        "> }"),
    (12, "agraph (float[2,3] x) => (float[2,3] y) <int64 n = {3}, bool c = {1}> { y = Loop(n, c, x) <"
         "body = g (int64 i, bool go, float[2,3] s) => (bool on, float[2,3] out) "
         "{ on = Identity(go)\n u = Unsqueeze<axes = [0]>(s)\n w = Squeeze<axes = [0]>(u)\n out = Add(w, x) }> }"),
    (24, "agraph (float[2,3] x) => (float[2,3] y) { y = Cast<to = 1>(x) }"),
    (26, "agraph (float[2,3] x) => (float[3,2] y) { y = Transpose(x) }"),
]  # fmt: skip


@pytest.mark.parametrize(("opset", "text"), OLD)
def test_other_opsets_mean_the_same(tmp_path, opset, text):
    path = write(tmp_path / "m.onnx", opset, text)

    model = load(path)

    assert model.opset_imports[""] == CANONICAL_OPSET
    feeds = random_inputs(model)
    assert compare(original(path, feeds), run_reference(model, feeds)).max_rel < 1e-6


@pytest.mark.parametrize("opset", [7, 11, 16, 18])
@pytest.mark.parametrize(
    ("op_type", "becomes"),
    [("LayerNormalization", "LayerNormalization"), ("SimplifiedLayerNormalization", "RMSNormalization")],
)
def test_normalizations_that_onnx_runtime_writes_into_any_opset(tmp_path, opset, op_type, becomes):
    scale = "<float[4] s = {1, 2, 3, -1}>"
    text = (
        f"agraph (float[2,4] x) => (float[2,4] y) {scale} {{ a = Relu(x)\n y = {op_type}<axis = -1>(a, s) }}"
    )
    path = write(tmp_path / "m.onnx", opset, text)
    model = load(path)
    assert [node.op_type for node in model.graph] == ["Relu", becomes]
    assert model.opset_imports == {"": CANONICAL_OPSET}
    feeds = random_inputs(model)
    assert compare(original(path, feeds), run_reference(model, feeds)).max_rel < 1e-6


def test_slopes_per_channel_of_the_first_opsets(tmp_path):
    text = "agraph (float[1,3,3] x) => (float[1,3,3] y) <float[3] s = {1, 2, 3}> { y = PRelu(x, s) }"
    model = load(write(tmp_path / "m.onnx", 6, text))
    y = run_reference(model, {"x": -np.ones((1, 3, 3), np.float32)})["y"]
    np.testing.assert_array_equal(y[0], -np.array([[1] * 3, [2] * 3, [3] * 3], np.float32))


def test_weights_are_no_inputs(tmp_path):
    text = "agraph (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }"
    proto = onnx.load(write(tmp_path / "m.onnx", 9, text, ir_version=3))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
    onnx.save(proto, tmp_path / "m.onnx")

    model = load(tmp_path / "m.onnx")
    save(model, tmp_path / "again.onnx")

    assert [value.name for value in model.graph.inputs] == ["x"]
    onnx.checker.check_model(str(tmp_path / "again.onnx"), full_check=True)


def test_an_input_that_is_an_output_keeps_its_shape(tmp_path):
    text = "agraph (float[2,N] x) => (float[2,N] x, float[2,N] y) { y = Relu(x) }"
    proto = onnx.load(write(tmp_path / "m.onnx", 21, text))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, tmp_path / "m.onnx")

    model = load(tmp_path / "m.onnx")

    assert str(model.graph.inputs[0].shape) == "[2,N]"
    assert [value.name for value in model.graph.outputs] == ["x", "y"]


def test_functions_bodies_and_metadata_stay(tmp_path):
    text = """agraph (bool c, float[2] x) => (float[2] y) {
            [choose] y = If(c) <
                then_branch = t () => (float[2] p) { p = local.twice(x) },
                else_branch = e () => (float[2] q) { q = Neg(x) }
            >
        }
        <domain: "local", opset_import: ["" : 20]>
        twice (a) => (b) { b = Add(a, a) }"""
    proto = onnx.load(write(tmp_path / "m.onnx", 20, text, imports=', "local" : 1'))
    proto.graph.node[0].metadata_props.add(key="note", value="kept")
    onnx.save(proto, tmp_path / "m.onnx")

    model = load(tmp_path / "m.onnx", name="renamed")

    assert model.graph.name == "renamed"
    (function,) = model.functions.values()
    assert [node.name for node in function] == ["Add_0"]
    assert function.opset_imports[""] == CANONICAL_OPSET
    assert model.graph[0].metadata_props["note"] == "kept"
    feeds = {"c": np.array(True), "x": np.ones(2, np.float32)}
    assert run_reference(model, feeds)["y"].tolist() == [2, 2]


def test_names_are_unique_over_the_whole_model(tmp_path):
    text = """agraph (bool c, float[2] x) => (float[2] y) {
        [same] a = Neg(x)
        [same] b = Neg(a)
        y = If(c) <
            then_branch = t () => (float[2] p) { [same] p = Neg(b) },
            else_branch = e () => (float[2] q) { q = Neg(x) }
        >
    }"""
    model = load(write(tmp_path / "m.onnx", CANONICAL_OPSET, text))
    names = [node.name for graph in model.graphs() for node in graph]
    assert sorted(names) == ["If_0", "Neg_0", "same", "same_0", "same_1"]


def test_nodes_out_of_order_are_sorted(tmp_path):
    proto = onnx.load(
        write(tmp_path / "m.onnx", 13, "agraph (float[2] x) => (float[2] y) { t = Neg(x)\n y = Abs(t) }")
    )
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert [node.op_type for node in load(tmp_path / "m.onnx").graph] == ["Neg", "Abs"]


def test_unknown_files(tmp_path):
    good = write(
        tmp_path / "good.onnx", 13, "agraph (float[2] x) => (float[2] y) { y = Neg(x) }"
    ).read_bytes()
    cases = {
        "missing.onnx": (None, "there is no file"),
        "empty.onnx": (b"", "is empty"),
        "cut.onnx": (good[: len(good) // 2], "not an ONNX model, or it is truncated"),
        "text.onnx": (b"once upon a time", "not an ONNX model"),
        "no_graph.onnx": (onnx.ModelProto(ir_version=8).SerializeToString(), "holds no graph"),
        "no_opset.onnx": (
            onnx.ModelProto(ir_version=8, graph=onnx.GraphProto(name="g")).SerializeToString(),
            "imports no operator set",
        ),
        "cut.pt2": (b"PK\x03\x04 and no more", "not an exported torch program"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=message) as caught:
            load(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
    with pytest.raises(ModelError, match="is a folder"):
        load(tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_bytes_never_end_in_a_traceback(tmp_path, seed, capfd):
    generator = random.Random(seed)
    original_bytes = LIGHT[6].read_bytes()
    for _ in range(25):
        data = bytearray(original_bytes)
        for _ in range(generator.choice([1, 2, 5])):
            data[generator.randrange(len(data))] = generator.randrange(256)
        (tmp_path / "m.onnx").write_bytes(data)
        try:
            load(tmp_path / "m.onnx")
        except GraphwrightError as error:
            assert str(error).isprintable()
    assert capfd.readouterr() == ("", "")


def test_names_that_are_no_text(tmp_path):
    data = write(
        tmp_path / "m.onnx", 13, "agraph (float[2] x) => (float[2] y) { [name] y = Neg(x) }"
    ).read_bytes()
    (tmp_path / "m.onnx").write_bytes(data.replace(b"Neg", b"N\xffg"))
    with pytest.raises(ModelError, match="is not valid text; the file is damaged"):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize("kept", range(1, 12))
def test_any_truncation_is_an_error(tmp_path, kept):
    data = LIGHT[4].read_bytes()
    (tmp_path / "m.onnx").write_bytes(data[: len(data) * kept // 12])
    with pytest.raises(GraphwrightError):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("opset", "text", "message"),
    [
        (13, "agraph (float[2] x) => (float[2] y) { [odd] y = Nonsense(x) }", r"node 'odd' \(Nonsense\): unknown operator"),
        (13, "agraph (float[2] x) => (float[2] y) { [odd] y = house.Nonsense(x) }",
         "node 'odd' uses the unknown operator house.Nonsense"),
        (13, "agraph (float[2] x) => (float[2] y) { [odd] y = com.microsoft.Nonsense(x) }",
         "node 'odd' uses the unknown operator com.microsoft.Nonsense"),
        (18, "agraph (float[2,C,4] x) => (float[2,C,4] y) <float[2] s = {1,2}>"
             "{ [norm] y = GroupNormalization<num_groups = 2>(x, s, s) }", "'norm'.*number of channels is unknown"),
        (5, "agraph (float[2] x) => (float[2] y) { y = Cast<to = \"FLOAT\">(x) }", "from opset 5 to 23: .*Cast"),
        (28, "agraph (float[2,4] x) => (float[2,4] y) { [new] y = Swish(x) }", r"node 'new' \(Swish\) needs opset 28"),
    ],
)  # fmt: skip
def test_operators_that_nobody_knows(tmp_path, opset, text, message, capfd):
    path = write(tmp_path / "m.onnx", opset, text, imports=', "house" : 1, "com.microsoft" : 1')
    with pytest.raises(GraphwrightError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_operators_of_the_runtime_are_known(tmp_path):
    text = "agraph (float[2] x) => (float[2] y) { y = com.microsoft.Gelu(x) }"
    model = load(write(tmp_path / "m.onnx", 13, text, imports=', "com.microsoft" : 1'))
    assert model.graph[0].domain == "com.microsoft"


def test_a_cycle_is_one_line(tmp_path):
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], "first"),
        helper.make_node("Neg", ["a"], ["b"], "second"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [2])], [value("b", TensorProto.FLOAT, [2])]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)])
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(VerifyError, match="cycle"):
        load(tmp_path / "m.onnx")


def with_initializer(path: Path, tensor: TensorProto) -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"], "copy")],
        "g",
        [],
        [value("y", tensor.data_type, None)],
        [tensor],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"dims": [4], "raw_data": bytes(12)},
            r"'w' of shape \[4\] \(FLOAT\) needs 16 bytes, the file holds 12",
        ),
        ({"dims": [4], "float_data": [1.0]}, "needs 4 numbers, the file holds 1"),
        ({"dims": [4]}, "needs 4 numbers, the file holds 0"),
        (
            {"dims": [1], "data_type": TensorProto.INT64, "float_data": [1.0]},
            "needs 1 numbers, the file holds 0",
        ),
        ({"dims": [-1], "raw_data": bytes(4)}, "negative dimension"),
        ({"dims": [2**40, 2**40], "raw_data": bytes(4)}, "the file holds 4"),
        ({"dims": [1], "raw_data": bytes(4), "data_type": 99}, "unknown type 99"),
        (
            {"dims": [1], "raw_data": bytes(4), "data_type": TensorProto.STRING},
            "strings cannot be stored as raw",
        ),
    ],
)
def test_contradicting_tensors(tmp_path, fields, message):
    tensor = TensorProto(**{"name": "w", "data_type": TensorProto.FLOAT, **fields})
    with pytest.raises(ModelError, match=message):
        load(with_initializer(tmp_path / "m.onnx", tensor))


@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        (TensorProto.FLOAT16, np.arange(3, dtype=np.float16)),
        (TensorProto.INT64, np.arange(3)),
        (TensorProto.BOOL, np.array([True, False, True])),
        (TensorProto.COMPLEX64, np.array([1j, 2, 3], np.complex64)),
        (TensorProto.INT4, np.array([1, -2, 3], np.int8)),
    ],
)
def test_typed_fields_are_read(tmp_path, dtype, array):
    tensor = helper.make_tensor("w", dtype, [3], array)
    assert not tensor.HasField("raw_data")
    model = load(with_initializer(tmp_path / "m.onnx", tensor))
    stored = model.graph.initializers["w"].const_value.numpy()
    np.testing.assert_array_equal(stored.astype(np.complex64), array.astype(np.complex64))


def external(path: Path, *, location: str, shape=(4,), **entries: object) -> Path:
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL
    )
    for key, text in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(text))
    return with_initializer(path, tensor)


def test_external_data_is_mapped(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"\0" * 3 + struct.pack("<4f", 1, 2, 3, 4))
    model = load(external(tmp_path / "m.onnx", location="sub/w.bin", offset=3, length=16))
    stored = model.graph.initializers["w"].const_value.numpy()
    base = stored
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    assert run_reference(model, {})["y"].tolist() == [1, 2, 3, 4]


def test_external_data_needs_the_model_only_by_folder(tmp_path, monkeypatch):
    (tmp_path / "w.bin").write_bytes(struct.pack("<4f", 1, 2, 3, 4))
    external(tmp_path / "m.onnx", location="w.bin")
    monkeypatch.chdir(tmp_path)
    model = load("m.onnx")
    monkeypatch.chdir("/")
    assert run_reference(model, {})["y"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../secret.bin"}, "outside the model's folder"),
        ({"location": "sub/../../secret.bin"}, "outside the model's folder"),
        ({"location": "/etc/passwd"}, "outside the model's folder"),
        ({"location": "link.bin"}, "leads outside the model's folder"),
        ({"location": "linked/secret.bin"}, "leads outside the model's folder"),
        ({"location": ""}, "without a file name"),
        ({"location": "gone.bin"}, "does not exist"),
        ({"location": "."}, "does not exist"),
        ({"location": "w.bin", "offset": 4}, "needs bytes 4 to 20 of 'w.bin', which has only 16"),
        ({"location": "w.bin", "shape": (5,)}, "needs bytes 0 to 20"),
        ({"location": "w.bin", "length": 8}, "needs 16 bytes, its external data is declared with 8"),
        ({"location": "w.bin", "shape": (2**40, 2**20)}, "which has only 16"),
        ({"location": "w.bin", "offset": -4}, "offset '-4'"),
        ({"location": "w.bin", "offset": "zero"}, "offset 'zero'"),
    ],
)
def test_external_data_is_contained_and_complete(tmp_path, entries, message):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    (folder / "w.bin").write_bytes(bytes(16))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "linked").symlink_to(tmp_path)
    with pytest.raises(ModelError, match=message):
        load(external(folder / "m.onnx", **entries))


def test_external_data_in_bodies_and_attributes_is_checked_too(tmp_path):
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret.bin")
    node = helper.make_node("Constant", [], ["p"], value=tensor)
    value = helper.make_tensor_value_info
    body = helper.make_graph([node], "body", [], [value("p", TensorProto.FLOAT, [4])])
    choose = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    graph = helper.make_graph(
        [choose], "g", [value("c", TensorProto.BOOL, [])], [value("y", TensorProto.FLOAT, [4])]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder"):
        load(tmp_path / "m.onnx")


def test_sparse_initializers_are_refused(tmp_path):
    proto = onnx.load(write(tmp_path / "m.onnx", 23, "agraph (float[2] x) => (float[2] y) { y = Neg(x) }"))
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0]),
            helper.make_tensor("i", TensorProto.INT64, [1], [0]),
            [4],
        )
    )
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="initializer 's' is sparse"):
        load(tmp_path / "m.onnx")


PLUGIN = """
import onnx_ir as ir
import torch

class Net(torch.nn.Module):
    def forward(self, x, *, scale=None):
        return x * 2 if scale is None else x * scale

def one():
    return Net(), (torch.ones(2, 3),)

def named():
    return Net(), {"x": torch.ones(2, 3), "scale": torch.full((3,), 4.0)}, {"x": {0: "N"}, "scale": None}

def graph():
    return ir.from_onnx_text('<ir_version: 11, opset_import: ["" : 23]> g (float[2] x) => (float[2] y) { y = Neg(x) }')

def nothing():
    return None

def no_inputs():
    return Net(), 7

def broken():
    raise ValueError("no weights here")

number = 7
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    name = f"plugin_{os.getpid()}_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    return name


def test_callables_give_models_and_inputs(plugin):
    loaded = load_any(f"{plugin}:one")
    assert loaded.model.graph.name == "one"
    assert {key: array.shape for key, array in loaded.example_inputs.items()} == {"x": (2, 3)}
    assert run_reference(loaded.model, loaded.example_inputs)["output"].tolist() == [[2, 2, 2]] * 2
    named = load_any(f"{plugin}:named")
    assert str(named.model.graph.inputs[0].shape) == "[N,3]"
    assert run_reference(named.model, named.example_inputs)["output"].tolist() == [[4, 4, 4]] * 2
    assert load_any(f"{plugin}:graph").example_inputs is None
    assert load_any(f"./{plugin}.py:graph").model.graph.name == "g"
    assert load_any(f"{plugin}:graph").source == f"{plugin}:graph"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "returned a NoneType; it must return"),
        ("no_inputs", "returned a int as example inputs"),
        ("broken", "failed: ValueError: no weights here"),
        ("number", "is not callable"),
        ("absent", "has no 'absent'"),
    ],
)
def test_callables_that_give_no_model(plugin, name, message):
    with pytest.raises(ModelError, match=message):
        load_any(f"{plugin}:{name}")


def test_modules_that_are_not_there():
    with pytest.raises(ModelError, match="no module named 'no_such_house'"):
        load_any("no_such_house.models:net")
    for name in ("no/such.onnx", "no/such.py:net"):
        with pytest.raises(ModelError, match="there is no file"):
            load_any(name)


def test_files_come_without_example_inputs(tmp_path):
    path = write(tmp_path / "m.onnx", 13, "agraph (float[2] x) => (float[2] y) { y = Neg(x) }")
    loaded = load_any(path)
    assert loaded.example_inputs is None
    assert isinstance(loaded.model, ir.Model)
