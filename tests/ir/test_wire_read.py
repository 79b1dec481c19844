"""The reader of ordinary messages gives what the library gives, and leaves the rest to it."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphwright.ir.errors import ModelError
from graphwright.ir.load import load
from graphwright.ir.stored import TensorReader
from graphwright.ir.wire_read import read_model

LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))
HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'
ORDINARY = {
    "attributes": "agraph (float[b,2,3] x) => (float[b,3,2] y)"
    "{ t = Transpose<perm = [0,2,1]>(x) u = LeakyRelu<alpha = 0.5>(t) y = Gelu<approximate = \"tanh\">(u) }",
    "constant": "agraph (float[2] x) => (float[2] y) { c = Constant<value = float[2] {1,2}>() y = Add(x, c) }",
    "left_out": "agraph (float[?,2] x) => (float[?,2] y) <float m = {0.5}> { y = Clip(x, , m) }",
    "bodies": "agraph (bool c, float[2] x) => (float[2] y) <float[2] w = {1,2}> {"
    "y = If (c) <then_branch = g () => (float[2] a) { a = Add(x, w) },"
    "else_branch = h () => (float[2] d) <float[2] v = {3,4}> { d = Mul(x, v) }> }",
    "sequences": "agraph (seq(float[2]) s, int64 i) => (float[2] y) { y = SequenceAt(s, i) }",
    "inputs_as_weights": "agraph (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1,2}> { y = Add(x, w) }",
}  # fmt: skip


def parsed(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEADER + text)


def load_plainly(proto: onnx.ModelProto) -> ir.Model:
    model = ir.from_proto(proto)
    TensorReader(Path(), {}).read_all(model)
    return model


def reader(folder: Path) -> TensorReader:
    return TensorReader(folder, {})


def test_it_reads_what_the_library_reads(tmp_path):
    protos = {name: parsed(text) for name, text in ORDINARY.items()}
    protos |= {path.stem: onnx.load(path) for path in LIGHT}
    assert protos

    for name, proto in protos.items():
        model = read_model(proto, reader(tmp_path))

        assert model is not None, name
        # The parser stores numbers as a list, the reader as bytes.
        expected = ir.to_proto(load_plainly(proto))
        assert ir.to_proto(model) == expected, name


def test_tensors_outlive_the_message(tmp_path):
    proto = parsed(ORDINARY["constant"])
    model = read_model(proto, reader(tmp_path))
    assert model is not None
    proto.Clear()

    tensor = next(iter(model.graph)).attributes["value"].as_tensor()

    np.testing.assert_array_equal(tensor.numpy(), np.array([1, 2], np.float32))


def test_values_do_not_share_what_can_be_changed(tmp_path):
    model = read_model(parsed(ORDINARY["attributes"]), reader(tmp_path))
    assert model is not None
    (x,), (y,) = model.graph.inputs, model.graph.outputs

    y.dtype = ir.DataType.DOUBLE

    assert x.dtype == ir.DataType.FLOAT
    assert x.shape is not None
    assert x.shape.frozen


def _function(proto):
    proto.functions.add(name="f", domain="d", opset_import=proto.opset_import)


def _annotation(proto):
    proto.graph.quantization_annotation.add(tensor_name="c")


def _unknown_input(proto):
    proto.graph.node[1].input[0] = "nobody"


def _made_twice(proto):
    proto.graph.node[1].output[0] = "c"


def _short_tensor(proto):
    proto.graph.node[0].attribute[0].t.dims[0] = 1 << 40


def _two_contents(proto):
    proto.graph.node[0].attribute[0].g.name = "both"


def _no_text(proto):
    proto.graph.node[1].op_type = "Add"
    data = proto.SerializeToString().replace(b"Add", b"\xff\xfe\xfd")
    proto.ParseFromString(data)


def _version(proto):
    proto.opset_import[0].version = -1


RARE = [
    _function,
    _annotation,
    _unknown_input,
    _made_twice,
    _short_tensor,
    _two_contents,
    _no_text,
    _version,
]


@pytest.mark.parametrize("change", RARE)
def test_rare_and_damaged_messages_are_left_to_others(tmp_path, change):
    proto = parsed(ORDINARY["constant"])
    assert read_model(proto, reader(tmp_path)) is not None

    change(proto)

    assert read_model(proto, reader(tmp_path)) is None


def test_a_huge_tensor_is_refused_in_the_words_of_the_check(tmp_path):
    proto = parsed(ORDINARY["constant"])
    _short_tensor(proto)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())

    with pytest.raises(ModelError, match="needs 1099511627776 numbers"):
        load(path)
