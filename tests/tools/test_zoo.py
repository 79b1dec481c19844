from __future__ import annotations

import numpy as np
import pytest
from graphwright.ir.account import account
from graphwright.ir.errors import ToolError
from graphwright.ir.inputs import random_inputs
from graphwright.ir.load import load_any
from graphwright.ir.reference import run_reference
from graphwright.tools import zoo


def output_of(model, seed: int) -> np.ndarray:
    return next(iter(run_reference(model, random_inputs(model, seed=seed)).values()))


@pytest.mark.parametrize("name", ["light_squeezenet", "light_shufflenet", "light_inception_v1"])
def test_light_models_compute_something(name):
    model = zoo.light_model(name)
    assert not [node for node in model.graph if node.op_type == "ConstantOfShape"]
    first, second = output_of(model, 0), output_of(model, 1)
    assert np.isfinite(first).all()
    assert np.count_nonzero(first) == first.size
    assert np.unique(first).size > 0.8 * first.size
    assert first.max() > 5 * first.mean()
    assert np.abs(first - second).max() > 1e-3 * first.max()


def test_light_models_are_the_same_every_time():
    one, other = zoo.light_model("light_squeezenet"), zoo.light_model("light_squeezenet")
    for name, value in one.graph.initializers.items():
        np.testing.assert_array_equal(
            value.const_value.numpy(), other.graph.initializers[name].const_value.numpy()
        )
    assert not np.array_equal(output_of(one, 0), output_of(zoo.light_model("light_squeezenet", seed=1), 0))


def test_batch_norms_of_light_models_have_positive_variance():
    model = zoo.light_model("light_shufflenet")
    variances = [node.inputs[4] for node in model.graph if node.op_type == "BatchNormalization"]
    assert len(variances) == 49
    assert min(float(value.const_value.numpy().min()) for value in variances) > 0


@pytest.mark.parametrize("name", zoo.SMALL_NAMES)
def test_small_torch_models_trace_and_agree_with_torch(name):
    import torch

    module, example = getattr(zoo, name)()
    model = zoo.zoo_model(name)
    names = [value.name for value in model.graph.inputs]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, example, strict=True)}
    with torch.no_grad():
        expected = module(*example).numpy()
    actual = next(iter(run_reference(model, feeds).values()))
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()
    assert expected.std() > 0.1


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet18", 11.689512), ("resnet50", 25.557032), ("mobilenet_v2", 3.504872), ("vit_s16", 22.050664)],
)
def test_full_size_models_have_the_published_number_of_parameters(name, millions):
    module, _ = getattr(zoo, name)()
    assert sum(parameter.numel() for parameter in module.parameters()) == round(millions * 1e6)


def test_randomized_batch_norms_keep_activations_alive_and_are_worth_folding():
    import torch

    module, example = zoo.resnet50_small()
    norms = [child for child in module.modules() if isinstance(child, torch.nn.BatchNorm2d)]
    assert all(float(norm.running_var.min()) > 0 for norm in norms)
    assert all(float((norm.running_mean / norm.running_var.sqrt()).abs().max()) > 0.05 for norm in norms)
    with torch.no_grad():
        deviation = module(*example).std()
    assert 0.1 < float(deviation) < 10


def test_zoo_models_are_callables_for_the_command_line():
    loaded = load_any("graphwright.tools.zoo:mobilenet_v2_small")
    assert account(loaded.model).parameters == 258826
    assert loaded.example_inputs is not None


def test_light_models_are_callables_for_the_command_line():
    loaded = load_any("graphwright.tools.zoo:light_squeezenet")
    assert account(loaded.model).macs == account(zoo.light_model("light_squeezenet")).macs


def test_unknown_models_are_named():
    with pytest.raises(ToolError, match="resnet19"):
        zoo.zoo_model("resnet19")
    with pytest.raises(ToolError, match="light_x"):
        zoo.light_model("light_x")
