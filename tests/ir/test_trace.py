"""From torch to the graph: same numbers, torch's names, nothing folded, clear refusals."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graphwright.ir.compare import compare
from graphwright.ir.errors import ModelError
from graphwright.ir.load import load, load_any
from graphwright.ir.provenance import module_classes, module_path, source_line
from graphwright.ir.reference import run_reference
from graphwright.ir.save import save
from graphwright.ir.trace import trace, trace_with_inputs
from graphwright.ir.verify import verify
from torch import nn


class Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)) + x)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.layer1 = nn.Sequential(Block(8), Block(8))
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.drop(self.layer1(self.stem(x)).mean((2, 3))))


def randomized(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.running_mean.normal_(generator=generator)
            each.running_var.uniform_(0.5, 2, generator=generator)
    return module


def expected(module: nn.Module, *args, **kwargs) -> np.ndarray:
    was_training = module.training
    with torch.no_grad():
        result = module.eval()(*args, **kwargs).numpy()
    module.train(was_training)
    return result


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, torch.Tensor, ir.Model]:
    torch.manual_seed(0)
    module, x = randomized(ResNet()), torch.randn(2, 3, 16, 16)
    return module, x, trace(module, x, dynamic_shapes={"x": {0: "batch"}})


def test_numbers_are_those_of_torch(resnet):
    module, x, model = resnet
    verify(model)
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 16, 16)
        result = run_reference(model, {"x": x.numpy()})
        assert compare(expected(module, x), result["output"]).max_rel < 1e-5


def test_signature_and_names(resnet):
    _, _, model = resnet
    assert model.graph.name == "ResNet"
    assert model.opset_imports[""] == 23
    assert [f"{v.name}{v.shape}" for v in model.graph.inputs] == ["x[batch,3,16,16]"]
    assert [f"{v.name}{v.shape}" for v in model.graph.outputs] == ["output[batch,4]"]
    assert {"stem.weight", "layer1.0.bn.running_var", "fc.bias"} <= model.graph.initializers.keys()
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names)


def test_nothing_is_folded(resnet):
    _, _, model = resnet
    op_types = [node.op_type for node in model.graph]
    assert op_types.count("BatchNormalization") == 2
    assert "Dropout" not in op_types


def test_provenance(resnet):
    _, _, model = resnet
    convs = [node for node in model.graph if node.op_type == "Conv"]
    assert [module_path(node) for node in convs] == ["stem", "layer1.0.conv", "layer1.1.conv"]
    assert module_classes(convs[1])[-1] == "torch.nn.modules.conv.Conv2d"
    adds = [node for node in model.graph if node.op_type == "Add" and module_path(node) == "layer1.1"]
    assert source_line(adds[0]).startswith(__file__ + ":")
    assert module_path(ir.node("Add", [])) is None
    assert source_line(ir.node("Add", [])) is None


def test_local_paths_are_not_saved(resnet, tmp_path):
    _, _, model = resnet
    save(model, tmp_path / "m.onnx")
    assert __file__.encode() not in (tmp_path / "m.onnx").read_bytes()
    again = load(tmp_path / "m.onnx")
    assert [module_path(n) for n in again.graph if n.op_type == "Conv"] == [
        "stem",
        "layer1.0.conv",
        "layer1.1.conv",
    ]
    assert all(source_line(node) is None for node in again.graph)


def test_weights_are_a_copy(resnet):
    module, _, model = resnet
    before = model.graph.initializers["fc.bias"].const_value.numpy().copy()
    with torch.no_grad():
        module.fc.bias += 1
    np.testing.assert_array_equal(model.graph.initializers["fc.bias"].const_value.numpy(), before)
    with torch.no_grad():
        module.fc.bias -= 1


class Many(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x, factor=1.0, *, mask=None, pair=None, flag=True):
        y = self.second(self.first(x)) * factor
        y = y + mask if mask is not None else y
        y = y + pair[0] * pair[1]["b"] if pair is not None else y
        return {"logits": y, "hidden": (y, None, x), "weight": self.first.weight}


@pytest.fixture(scope="module")
def many() -> tuple[nn.Module, dict, ir.Model, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    module = Many().train()
    module.second.eval()
    pair = (torch.randn(3, 4), {"b": torch.randn(4)})
    kwargs = {"flag": False, "pair": pair, "mask": torch.randn(3, 4)}
    shapes = {"x": {0: "rows"}, "factor": None, "flag": None, "mask": {0: "rows"}}
    shapes["pair"] = ({0: "rows"}, {"b": None})
    model, inputs = trace_with_inputs(
        module, (torch.randn(3, 4), 2.0), kwargs, dynamic_shapes=shapes, name="many"
    )
    return module, kwargs, model, inputs


def test_structured_inputs_and_outputs(many):
    module, kwargs, model, inputs = many
    verify(model)
    assert model.graph.name == "many"
    assert [value.name for value in model.graph.inputs] == list(inputs)
    assert str(model.graph.inputs[0].shape) == "[rows,4]"
    outputs = [value.name for value in model.graph.outputs]
    assert outputs == ["logits", "hidden_0", "hidden_2", "weight"]
    result = run_reference(model, inputs)
    with torch.no_grad():
        wanted = module(torch.from_numpy(inputs["x"]), 2.0, **kwargs)
    assert compare(wanted["logits"].numpy(), result["logits"]).max_rel < 1e-6
    np.testing.assert_array_equal(result["hidden_0"], result["logits"])
    np.testing.assert_array_equal(result["hidden_2"], inputs["x"])
    np.testing.assert_array_equal(result["weight"], module.first.weight.detach().numpy())


def test_tied_weights_stay_one(many):
    _, _, model, _ = many
    assert len(model.graph.initializers) == 1
    (weight,) = model.graph.initializers.values()
    assert len(weight.uses()) >= 3


def test_training_flags_are_restored(many):
    module, *_ = many
    assert module.training
    assert module.first.training
    assert not module.second.training


class Encoder(nn.Module):
    """A transformer encoder with an embedding, as a BERT has it."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids):
        return self.encoder(self.embedding(ids))


