"""`to_torch`: a module with the graph's numbers, the names of its weights, and gradients."""

import copy
import io

import graphwright as gw
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from graphwright.ir.errors import ModelError
from graphwright.ir.reference import run_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper


class Net(torch.nn.Module):
    """A convolution, batch normalization, attention over pixels, a tied embedding and a buffer."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
        )
        self.norm = torch.nn.LayerNorm(8)
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.words = torch.nn.Embedding(10, 8)
        self.head = torch.nn.Linear(8, 10, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("offset", torch.randn(8))

    def forward(self, image, word):
        x = self.stem(image).flatten(2).transpose(1, 2)
        x = (
            self.norm(x + self.attention(x, x, x, need_weights=False)[0])
            + self.words(word)[:, None]
            + self.offset
        )
        return self.head(x.mean(1))


INPUTS = (torch.randn(2, 3, 6, 6), torch.tensor([3, 7]))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    made = Net().eval()
    with torch.no_grad():
        made.stem[1].running_mean.uniform_(-1, 1)
        made.stem[1].running_var.uniform_(0.5, 2)
    return made


@pytest.fixture(scope="module")
def traced(net):
    return gw.trace(net, INPUTS)


@pytest.fixture(scope="module")
def dynamic(net):
    shapes = {"image": {0: "batch", 2: "height"}, "word": {0: "batch"}}
    return gw.trace(net, INPUTS, dynamic_shapes=shapes)


def test_parameters_and_buffers_keep_names_and_kinds(net, traced):
    module = gw.to_torch(traced)
    # Of tied weights there is one, under one of its names.
    expected = {name for name, _ in net.named_parameters()} - {"words.weight"} | {"head.weight"}
    assert {name for name, _ in module.named_parameters()} == expected
    assert {"offset", "stem.1.running_mean", "stem.1.running_var"} <= set(dict(module.named_buffers()))
    trained = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01)
    state = {name: tensor for name, tensor in trained.state_dict().items() if name != "words.weight"}
    module.load_state_dict({**module.state_dict(), **state})
    torch.testing.assert_close(module(*INPUTS), trained(*INPUTS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pipeline", ["", "simplify", "simplify,fold-batch-norm,fuse"])
def test_numbers_are_those_of_the_model(net, traced, pipeline):
    model = gw.optimize(traced, pipeline).model if pipeline else traced
    torch.testing.assert_close(gw.to_torch(model)(*INPUTS), net(*INPUTS), rtol=1e-4, atol=1e-5)


def test_layers_are_the_modules_that_torch_has(traced):
    module = gw.to_torch(traced)
    assert isinstance(module.get_submodule("stem.0"), torch.nn.Conv2d)
    assert isinstance(module.get_submodule("stem.1"), torch.nn.BatchNorm2d)
    assert isinstance(module.get_submodule("norm"), torch.nn.LayerNorm)
    assert not module.training


def test_batch_normalization_learns_its_statistics_in_training(net, traced):
    module = gw.to_torch(traced)
    before = module.get_submodule("stem.1").running_mean.clone()
    module(*INPUTS)
    assert torch.equal(module.get_submodule("stem.1").running_mean, before)
    module.train()
    module(*INPUTS)
    original = copy.deepcopy(net).train()
    original(*INPUTS)
    torch.testing.assert_close(module.get_submodule("stem.1").running_mean, original.stem[1].running_mean)


def test_gradients_reach_every_parameter_and_training_works(traced):
    module = gw.to_torch(traced).train()
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(module(*INPUTS), torch.tensor([1, 2]))
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in module.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_shared_weights_stay_one_parameter(traced):
    module = gw.to_torch(traced)
    assert sum(parameter.shape == (10, 8) for parameter in module.parameters()) == 1


def test_a_pruned_model_from_onnx_is_fine_tuned(tmp_path):
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)]
    x = torch.randn(2, 3, 8, 8)
    gw.save(gw.trace(torch.nn.Sequential(*layers), (x,)), tmp_path / "net.onnx")
    pruned = gw.optimize(gw.load(tmp_path / "net.onnx"), "prune-channels{ratio=0.5}").model
    module = gw.to_torch(pruned)
    expected = run_reference(pruned, {"input": x.numpy()})["output"]
    np.testing.assert_allclose(module(x).detach(), expected, rtol=1e-4, atol=1e-5)
    module.train()(x).sum().backward()
    assert module.get_submodule("0").weight.grad.shape == (4, 3, 3, 3)
    assert isinstance(module.get_submodule("1"), torch.nn.BatchNorm2d)


def test_traced_again_it_is_the_same_graph_with_the_same_names(traced):
    first = gw.optimize(traced, "simplify").model
    again = gw.optimize(gw.trace(gw.to_torch(first), INPUTS), "simplify").model
    count = [sorted(node.op_type for node in model.graph) for model in (first, again)]
    assert count[0] == count[1]
    assert "stem.0.weight" in again.graph.initializers
    convolution = next(node for node in again.graph if node.op_type == "Conv")
    from graphwright.ir.provenance import module_path

    assert module_path(convolution) == "stem.0"


def test_dynamic_shapes_survive_the_way_to_torch_and_back(net, dynamic):
    module = gw.to_torch(dynamic)
    other = torch.randn(5, 3, 9, 6), torch.randint(0, 10, (5,))
    torch.testing.assert_close(module(*other), net(*other), rtol=1e-4, atol=1e-5)
    again = gw.trace(module, INPUTS, dynamic_shapes=({0: "batch", 2: "height"}, {0: "batch"}))
    feeds = {value.name: each.numpy() for value, each in zip(again.graph.inputs, other, strict=True)}
    np.testing.assert_allclose(
        run_reference(again, feeds)["output"], net(*other).detach(), rtol=1e-4, atol=1e-5
    )


def test_sizes_never_become_tensors(dynamic):
    code = gw.to_torch(dynamic).code
    assert "hosts_shape" in code
    assert "from_tensor" not in code


def test_weights_are_copies(net, traced):
    module = gw.to_torch(traced)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    again = gw.to_torch(traced)
    torch.testing.assert_close(again(*INPUTS), net(*INPUTS), rtol=1e-4, atol=1e-5)


def test_the_module_can_be_saved_and_copied(traced):
    module = gw.to_torch(traced)
    stream = io.BytesIO()
    torch.save(module.state_dict(), stream)
    twin = copy.deepcopy(module)
    torch.testing.assert_close(twin(*INPUTS), module(*INPUTS))


@pytest.mark.parametrize("name", ["recurrent", "bidirectional"])
def test_recurrent_layers_keep_names_and_train(name):
    torch.manual_seed(0)
    layer = torch.nn.LSTM(4, 5, bidirectional=name == "bidirectional").eval()
    x = torch.randn(6, 2, 4)

    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = layer

        def forward(self, x):
            return self.lstm(x)[0]

    module = gw.to_torch(gw.trace(Last().eval(), (x,)))
    torch.testing.assert_close(module(x), layer(x)[0], rtol=1e-4, atol=1e-6)
    assert {name for name, _ in module.named_parameters()} == {
        f"lstm.{name}" for name, _ in layer.named_parameters()
    }
    module(x).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    again = gw.trace(module, (x,))
    feeds = {again.graph.inputs[0].name: x.numpy()}
    np.testing.assert_allclose(
        run_reference(again, feeds)["output"], layer(x)[0].detach(), rtol=1e-4, atol=1e-5
    )


# Quantized models -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantized():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(128, 5)]
    module = torch.nn.Sequential(*layers).eval()
    x = torch.randn(4, 3, 6, 6)
    pipeline = "simplify,insert-qdq"
    return gw.optimize(gw.trace(module, (x,)), pipeline, calibration=[{"input": x.numpy()}]).model, x


def test_quantized_models_compute_on_the_same_grid(quantized):
    model, x = quantized
    expected = run_reference(model, {"input": x.numpy()})["output"]
    np.testing.assert_allclose(gw.to_torch(model)(x).detach(), expected, rtol=1e-5, atol=1e-5)


def test_training_is_quantization_aware(quantized):
    model, x = quantized
    module = gw.to_torch(model).train()
    # Weights that were stored as integers are floats that training moves.
    weight = dict(module.named_parameters())["0.weight"]
    assert weight.dtype == torch.float32
    target = module(x).detach() * 0.5
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = (module(x) - target).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_a_trained_quantized_model_goes_back_as_pairs(quantized):
    model, x = quantized
    module = gw.to_torch(model)
    again = gw.trace(module, (x,))
    ops = [node.op_type for node in again.graph]
    assert ops.count("QuantizeLinear") == ops.count("DequantizeLinear") > 2
    feeds = {again.graph.inputs[0].name: x.numpy()}
    np.testing.assert_allclose(
        next(iter(run_reference(again, feeds).values())), module(x).detach(), rtol=1e-5, atol=1e-5
    )


def test_gradients_stop_where_the_grid_ends():
    from graphwright.ir.fx.quantized import fake_quantize

    x = torch.tensor([-9.0, 0.26, 0.9, 9.0], requires_grad=True)
    made = fake_quantize(x, torch.tensor(0.5), None, 0, 0, -8, 7, torch.int8)
    assert made.tolist() == [-4.0, 0.5, 1.0, 3.5]
    made.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


# Refusals -------------------------------------------------------------------------------------------------


def single(op_type, inputs, outputs=1, domain="", **attributes):
    """A model of one node over float inputs of these shapes."""
    values = [
        helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape) for i, shape in enumerate(inputs)
    ]
    names = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(
        op_type, [each.name for each in values], names, "the_node", domain=domain, **attributes
    )
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    opsets = [helper.make_opsetid("", 23), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return ir.from_proto(
        helper.make_model(helper.make_graph([node], "g", values, made), opset_imports=opsets)
    )


def test_an_operator_without_a_form_is_named():
    with pytest.raises(ModelError, match="'the_node' has no torch form: operator somewhere.Strange"):
        gw.to_torch(single("Strange", [[2]], domain="somewhere"))


def test_batch_normalization_in_training_mode_is_refused():
    model = single("BatchNormalization", [[2, 3, 4], [3], [3], [3], [3]], outputs=3, training_mode=1)
    with pytest.raises(ModelError, match="'the_node'.*training mode"):
        gw.to_torch(model)


def test_texts_are_refused():
    x = helper.make_tensor("x", TensorProto.STRING, [1], [b"a"])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g", [], [helper.make_tensor_value_info("y", TensorProto.STRING, [1])], [x]
    )  # fmt: skip
    with pytest.raises(ModelError, match="no tensors of type STRING"):
        gw.to_torch(ir.from_proto(helper.make_model(graph)))


# Properties -----------------------------------------------------------------------------------------------


def agrees(model: ir.Model, arrays: list[np.ndarray], tolerance=1e-4) -> None:
    feeds = {value.name: array for value, array in zip(model.graph.inputs, arrays, strict=True)}
    expected = run_reference(model, feeds)
    with torch.no_grad():
        found = gw.to_torch(model)(*map(torch.from_numpy, arrays))
    found = found if isinstance(found, tuple) else (found,)
    for name, made in zip(expected, found, strict=True):
        assert made.shape == expected[name].shape
        np.testing.assert_allclose(made, expected[name], rtol=tolerance, atol=tolerance)


@st.composite
def windows(draw):
    """Attributes of a convolution or pooling over 9 x 8 pixels."""
    kernel = [draw(st.integers(1, 3)) for _ in range(2)]
    dilations = [draw(st.integers(1, 2)) for _ in range(2)]
    pads = [draw(st.integers(0, size - 1)) for size in kernel * 2]
    return {
        "kernel_shape": kernel,
        "strides": [draw(st.integers(1, 3)) for _ in range(2)],
        "dilations": dilations,
        "pads": pads,
    }


@settings(max_examples=40, deadline=None)
@given(windows(), st.sampled_from(["MaxPool", "AveragePool"]), st.booleans(), st.booleans())
def test_poolings_of_any_window(window, kind, ceil, counted):
    more = {"count_include_pad": int(counted)} if kind == "AveragePool" else {}
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 8)).astype(np.float32)
    agrees(single(kind, [x.shape], ceil_mode=int(ceil), **window, **more), [x])


@settings(max_examples=40, deadline=None)
@given(windows(), st.booleans(), st.integers(0, 1))
def test_convolutions_of_any_window(window, transposed, extra):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 9, 8)).astype(np.float32)
    w = rng.standard_normal((4, 3, *window["kernel_shape"])).astype(np.float32)
    w = w if transposed else np.ascontiguousarray(w.transpose(1, 0, 2, 3))
    b = rng.standard_normal(3).astype(np.float32)
    more = {}
    if transposed:
        fits = all(extra < max(s, d) for s, d in zip(window["strides"], window["dilations"], strict=True))
        more = {"output_padding": [extra if fits else 0] * 2}
    kind = "ConvTranspose" if transposed else "Conv"
    agrees(single(kind, [x.shape, w.shape, b.shape], **window, **more), [x, w, b], 1e-3)


# Operators ------------------------------------------------------------------------------------------------

QUICK = [
    "test_affine_grid_2d",
    "test_attention_4d_gqa_with_past_and_present",
    "test_averagepool_2d_ceil",
    "test_convtranspose_output_shape",
    "test_cumsum_1d_reverse_exclusive",
    "test_depthtospace_example",
    "test_gathernd_example_int32_batch_dim1",
    "test_gru_with_initial_bias",
    "test_if",
    "test_loop11",
    "test_lrn",
    "test_lstm_with_peepholes",
    "test_maxunpool_export_without_output_shape",
    "test_onehot_negative_indices",
    "test_qlinearconv",
    "test_reduce_log_sum_exp_do_not_keepdims_random",
    "test_resize_downsample_sizes_cubic",
    "test_reversesequence_time",
    "test_rotary_embedding_interleaved",
    "test_scan9_sum",
    "test_scatternd_max",
    "test_slice_neg_steps",
    "test_top_k_smallest",
    "test_unique_not_sorted_without_axis",
]

# Drawn by chance, or debugging outputs that ONNX and its runtime define differently.
INCOMPARABLE = (
    "bernoulli",
    "qk_matmul_softcap",
    "qk_matmul_bias",
    "causal_bf16",
    "randomnormal",
    "randomuniform",
)


@pytest.fixture(scope="module")
def cases():
    import warnings

    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return {case.name: case for case in collect_testcases(None) if case.model is not None}


def outcome(case, folder) -> str:
    """ "right", "refused" (by us or by the reference), "skipped", or what is wrong."""
    from graphwright.ir.fx.dtypes import tensor_from

    arrays = case.data_sets[0][0]
    arrays = [np.asarray(each) if isinstance(each, np.generic) else each for each in arrays]
    if any(not isinstance(each, np.ndarray) or each.dtype.kind in "OSU" for each in arrays):
        return "skipped"
    onnx.save(case.model, folder / "case.onnx")
    try:
        model = gw.load(folder / "case.onnx")
        given = {value.name: array for value, array in zip(case.model.graph.input, arrays, strict=False)}
        feeds = {value.name: given[value.name] for value in model.graph.inputs}
        expected = run_reference(model, feeds)
        module = gw.to_torch(model)
    except gw.GraphwrightError:
        return "refused"
    with torch.no_grad():
        found = module(*map(tensor_from, feeds.values()))
    for name, made in zip(expected, found if isinstance(found, tuple) else (found,), strict=True):
        wanted = expected[name].astype(np.float64) if expected[name].dtype.kind != "c" else expected[name]
        numbers = made.numpy() if made.is_complex() else made.to(torch.float64).numpy()
        scale = max(1e-3, float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0)))
        tolerance = 1e-2 if expected[name].dtype.itemsize <= 2 else 1e-4
        if numbers.shape != wanted.shape:
            return f"{name}: {numbers.shape} instead of {wanted.shape}"
        if not np.allclose(numbers, wanted, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            return f"{name} differs"
    return "right"


@pytest.mark.parametrize("name", QUICK)
def test_chosen_examples_of_the_standard(cases, name, tmp_path):
    assert outcome(cases[name], tmp_path) == "right"


@pytest.mark.slow
def test_no_example_of_the_standard_is_silently_wrong(cases, tmp_path):
    found = {
        name: outcome(case, tmp_path)
        for name, case in cases.items()
        if not any(part in name for part in INCOMPARABLE)
    }
    assert not {name: each for name, each in found.items() if each not in ("right", "refused", "skipped")}
    assert list(found.values()).count("right") >= 1280


def test_numbers_cast_like_others_are_known_when_torch_traces():
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        mask (float[2,6] x, int64[2] lengths) => (float[2,6] y, int64[6] places)
        <float zero = {0.0}, float one = {1.0}, int64 six = {6}, int64 unit = {1}, int64[1] last = {1}> {
            begin = Cast<to = 1>(unit)
            limit = Cast<to = 1>(six)
            steps = Range(begin, limit, one)
            ones = ReduceMin<keepdims = 0>(steps)
            start = CastLike(zero, lengths)
            delta = CastLike(one, six)
            places = Range(start, six, delta)
            column = Unsqueeze(lengths, last)
            inside = Less(places, column)
            nothing = CastLike(zero, x)
            masked = Where(inside, x, nothing)
            y = Mul(masked, ones)
        }"""
    )
    module = gw.to_torch(model)
    x, lengths = torch.randn(2, 6), torch.tensor([4, 6])
    y, places = module(x, lengths)
    np.testing.assert_array_equal(places, np.arange(6))
    assert (y[0, 4:] == 0).all() and (y[0, :4] == x[0, :4]).all() and (y[1] == x[1]).all()
    again = gw.trace(module, (x, lengths))
    names = [each.name for each in again.graph.inputs]
    found = run_reference(again, dict(zip(names, (x.numpy(), lengths.numpy()), strict=True)))
    np.testing.assert_array_equal(next(iter(found.values())), y)


def test_the_largest_ones_can_be_traced_again():
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        top (float[3,7] x) => (float[3,2] v, int64[3,2] i, float[4,7] w, int64[4,7] j)
        <int64[1] two = {2}, int64[1] four = {4}, int64[2] shape = {4, 7}> {
            v, i = TopK(x, two)
            r = ConstantOfShape(shape)
            w, j = TopK<axis = 0, largest = 0>(r, four)
        }"""
    )
    x = torch.tensor([[1.0, 3, 3, 2, 3, 0, 1]]).repeat(3, 1)
    again = gw.trace(gw.to_torch(model), (x,))
    expected = run_reference(model, {"x": x.numpy()})
    found = run_reference(again, {again.graph.inputs[0].name: x.numpy()})
    for one, other in zip(expected.values(), found.values(), strict=True):
        np.testing.assert_array_equal(one, other)
