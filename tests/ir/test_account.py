"""What a model costs: parameters against torch's own count, MACs against the textbook."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.account import account
from graphwright.ir.shapes import infer_shapes


def parse(text: str) -> ir.Model:
    model = ir.from_onnx_text(text)
    infer_shapes(model)
    return model


def single(body: str, inputs: str, imports: str = '"" : 23') -> ir.Model:
    return parse(f"""
    <ir_version: 10, opset_import: [{imports}]>
    single ({inputs}) => (float[] y)
    {{ {body} }}
    """)


@pytest.mark.parametrize(
    ("body", "inputs", "macs"),
    [
        # outputs x (channels per group x kernel)
        ("y = Conv<pads=[1,1,1,1]>(x, w)", "float[2,3,8,8] x, float[4,3,3,3] w", 2 * 4 * 64 * 27),
        ("y = Conv<group=2>(x, w)", "float[1,4,5,5] x, float[6,2,1,1] w", 6 * 25 * 2),
        ("y = Conv<group=4>(x, w)", "float[1,4,5,5] x, float[4,1,3,3] w", 4 * 9 * 9),
        ("y = Conv<dilations=[2,2]>(x, w)", "float[1,1,5,5] x, float[1,1,3,3] w", 9),
        ("y = Conv<strides=[2]>(x, w)", "float[1,2,9] x, float[3,2,3] w", 3 * 4 * 6),
        # inputs x (channels per group x kernel)
        ("y = ConvTranspose<strides=[2,2]>(x, w)", "float[1,3,4,4] x, float[3,5,2,2] w", 3 * 16 * 20),
        ("y = ConvTranspose<group=3>(x, w)", "float[1,3,4,4] x, float[3,1,2,2] w", 3 * 16 * 4),
        ("y = MatMul(a, b)", "float[5,7] a, float[7,3] b", 105),
        ("y = MatMul(a, b)", "float[2,1,5,7] a, float[4,7,3] b", 8 * 105),
        ("y = MatMul(a, b)", "float[7] a, float[7] b", 7),
        ("y = MatMul(a, b)", "float[5,7] a, float[7] b", 35),
        ("y = Gemm(a, b)", "float[5,7] a, float[7,3] b", 105),
        ("y = Gemm<transA=1, transB=1>(a, b)", "float[7,5] a, float[3,7] b", 105),
        ('y = Einsum<equation="bij,bjk->bik">(a, b)', "float[2,5,7] a, float[2,7,3] b", 210),
        ('y = Einsum<equation="...ij,jk">(a, b)', "float[2,4,5,7] a, float[7,3] b", 8 * 105),
        ('y = Einsum<equation="ij->ji">(a)', "float[5,7] a", 0),
        ('y = Einsum<equation="i,i,i->">(a, a, a)', "float[5] a", 10),
        ("y = Attention(q, k, v)", "float[2,8,5,16] q, float[2,8,6,16] k, float[2,8,6,4] v", 16 * 30 * 20),
        ("y = Attention(q, k, v)", "float[2,8,5,16] q, float[2,2,6,16] k, float[2,2,6,4] v", 16 * 30 * 20),
        (
            "y = Attention<q_num_heads=8, kv_num_heads=2>(q, k, v)",
            "float[2,5,128] q, float[2,6,32] k, float[2,6,8] v",
            16 * 30 * 20,
        ),
        (
            "y, z = LSTM<hidden_size=4>(x, w, r)",
            "float[5,2,3] x, float[1,16,3] w, float[1,16,4] r",
            10 * 16 * 7,
        ),
        (
            "y, z = GRU<hidden_size=4>(x, w, r)",
            "float[5,2,3] x, float[1,12,3] w, float[1,12,4] r",
            10 * 12 * 7,
        ),
        ("y, z = RNN<hidden_size=4>(x, w, r)", "float[5,2,3] x, float[1,4,3] w, float[1,4,4] r", 10 * 4 * 7),
        ("y = ConvInteger(x, w)", "uint8[1,3,8,8] x, uint8[4,3,1,1] w", 64 * 12),
        ("y = MatMulInteger(a, b)", "uint8[5,7] a, uint8[7,3] b", 105),
        (
            "y = QLinearConv(x, s, z, w, s, z, s, z)",
            "uint8[1,3,8,8] x, float s, uint8 z, uint8[4,3,1,1] w",
            64 * 12,
        ),
        ("y = QLinearMatMul(x, s, z, w, s, z, s, z)", "uint8[5,7] x, float s, uint8 z, uint8[7,3] w", 105),
        ("y = Relu(x)", "float[1,3,8,8] x", 0),
    ],
)
def test_macs_of_one_node(body, inputs, macs):
    cost = account(single(body, inputs))
    assert cost.macs == macs
    assert cost.notes == ()


def test_symbolic_sizes_give_a_formula():
    cost = account(single("[fc] y = Gemm(a, b)", "float[batch,7] a, float[7,3] b"))
    assert cost.macs is None
    assert cost.formula == "21*batch"
    assert cost.by_node["fc"].formula == "21*batch"


def test_unknown_shapes_are_named_not_guessed():
    model = single(
        "[m] h = mine.magic(x) [fc] y = MatMul(h, w)", "float[2,7] x, float[7,3] w", '"" : 23, "mine" : 1'
    )
    cost = account(model)
    assert (cost.macs, cost.formula) == (None, None)
    assert cost.notes == ("node 'fc' (MatMul): MACs unknown: 'y' has no shape",)


def test_shared_weights_count_once():
    cost = account(
        parse("""
        <ir_version: 10, opset_import: ["" : 23]>
        tied (float[2,4] x) => (float[] y)
        <float[4,4] w = {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}>
        { [one] a = MatMul(x, w) [two] y = MatMul(a, w) }
        """)
    )
    assert (cost.parameters, cost.parameter_bytes, cost.macs) == (16, 64, 64)
    assert {name: c.parameters for name, c in cost.by_node.items()} == {"one": 16, "two": 0}


def test_what_is_a_parameter():
    """Weights and vectors are; scalars, shapes, indices, statistics and unused tensors are not."""
    cost = account(
        parse("""
        <ir_version: 10, opset_import: ["" : 23]>
        kinds (float[1,2,4,4] x) => (float[] y)
        <float[2] scale = {1,1}, float[2] shift = {0,0}, float[2] mean = {0,0}, float[2] var = {1,1},
         float half = {0.5}, int64[2] target = {2,16}, float[3] unused = {1,2,3}, bool[2,1] mask = {0,1}>
        {
          [bn] n = BatchNormalization(x, scale, shift, mean, var)
          [mul] m = Mul(n, half)
          bias = Constant<value = float[1,1,1,4] {1,2,3,4}>()
          [add] a = Add(m, bias)
          [flat] f = Reshape(a, target)
          [where] y = Where(mask, f, f)
        }
        """)
    )
    assert cost.parameters == 2 + 2 + 4
    assert cost.parameter_bytes == 4 * (2 + 2 + 4) + 4 * (2 + 2)  # with mean and variance
    assert cost.by_node["bn"].parameters == 4
    assert cost.by_node["add"].parameters == 4
    assert cost.nodes == 5


def test_quantized_weights_count_like_the_floats_they_stand_for():
    cost = account(
        parse("""
        <ir_version: 10, opset_import: ["" : 23]>
        qdq (float[1,4] x) => (float[] y)
        <int8[4,2] q = {1,2,3,4,5,6,7,8}, float[2] s = {1,1}, int8[2] z = {0,0}, int32[2] b = {1,2}>
        {
          [dw] w = DequantizeLinear<axis=1>(q, s, z)
          [db] bias = DequantizeLinear<axis=0>(b, s)
          [fc] y = Gemm(x, w, bias)
        }
        """)
    )
    assert cost.parameters == 8 + 2
    assert cost.parameter_bytes == 8 + 8 + 8 + 2  # weights, biases, scales, zero points
    assert cost.by_node["fc"].parameters == 10
    assert cost.macs == 8


def test_a_weight_is_charged_to_the_layer_behind_its_reshapes():
    cost = account(
        parse("""
        <ir_version: 10, opset_import: ["" : 23]>
        turned (float[1,4] x) => (float[] y)
        <float[2,4] w = {1,2,3,4,5,6,7,8}>
        { [turn] t = Transpose<perm=[1,0]>(w) [fc] y = MatMul(x, t) }
        """)
    )
    assert cost.by_node["fc"].parameters == 8
    assert cost.parameters == 8


def test_generated_weights_count_where_they_are_weights():
    cost = account(
        parse("""
        <ir_version: 10, opset_import: ["" : 23]>
        light (float[1,3,8,8] x, float[5,1,3] s) => (float[] y, float[] z)
        <int64[4] w_shape = {4,3,3,3}, int64[3] h_shape = {1,1,4},
         float[1,16,3] W = {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
                            0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}, int64[3] r_shape = {1,16,4}>
        {
          w = ConstantOfShape(w_shape)
          [conv] y = Conv(x, w)
          h = ConstantOfShape(h_shape)
          r = ConstantOfShape(r_shape)
          [lstm] z = LSTM<hidden_size=4>(s, W, r, , , h, h)
        }
        """)
    )
    assert cost.by_node["conv"].parameters == 108
    assert cost.by_node["lstm"].parameters == 48 + 64  # initial states of zeros are no weights
    assert cost.parameters == 108 + 48 + 64


def test_control_flow():
    model = parse("""
    <ir_version: 10, opset_import: ["" : 23]>
    flow (bool c, bool go, float[4,4] x, float[6,4] steps) => (float[] y, float[] z, float[] s)
    <int64 n = {3}, float[4,4] w = {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}>
    {
      [choose] y = If(c) <
        then_branch = yes () => (float[] t) { [a] p = MatMul(x, w) [b] t = MatMul(p, w) },
        else_branch = no () => (float[] e) { [d] e = MatMul(x, w) }
      >
      [rounds] z = Loop(n, go, x) <
        body = step (int64 i, bool on, float[4,4] q) => (bool keep, float[4,4] next) {
          keep = Identity(on)
          [g] next = MatMul(q, x)
        }
      >
      [each] s, all = Scan <num_scan_inputs = 1, body = one (float[4,4] u, float[4] row) => (float[4,4] v, float[4] o) {
        v = Identity(u)
        [h] o = MatMul(row, u)
      }> (x, steps)
    }
    """)
    cost = account(model)
    assert cost.by_node["choose"].macs == 128
    assert cost.by_node["choose/a"].macs == 64
    assert cost.by_node["rounds"].macs == 3 * 64
    assert cost.by_node["each"].macs == 6 * 16
    assert cost.macs == 128 + 192 + 96
    assert cost.parameters == 16
    assert "the dearer branch is counted" in cost.notes[0]


def test_loop_without_a_known_number_of_rounds():
    cost = account(
        parse("""
        <ir_version: 10, opset_import: ["" : 23]>
        loop (int64 n, bool go, float[4,4] x) => (float[] z)
        {
          [rounds] z = Loop(n, go, x) <
            body = step (int64 i, bool on, float[4,4] q) => (bool keep, float[4,4] next) {
              keep = Identity(on)
              next = MatMul(q, x)
            }
          >
        }
        """)
    )
    assert cost.macs is None
    assert cost.notes == ("node 'rounds' (Loop): how often its body runs is not known",)


def test_functions_are_counted_by_their_bodies():
    model = parse("""
    <ir_version: 10, opset_import: ["" : 23, "mine" : 1]>
    calls (float[2,4] x, float[4,4] w) => (float[] y)
    { [one] a = mine.layer(x, w) [two] y = mine.layer(a, w) }
    <domain: "mine", opset_import: ["" : 23]>
    layer (p, q) => (r) { [m] s = MatMul(p, q) [n] r = Relu(s) }
    """)
    cost = account(model)
    assert cost.macs == 64
    assert cost.nodes == 4
    assert [n.op_type for n in model.graph] == ["layer", "layer"]  # the model itself is left alone


def test_resnet18_has_the_published_numbers():
    """11,689,512 parameters and 1.814 GMACs; batch norms count by scale and shift, not by statistics."""
    from graphwright.ir.trace import trace
    from graphwright.tools.zoo import resnet18

    module, example = resnet18()
    model = trace(module, example)
    infer_shapes(model)
    cost = account(model)
    assert cost.parameters == sum(p.numel() for p in module.parameters()) == 11_689_512
    assert cost.macs == 1_814_073_344
    buffers = sum(b.numel() for n, b in module.named_buffers() if "running" in n)
    assert cost.parameter_bytes == 4 * (cost.parameters + buffers)
    assert sum(c.macs or 0 for c in cost.by_node.values()) == cost.macs
    assert sum(c.parameters for c in cost.by_node.values()) == cost.parameters


def test_large_tensors_are_not_read():
    """Only the shape of a tensor is looked at, so that weights on disk stay there."""

    def never() -> ir.TensorProtocol:
        raise AssertionError("read")

    model = single("y = MatMul(x, w)", "float[1,4] x, float[4,4] w")
    value = model.graph.inputs.pop(1)
    value.const_value = ir.LazyTensor(never, dtype=ir.DataType.FLOAT, shape=ir.Shape([4, 4]), name="w")
    model.graph.register_initializer(value)
    assert account(model).parameters == 16
    assert np.prod(value.const_value.shape.numpy()) == 16


def test_malformed_attributes_are_noted_not_fatal():
    model = single("[fc] y = Gemm(a, b)", "float[5,7] a, float[7,3] b")
    model.graph[0].attributes["transA"] = ir.AttrString("transA", "yes")
    cost = account(model)
    assert cost.macs is None
    assert cost.notes[0].startswith("node 'fc' (Gemm): MACs unknown: Attribute 'transA' is not of type INT")