def test_a_transformer_with_dynamic_batch_and_length():
    torch.manual_seed(0)
    module = Encoder()
    model = trace(module, torch.randint(0, 50, (2, 7)), dynamic_shapes=({0: "batch", 1: "length"},))
    verify(model)
    assert str(model.graph.inputs[0].shape) == "[batch,length]"
    for shape in ((1, 3), (4, 9)):
        ids = torch.randint(0, 50, shape)
        result = run_reference(model, {"ids": ids.numpy()})
        assert compare(expected(module, ids), result["output"]).max_rel < 1e-5


def test_exported_programs_and_graph_modules(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    x = torch.randn(2, 3)
    program = torch.export.export(module.eval(), (x,))
    torch.export.save(program, tmp_path / "net.pt2")
    wanted = expected(module, x)

    loaded = load_any(tmp_path / "net.pt2")
    models = [
        trace(program),
        trace(torch.fx.symbolic_trace(module), x),
        trace(program.module(), (x,)),
        loaded.model,
    ]

    for model in models:
        (name,) = (value.name for value in model.graph.inputs)
        assert compare(wanted, run_reference(model, {name: x.numpy()})["output"]).max_rel < 1e-6
    assert loaded.model.graph.name == "net"
    np.testing.assert_array_equal(next(iter(loaded.example_inputs.values())), x.numpy())


class Clashing(nn.Module):
    def forward(self, output):
        return {"output": output + 1, "node": output}


def test_outputs_never_take_the_name_of_an_input():
    model = trace(Clashing(), torch.ones(2))
    verify(model)
    assert [value.name for value in model.graph.outputs] == ["output_out", "node"]
    result = run_reference(model, {"output": np.ones(2, np.float32)})
    assert (result["output_out"].tolist(), result["node"].tolist()) == ([2, 2], [1, 1])


class NamedLikeAResult(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([1.0, 2.0]))

    def forward(self, x):
        return (x - self.mean).mean() * x


def test_a_buffer_may_be_called_like_a_result():
    model = trace(NamedLikeAResult(), torch.ones(2))
    verify(model)
    assert list(model.graph.initializers) == ["mean"]
    result = run_reference(model, {"x": np.array([3, 6], np.float32)})
    np.testing.assert_allclose(result["output"], [9, 18])


def test_half_precision_weights():
    module = nn.Linear(3, 4).to(torch.bfloat16)
    model = trace(module, torch.ones(2, 3, dtype=torch.bfloat16))
    weight = model.graph.initializers["weight"].const_value
    assert weight.dtype == ir.DataType.BFLOAT16
    np.testing.assert_array_equal(weight.numpy().astype(np.float32), module.weight.detach().float().numpy())


class DataDependent(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Untranslatable(nn.Module):
    def forward(self, x):
        return torch.special.zeta(x, x)


class WithNumber(nn.Module):
    def forward(self, x):
        return -x, 3


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(2, 8)


@pytest.mark.parametrize(
    ("module", "args", "shapes", "message"),
    [
        (DataDependent(), torch.ones(3), None, r"cannot export DataDependent: .*\(at .*test_trace.py:\d+\)"),
        (Untranslatable(), torch.ones(3), None, "cannot translate the program: .*zeta"),
        (Fixed(), torch.ones(4, 4), {"x": {0: "rows"}}, "cannot export Fixed: "),
        (
            nn.ReLU(),
            torch.ones(1, 4),
            ({0: "batch"},),
            r"needs an example of 2 or more, .*\.shape\[0\] is 1$",
        ),
        (nn.Linear(2, 2), torch.ones(3), None, "cannot export Linear: "),
        (WithNumber(), torch.ones(3), None, "output 1 of the module is the constant 3"),
        (7, torch.ones(3), None, "cannot trace a int"),
    ],
)
def test_what_torch_cannot_export_is_one_line(module, args, shapes, message, capfd):
    with pytest.raises(ModelError, match=message) as caught:
        trace(module, args, dynamic_shapes=shapes)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_convolution_over_three_axes_needs_no_bias():
    """The exporter gives it zeros of a shape that no runtime accepts."""
    module = torch.nn.Sequential(torch.nn.Conv3d(3, 4, 3, bias=False), torch.nn.Conv3d(4, 2, 1)).eval()
    x = torch.randn(1, 3, 5, 6, 7)
    model = trace(module, (x,))
    assert [(node.op_type, len(node.inputs)) for node in model.graph] == [("Conv", 2), ("Conv", 3)]
    (result,) = run_reference(model, {"input": x.numpy()}).values()
    np.testing.assert_allclose(result, module(x).detach().numpy(), rtol=1e-4, atol=1e-5)


class FiveAxes(nn.Module):
    def forward(self, x, mask):
        return nn.functional.scaled_dot_product_attention(x, x * 2, x + 1, attn_mask=mask)


class Inverted(nn.Module):
    def forward(self, x, mask):
        return x * (1.0 - mask)


@pytest.mark.parametrize(
    ("module", "x", "mask"),
    [
        (FiveAxes(), torch.randn(1, 2, 3, 4, 8), torch.rand(4, 4) > 0.3),
        (FiveAxes(), torch.randn(1, 2, 3, 4, 8), torch.randn(4, 4)),
        (Inverted(), torch.randn(2, 3), torch.tensor([0, 1, 1])),
    ],
)
def test_what_the_exporter_knows_in_another_form(module, x, mask):
    model = trace(module, (x, mask))
    (result,) = run_reference(model, {"x": x.numpy(), "mask": mask.numpy()}).values()
    np.testing.assert_allclose(result, module(x, mask).numpy(), rtol=1e-4, atol=1e-5)
