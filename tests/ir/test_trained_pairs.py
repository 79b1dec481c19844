"""Quantized models that torch trains: they come back as pairs, of any grid, and compile to integer kernels."""

import graphwright as gw
import numpy as np
import onnx_ir as ir
import pytest
import torch
from graphwright.ir.fake_quantize import GRIDS, restore_pairs
from graphwright.ir.reference import run_reference


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(16)
        self.grouped = torch.nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.hidden = torch.nn.Linear(256, 64)
        self.last = torch.nn.Linear(64, 10)

    def forward(self, x):
        y = self.norm(self.first(x)).relu()
        y = torch.nn.functional.max_pool2d((y + self.grouped(y)).relu(), 2)
        return self.last(torch.nn.functional.gelu(self.hidden(y.flatten(1))))


def trained(pipeline, steps=4):
    """The model after some steps of training on its grids, the module, and an input."""
    torch.manual_seed(0)
    x, target = torch.randn(4, 3, 8, 8), torch.randn(4, 10)
    model = gw.trace(Network().eval(), (x,))
    model = gw.optimize(model, f"simplify,fold-batch-norm,{pipeline}", calibration=[{"x": x.numpy()}]).model
    student = gw.to_torch(model).train()
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    losses = []
    for _ in range(steps):
        loss = (student(x) - target).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    return model, gw.trace(student.eval(), (x,)), student, x.numpy()


