"""Reference execution: right numbers, any value on request, clear refusals."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.clone import clone
from graphwright.ir.errors import ModelError
from graphwright.ir.reference import Reference, run_reference

HEADER = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>\n'


def model_of(text: str) -> ir.Model:
    return ir.from_onnx_text(HEADER + text)


def dense(rows: int = 3, columns: int = 2000) -> tuple[ir.Model, np.ndarray]:
    """relu(x) @ w with weights large enough to be lent to the session."""
    model = model_of(
        f"agraph (float[N,{rows}] x, float[{rows},{columns}] w) => (float[N,{columns}] y)"
        "{ t = Relu(x)\n y = MatMul(t, w) }"
    )
    weights = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    value = model.graph.inputs.pop()
    value.const_value = ir.tensor(weights, name="w")
    model.graph.register_initializer(value)
    return model, weights


def test_outputs_by_name():
    model, weights = dense()
    x = np.array([[1, -1, 2], [0, 3, -4]], np.float32)

    result = run_reference(model, {"x": x})

    assert list(result) == ["y"]
    np.testing.assert_allclose(result["y"], np.maximum(x, 0) @ weights, rtol=1e-5)


def test_intermediate_values_inputs_and_weights():
    model, weights = dense()
    x = np.array([[1, -1, 2]], np.float32)

    values = Reference(model, threads=1).run_values({"x": x}, ["w", "t", "x", "t"])

    assert list(values) == ["w", "t", "x"]
    np.testing.assert_array_equal(values["t"], np.maximum(x, 0))
    np.testing.assert_array_equal(values["w"], weights)
    np.testing.assert_array_equal(values["x"], x)


def test_the_model_is_left_alone():
    model, _ = dense()
    tensor = model.graph.initializers["w"].const_value
    before = ir.to_onnx_text(model)

    reference = Reference(model)
    reference.run_values({"x": np.ones((1, 3), np.float32)}, ["t"])

    assert ir.to_onnx_text(model) == before
    assert model.graph.initializers["w"].const_value is tensor
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_optimizations_are_off():
    # (x + big) - big is x only for an optimizer that reorders floats.
    model = model_of(
        "agraph (float[1] x) => (float[1] y) <float b = {1e8}> { t = Add(x, b)\n y = Sub(t, b) }"
    )
    assert run_reference(model, {"x": np.ones(1, np.float32)})["y"].item() == 0.0


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "input 'x' is missing; the model's inputs are 'x'"),
        ({"x": np.ones((1, 3), np.float32), "z": np.ones(1)}, "the model has no input 'z'"),
        ({"x": np.ones((1, 3))}, "input 'x' is float64, the model wants float32"),
        ({"x": np.ones(3, np.float32)}, r"input 'x' has shape \[3\], the model wants \[N, 3\]"),
        ({"x": np.ones((1, 4), np.float32)}, r"input 'x' has shape \[1, 4\], the model wants \[N, 3\]"),
    ],
)
def test_wrong_feeds_name_the_input(feeds, message):
    with pytest.raises(ModelError, match=message):
        run_reference(dense()[0], feeds)


def test_one_symbol_has_one_size():
    model = model_of("agraph (float[N] x, float[N] z) => (float[N] y) { y = Add(x, z) }")
    with pytest.raises(ModelError, match="dimension 'N' is 2 in input 'x' but 1 in 'z'"):
        run_reference(model, {"x": np.ones(2, np.float32), "z": np.ones(1, np.float32)})


def test_unknown_value_is_named():
    with pytest.raises(ModelError, match="no value 'nowhere'"):
        Reference(dense()[0]).run_values({"x": np.ones((1, 3), np.float32)}, ["nowhere"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agraph (float[2] x) => (float[2] y) { [here] y = Nonsense(x) }", r"node 'here' \(Nonsense\)"),
        ("agraph (float[2] x) => (float[2] y) { [here] y = com.microsoft.Nonsense(x) }", "Nonsense"),
        (
            'agraph (uint16[2] x) => (uint16[2] y) { [here] y = BitShift<direction = "LEFT">(x, x) }',
            r"node 'here' \(BitShift.*no implementation",
        ),
    ],
)
def test_operator_without_implementation_is_named(text, message):
    with pytest.raises(ModelError, match=message) as caught:
        Reference(model_of(text))
    assert "\n" not in str(caught.value)


def test_failure_while_running_is_named(capfd):
    model = model_of("agraph (float[2,3] x, int64[2] s) => (float[A,B] y) { [here] y = Reshape(x, s) }")
    with pytest.raises(ModelError, match=r"node 'here' \(Reshape\): .*cannot be reshaped") as caught:
        run_reference(model, {"x": np.ones((2, 3), np.float32), "s": np.array([4, 5])})
    assert "\n" not in str(caught.value)
    assert "onnxruntime_src" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8e5m2", "double", "uint8", "int64", "bool"])
def test_element_types_in_and_out(dtype):
    model = model_of(f"agraph ({dtype}[3] x) => ({dtype}[3] y) {{ y = Identity(x) }}")
    x = np.array([1, 0, 2]).astype(model.graph.inputs[0].dtype.numpy())

    y = run_reference(model, {"x": x})["y"]

    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y.astype(np.float64), x.astype(np.float64))


def test_four_bit_results():
    model = model_of(
        "agraph (float[3] x) => (int4[3] y) <float s = {1.0}> { y = QuantizeLinear<output_dtype = 22>(x, s) }"
    )
    y = run_reference(model, {"x": np.array([1, -20, 3], np.float32)})["y"]
    assert y.dtype == ml_dtypes.int4
    assert y.astype(np.int32).tolist() == [1, -8, 3]


def test_lent_weights_of_sixteen_bits():
    model = model_of("agraph (bfloat16[4000] w) => (float[4000] y) { y = Cast<to = 1>(w) }")
    weights = np.arange(4000).astype(ml_dtypes.bfloat16)
    value = model.graph.inputs.pop()
    value.const_value = ir.tensor(weights, name="w")
    model.graph.register_initializer(value)
    np.testing.assert_array_equal(run_reference(model, {})["y"], weights.astype(np.float32))


def test_lent_weights_live_as_long_as_the_session():
    model, weights = dense(rows=64)
    made = []

    def data():
        made.append(True)
        return ir.tensor(np.asfortranarray(weights).copy(order="F"), name="w")

    model.graph.initializers["w"].const_value = ir.LazyTensor(
        data, dtype=ir.DataType.FLOAT, shape=ir.Shape(weights.shape), name="w"
    )
    reference = Reference(model)
    model.graph.initializers["w"].const_value = None
    noise = [np.full_like(weights, 7) for _ in range(8)]
    x = np.ones((1, 64), np.float32)
    np.testing.assert_allclose(reference.run({"x": x})["y"], x @ weights, rtol=1e-4, atol=1e-4)
    assert made
    assert len(noise) == 8


def test_lent_weights_are_seen_inside_bodies():
    model = model_of(
        """agraph (bool c, float[2000] w) => (float[2000] y) {
            y = If(c) <
                then_branch = t () => (float[2000] p) { p = Neg(w) },
                else_branch = e () => (float[2000] q) { q = Identity(w) }
            >
        }"""
    )
    value = model.graph.inputs.pop()
    value.const_value = ir.tensor(np.arange(2000, dtype=np.float32), name="w")
    model.graph.register_initializer(value)
    for choice, sign in ((True, -1), (False, 1)):
        y = run_reference(model, {"c": np.array(choice)})["y"]
        np.testing.assert_array_equal(y, sign * np.arange(2000))


def test_strings_and_sequences():
    model = model_of(
        """agraph (string[2] t, float[1] a, float[1] b) => (string[2] u, seq(float[1]) s) {
            u = Identity(t)
            s = SequenceConstruct(a, b)
        }"""
    )
    ones = np.ones(1, np.float32)
    result = run_reference(model, {"t": np.array(["p", "q"]), "a": ones, "b": 2 * ones})
    assert list(result["u"]) == ["p", "q"]
    assert [item.tolist() for item in result["s"]] == [[1.0], [2.0]]


def test_default_inputs_may_be_overridden():
    model, weights = dense()
    model.graph.inputs.append(model.graph.initializers["w"])
    x = np.ones((1, 3), np.float32)
    reference = Reference(model)
    np.testing.assert_allclose(reference.run({"x": x})["y"], x @ weights, rtol=1e-4, atol=1e-5)
    assert reference.run({"x": x, "w": np.zeros_like(weights)})["y"].max() == 0


def test_a_graph_without_order_is_refused():
    model, _ = dense()
    first = model.graph[0]
    model.graph.remove(first)
    model.graph.append(first)
    with pytest.raises(ModelError, match="uses 't' before it is made"):
        Reference(model)


def test_clone_shares_tensors_but_no_graph():
    model, _ = dense()
    model.meta["note"] = "kept"

    copy = clone(model)
    copy.graph[0].name = "other"
    copy.graph.initializers["w"].shape = ir.Shape([1])

    assert copy.graph.initializers["w"].const_value is model.graph.initializers["w"].const_value
    assert model.graph[0].name != "other"
    assert list(model.graph.initializers["w"].shape) == [3, 2000]
    assert copy.meta["note"] == "kept"


def test_large_weights_that_nothing_reads_are_no_trouble():
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[2] x) => (float[2] y) { y = Neg(x) }'
    )
    unused = ir.tensor(np.zeros(1 << 20, np.float32), name="unused")
    model.graph.register_initializer(
        ir.Value(
            name="unused",
            shape=ir.Shape([1 << 20]),
            type=ir.TensorType(ir.DataType.FLOAT),
            const_value=unused,
        )
    )
    np.testing.assert_array_equal(run_reference(model, {"x": np.ones(2, np.float32)})["y"], [-1, -1])


def test_large_initializers_that_nothing_reads():
    model, _ = dense()
    unread = ir.tensor(np.zeros(5000, np.float32), name="unread")
    model.graph.register_initializer(ir.Value(name="unread", const_value=unread))

    assert run_reference(model, {"x": np.ones((1, 3), np.float32)})["y"].shape == (1, 2000)
    assert "unread" in model.graph.initializers