FORMS = {
    "insert-qdq{target=x86-vnni}": (ir.DataType.INT8, "int8 conv2d"),
    "insert-qdq{target=tvm}": (ir.DataType.INT8, "int8 conv2d"),
    "insert-qdq{target=x86-vnni symmetric_weights=false}": (ir.DataType.UINT8, "int8 conv2d"),
    "insert-qdq{target=x86-vnni precision=a8w4}": (ir.DataType.INT4, "int8 conv2d"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_trained_model_compiles_to_integer_kernels(form, tmp_path):
    before, again, student, x = trained(form)
    dtype, note = FORMS[form]

    def stored(model):
        nodes = [node for node in model.graph if node.op_type == "DequantizeLinear"]
        return sorted(
            str(node.inputs[0].dtype) for node in nodes if node.inputs[0].dtype != ir.DataType.INT32
        )

    assert stored(again) == stored(before) and stored(again).count(str(dtype)) >= 4
    assert {"Round", "Div", "Cast", "Clip"}.isdisjoint(node.op_type for node in again.graph)
    (expected,) = run_reference(again, {"x": x}).values()
    np.testing.assert_allclose(student(torch.from_numpy(x)).detach(), expected, rtol=1e-4, atol=1e-5)

    made = gw.compile(again, target="x86")
    products = [kernel for kernel in made.report.kernels if kernel["flops"] > 5000]
    assert len([each for each in products if each["kind"] == "integer conv"]) == 2
    assert len([each for each in products if each["kind"] == "integer matmul"]) == 2
    assert not {each["kind"] for each in products} & {"conv", "gemm", "matmul", "integer weightmatmul"}
    assert any(each["note"].startswith(note) for each in products)
    # What is left of a step may flip the next one; the numbers are those of a few steps.
    np.testing.assert_allclose(made(x), expected, atol=0.02 * np.abs(expected).max())
    made.save(tmp_path / "artifact")
    weights = sum(p.numel() for name, p in student.named_parameters() if "weight" in name)
    share = 1.5 if dtype != ir.DataType.INT4 else 0.75
    share *= 2 if "symmetric_weights" in form else 1
    assert (tmp_path / "artifact" / "weights.bin").stat().st_size < share * weights + 4096


def test_folding_leaves_integers_in_the_file():
    _, again, _, _ = trained("insert-qdq{target=x86-vnni precision=a8w4}")
    folded = gw.optimize(again, "simplify").model
    held = [value for value in folded.graph.initializers.values() if value.dtype == ir.DataType.INT4]
    assert len(held) == 4
    floats = [value for value in folded.graph.initializers.values() if value.dtype == ir.DataType.FLOAT]
    assert max(value.const_value.size for value in floats) <= 64


@pytest.mark.parametrize("precision", ["a16w8", "a16w16"])
def test_grids_of_16_bits_come_back_as_pairs(precision):
    before, again, student, x = trained(f"insert-qdq{{target=x86-vnni precision={precision}}}", steps=2)
    kinds = [
        {str(node.outputs[0].dtype) for node in model.graph if node.op_type == "QuantizeLinear"}
        for model in (before, again)
    ]
    assert kinds[0] <= kinds[1] and kinds[1] <= kinds[0] | {"INT8", "INT16"}
    (expected,) = run_reference(again, {"x": x}).values()
    np.testing.assert_allclose(student(torch.from_numpy(x)).detach(), expected, rtol=1e-3, atol=1e-3)


def test_blocks_come_back_as_blocks():
    _, again, student, x = trained("quantize-weights{form=int4 block=32 only=Gemm}", steps=2)
    blocked = [node for node in again.graph if node.attributes.get_int("block_size", 0)]
    assert len(blocked) >= 2 and {node.op_type for node in blocked} == {"QuantizeLinear", "DequantizeLinear"}
    (expected,) = run_reference(again, {"x": x}).values()
    np.testing.assert_allclose(student(torch.from_numpy(x)).detach(), expected, rtol=1e-4, atol=1e-5)
    made = gw.compile(again, target="x86")
    notes = [kernel["note"] for kernel in made.report.kernels if kernel["kind"] == "integer weightmatmul"]
    assert any("int4" in note for note in notes), notes
    np.testing.assert_allclose(made(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("grid", sorted(GRIDS))
@pytest.mark.parametrize("zero", [None, "constant", "computed"])
def test_every_grid_becomes_a_pair_of_its_type(grid, zero):
    low, high = grid
    bits = {4: 2, 16: 4, 256: 8, 65536: 16}[high - low + 1]
    x = ir.Value(name="x", shape=ir.Shape([2, 8]), type=ir.TensorType(ir.DataType.FLOAT))
    point = 1 if low == 0 else -1
    scale = ir.node("Constant", [], {"value": ir.tensor(np.array([0.5, 0.25], np.float32), name="s")})
    zeros = ir.node("Constant", [], {"value": ir.tensor(np.full(2, point, np.int32), name="z")})
    nodes, operands = [scale], [x, scale.outputs[0]]
    for made in [*nodes, zeros]:
        made.outputs[0].shape = ir.Shape([2])
    zeros.outputs[0].type = ir.TensorType(ir.DataType.INT32)
    zeros.outputs[0].name, scale.outputs[0].name = "zero", "scale"
    if zero is not None:
        nodes.append(zeros)
        operands.append(zeros.outputs[0])
    if zero == "computed":
        nodes.append(ir.node("Add", [zeros.outputs[0], zeros.outputs[0]], {}))
        operands[-1] = nodes[-1].outputs[0]
        operands[-1].name, operands[-1].type = "twice", zeros.outputs[0].type
    node = ir.node(
        "FakeQuantize", operands, {"low": low, "high": high, "axis": 0, "block_size": 0}, domain="graphwright"
    )
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = "y", x.shape, x.type
    graph = ir.Graph(
        [x], [node.outputs[0]], nodes=[*nodes, node], opset_imports={"": 23, "graphwright": 1}, name="g"
    )
    model = ir.Model(graph, ir_version=10)
    restore_pairs(model)
    assert [each.op_type for each in graph][-2:] == ["QuantizeLinear", "DequantizeLinear"]
    assert graph.outputs[0].name == "y" and "graphwright" not in graph.opset_imports
    integers = graph[-1].inputs[0]
    assert str(integers.dtype) == f"{'U' if low == 0 else ''}INT{bits}"
    if bits == 2:
        # The reference does not have these yet.
        return
    array = np.random.default_rng(0).uniform(-9, 9, (2, 8)).astype(np.float32)
    offset = 0 if zero is None else point if zero == "constant" else 2 * point
    scales = np.array([[0.5], [0.25]], np.float32)
    expected = (np.clip(np.rint(array / scales) + offset, low, high) - offset) * scales
    np.testing.assert_array_equal(run_reference(model, {"x": array})["y"], expected)
