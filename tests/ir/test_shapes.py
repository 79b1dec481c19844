"""Shape propagation: symbols, contents of shape tensors, contradictions, binding, static shapes."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.errors import ShapeError
from graphwright.ir.shapes import bind_dims, infer_node, infer_shapes, input_symbols, require_static

HEADS = """
<ir_version: 10, opset_import: ["" : 23]>
heads (float[batch,seq,64] x) => (float[batch,seq,64] y)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] four = {4}, int64[1] rest = {-1}, int64[1] all = {64}>
{
  [dims] s = Shape(x)
  [first] b = Gather(s, zero)
  [second] t = Gather(s, one)
  [target] split = Concat<axis=0>(b, t, four, rest)
  [spread] h = Reshape(x, split)
  [turn] ht = Transpose<perm=[0,2,1,3]>(h)
  [turn_keys] hk = Transpose<perm=[0,2,3,1]>(h)
  [scores] a = MatMul(ht, hk)
  [weights] p = Softmax(a)
  [mix] m = MatMul(p, ht)
  [back] mt = Transpose<perm=[0,2,1,3]>(m)
  [whole] joined = Concat<axis=0>(b, t, all)
  [join] y = Reshape(mt, joined)
}
"""

EXPAND = """
<ir_version: 10, opset_import: ["" : 23]>
expand (float[batch,1,8] x, float[batch,5,8] like) => (float[] y)
<int64 minus = {-1}>
{
  [dims] wanted = Shape(like)
  [length] rank = Shape(wanted)
  [fill] ones = ConstantOfShape<value = int64[1] {1}>(rank)
  [sign] marks = Mul(ones, minus)
  [which] keep = Equal(wanted, marks)
  [pick] target = Where(keep, ones, wanted)
  [grow] y = Expand(x, target)
}
"""


def parse(text: str) -> ir.Model:
    return ir.from_onnx_text(text)


def value(model: ir.Model, name: str) -> ir.Value:
    return next(v for g in model.graphs() for n in g for v in n.outputs if v.name == name)


def shape(model: ir.Model, name: str) -> str:
    return str(value(model, name).shape)


def test_symbols_pass_through_shape_arithmetic():
    model = parse(HEADS)
    assert infer_shapes(model) == []
    assert shape(model, "h") == "[batch,seq,4,16]"
    assert shape(model, "a") == "[batch,4,seq,seq]"
    assert shape(model, "y") == "[batch,seq,64]"
    assert value(model, "a").dtype == ir.DataType.FLOAT


def test_inference_leaves_no_scratch_behind():
    model = parse(HEADS)
    infer_shapes(model)
    for node in model.graph:
        for out in node.outputs:
            assert not out.metadata_props
            assert out.const_value is None


def test_inference_is_idempotent():
    model = parse(HEADS)
    infer_shapes(model)
    before = {v.name: v.shape for n in model.graph for v in n.outputs}
    infer_shapes(model)
    assert before == {v.name: v.shape for n in model.graph for v in n.outputs}


def test_expand_as_older_exporters_spell_it():
    model = parse(EXPAND)
    infer_shapes(model)
    assert shape(model, "y") == "[batch,5,8]"


def test_elements_that_may_be_anything_are_not_taken_for_dimensions():
    """A size that comes in as data may be -1: the choice between it and 1 is open."""
    model = parse("""
    <ir_version: 10, opset_import: ["" : 23]>
    open (float[1,8] x, int64[1] n) => (float[] y)
    <int64[1] eight = {8}, int64[1] one = {1}, int64[2] minus = {-1,-1}>
    {
      wanted = Concat<axis=0>(n, eight)
      keep = Equal(wanted, minus)
      target = Where(keep, one, wanted)
      y = Expand(x, target)
    }
    """)
    infer_shapes(model)
    inferred = value(model, "y").shape
    assert inferred is None or not isinstance(inferred[0], int)


def test_small_integer_computations():
    model = parse(
        """
    <ir_version: 10, opset_import: ["" : 23]>
    windows (float[batch,12,6] x) => (float[] y)
    <int64[1] two = {2}, int64[1] three = {3}, int64 start = {0}, int64 stop = {6}, int64 step = {2},
     int64[1] rest = {-1}>
    {
      s = Shape(x)
      halves = Div(s, two)
      n = ReduceProd<keepdims=1>(s)
      b = Shape<start=0, end=1>(x)
      every = Range(start, stop, step)
      target = Concat<axis=0>(b, every_other, rest)
      every_other = Identity(three)
      y = Reshape(x, target)
      zeros = ConstantOfShape(halves)
      flat = Reshape(x, n)
    }
    """.replace(
            "      target = Concat<axis=0>(b, every_other, rest)\n      every_other = Identity(three)\n",
            "      target = Concat<axis=0>(b, three, rest)\n",
        )
    )
    infer_shapes(model)
    assert shape(model, "y") == "[batch,3,24]"
    assert shape(model, "zeros") == "[floor(batch/2),6,3]"
    assert shape(model, "flat") == "[72*batch]"
    assert shape(model, "every") == "[3]"


def test_what_follows_from_the_inputs_replaces_what_is_stale():
    model = parse(HEADS)
    infer_shapes(model)
    weight = ir.Value(name="w", const_value=ir.tensor(np.zeros((64, 32), np.float32), name="w"))
    weight.shape, weight.dtype = ir.Shape([64, 32]), ir.DataType.FLOAT
    matmul = ir.node("MatMul", [model.graph.inputs[0], weight], name="narrow")
    matmul.outputs[0].name = "n"
    matmul.outputs[0].shape = ir.Shape(["batch", "seq", 64])  # stale: as if w had been pruned
    model.graph.register_initializer(weight)
    model.graph.append(matmul)
    infer_shapes(model)
    assert shape(model, "n") == "[batch,seq,32]"


def test_a_written_dimension_stands_where_nothing_is_known():
    model = parse("""
    <ir_version: 10, opset_import: ["" : 23]>
    nonzero (float[8] x) => (int64[1,3] y)
    { [find] y = NonZero(x) }
    """)
    assert infer_shapes(model) == []
    assert shape(model, "y") == "[1,3]"


def test_wrong_declaration_of_an_output_is_corrected_and_reported():
    model = parse("""
    <ir_version: 10, opset_import: ["" : 23]>
    wrong (float[2,3] x) => (float[3,3] y)
    { [act] y = Relu(x) }
    """)
    assert infer_shapes(model) == ["output 'y' was declared [3,3], node 'act' (Relu) makes [2,3]"]
    assert shape(model, "y") == "[2,3]"


def test_operator_without_a_rule_is_reported_once_and_stays_unknown():
    model = parse("""
    <ir_version: 10, opset_import: ["" : 23, "mine" : 1]>
    foreign (float[2] x) => (float[] y)
    { [a] b = mine.magic(x) [c] d = mine.magic(b) [e] y = Relu(d) }
    """)
    assert infer_shapes(model) == ["node 'a' (mine::magic): no shape rule for this operator"]
    assert value(model, "y").shape is None


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("[sum] y = Add(a, b)", r"node 'sum' \(Add\): shapes \[2,3\] and \[2,4\] do not broadcast"),
        ("[product] y = MatMul(a, b)", r"node 'product' \(MatMul\): Incompatible MatMul contraction"),
        ("[turn] y = Transpose<perm=[0,1,2]>(a)", r"node 'turn' \(Transpose\)"),
        ("[join] y = Concat<axis=3>(a, b)", r"node 'join' \(Concat\): axis=3 is out of range"),
        ("[conv] y = Conv(a, b)", r"node 'conv' \(Conv\): Conv input must be at least rank 3"),
    ],
)
def test_contradiction_names_the_node(body, line):
    model = parse(f"""
    <ir_version: 10, opset_import: ["" : 23]>
    clash (float[2,3] a, float[2,4] b) => (float[] y)
    {{ {body} }}
    """)
    with pytest.raises(ShapeError, match=line) as error:
        infer_shapes(model)
    assert "\n" not in str(error.value)


def test_subgraphs_and_functions():
    model = parse("""
    <ir_version: 10, opset_import: ["" : 23, "mine" : 1]>
    nested (bool c, float[batch,4] x) => (float[] y)
    {
      [choose] d = If(c) <
        then_branch = yes () => (float[] t) { [wide] t = Concat<axis=1>(x, x) },
        else_branch = no () => (float[] e) { [other] e = Concat<axis=1>(x, x) }
      >
      [call] y = mine.flat(d)
    }
    <domain: "mine", opset_import: ["" : 23]>
    flat (a) => (b)
    {
      n = Constant<value_ints = [-1]>()
      b = Reshape(a, n)
    }
    """)
    infer_shapes(model)
    assert shape(model, "t") == "[batch,8]"
    assert shape(model, "d") == "[batch,8]"
    assert shape(model, "y") == "[8*batch]"
    body = next(iter(model.functions.values()))
    assert all(not v.metadata_props for n in body for v in n.outputs)


def test_loop_keeps_going():
    model = parse("""
    <ir_version: 10, opset_import: ["" : 23]>
    loop (int64 n, bool go, float[4] x) => (float[] y, float[] steps)
    {
      y, steps = Loop(n, go, x) <
        body = step (int64 i, bool on, float[4] s) => (bool keep, float[] next, float[] out) {
          keep = Identity(on)
          next = Add(s, x)
          out = Mul(s, s)
        }
      >
    }
    """)
    infer_shapes(model)
    assert shape(model, "y") == "[4]"
    steps = value(model, "steps").shape
    assert steps is not None and len(steps) == 2 and steps[1] == 4


@pytest.mark.parametrize("condition", ["", "yes"])
def test_loop_without_a_condition(condition):
    model = parse(f"""
    <ir_version: 10, opset_import: ["" : 23]>
    loop (float[4] x, bool yes) => (float[] y)
    <int64 n = {{3}}>
    {{
      y = Loop(n, {condition or '""'}, x) <
        body = step (int64 i, bool on, float[4] s) => (bool keep, float[] next)
        {{ keep = Identity(on) next = Add(s, x) }}
      >
    }}
    """)
    infer_shapes(model)
    assert shape(model, "y") == "[4]"


# One node --------------------------------------------------------------------------------------------------


def test_infer_node_fills_in_a_new_node():
    model = parse(HEADS)
    infer_shapes(model)
    relu = ir.node("Transpose", [value(model, "h")], {"perm": [3, 0, 1, 2]}, name="new")
    assert infer_node(relu, model.opset_imports)
    assert str(relu.outputs[0].shape) == "[16,batch,seq,4]"
    assert relu.outputs[0].dtype == ir.DataType.FLOAT


def test_infer_node_names_the_node_that_cannot_be():
    a, b = (
        ir.Value(name=n, shape=ir.Shape(s), type=ir.TensorType(ir.DataType.FLOAT))
        for n, s in (("a", [2, 3]), ("b", [2, 4]))
    )
    with pytest.raises(ShapeError, match=r"node 'bad' \(MatMul\)"):
        infer_node(ir.node("MatMul", [a, b], name="bad"), {"": 23})


def test_infer_node_without_a_rule():
    x = ir.Value(name="x", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.FLOAT))
    assert not infer_node(ir.node("magic", [x], domain="mine"), {"": 23, "mine": 1})


# Binding ---------------------------------------------------------------------------------------------------


def test_bind_by_symbol():
    model = parse(HEADS)
    infer_shapes(model)
    assert input_symbols(model) == {"batch": "x:0", "seq": "x:1"}
    bind_dims(model, {"batch": 2})
    assert shape(model, "a") == "[2,4,seq,seq]"
    bind_dims(model, {"seq": 7})
    assert shape(model, "a") == "[2,4,7,7]"
    assert str(model.graph.inputs[0].shape) == "[2,7,64]"
    assert str(model.graph.outputs[0].shape) == "[2,7,64]"
    require_static(model)


def test_bind_by_input_and_axis():
    model = parse(HEADS)
    bind_dims(model, {"x:0": 2, "x:-2": 7})
    assert shape(model, "a") == "[2,4,7,7]"


def test_bind_reaches_declarations_in_expressions_and_subgraphs():
    model = parse("""
    <ir_version: 10, opset_import: ["" : 23]>
    nested (bool c, float[n,4] x) => (float[] y)
    {
      y = If(c) <
        then_branch = yes () => (float[] t) { t = Concat<axis=0>(x, x) },
        else_branch = no () => (float[] e) { e = Concat<axis=0>(x, x) }
      >
    }
    """)
    infer_shapes(model)
    assert shape(model, "t") == "[2*n,4]"
    bind_dims(model, {"n": 3})
    assert (shape(model, "t"), shape(model, "y")) == ("[6,4]", "[6,4]")


def test_dimensions_without_a_name_are_called_after_their_input():
    model = parse(HEADS)
    model.graph.inputs[0].shape = ir.Shape([None, 5, 64])
    infer_shapes(model)
    assert str(model.graph.inputs[0].shape) == "[x_dim0,5,64]"
    assert shape(model, "a") == "[x_dim0,4,5,5]"
    bind_dims(model, {"x:0": 3})
    assert shape(model, "a") == "[3,4,5,5]"


@pytest.mark.parametrize("name", ["batch size!", "batch-size", "batch size"])
def test_names_that_only_look_like_expressions(name):
    model = parse(HEADS)
    model.graph.inputs[0].shape = ir.Shape([name, "seq", 64])
    infer_shapes(model)
    assert shape(model, "a") == "[batch_size,4,seq,seq]"
    bind_dims(model, {name: 3})
    assert str(model.graph.inputs[0].shape) == "[3,seq,64]"


def test_expressions_in_other_inputs_stay_expressions():
    model = parse("""
    <ir_version: 10, opset_import: ["" : 23]>
    pair (float[n,4] a, float[m,4] b) => (float[] y)
    { y = Concat<axis=0>(a, b) }
    """)
    model.graph.inputs[1].shape = ir.Shape(["2*n", 4])
    infer_shapes(model)
    assert shape(model, "y") == "[3*n,4]"
    bind_dims(model, {"n": 2})
    assert shape(model, "y") == "[6,4]"


def test_question_marks_are_no_common_name():
    model = parse("""
    <ir_version: 10, opset_import: ["" : 23]>
    pair (float[n,4] a, float[m,4] b) => (float[] y)
    { y = Concat<axis=0>(a, b) }
    """)
    for value_ in model.graph.inputs:
        value_.shape = ir.Shape(["?", 4])
    infer_shapes(model)
    assert shape(model, "y") == "[a_dim0 + b_dim0,4]"


@pytest.mark.parametrize(
    ("dims", "line"),
    [
        ({"bath": 1}, "no input has a dimension 'bath'; the symbolic ones are: 'batch', 'seq'"),
        ({"batch": 0}, "dimension 'batch' must be a positive integer, not 0"),
        ({"batch": 1.5}, "must be a positive integer, not 1.5"),
        ({"batch": True}, "must be a positive integer"),
        ({"z:0": 1}, r"no input 'z' \(in 'z:0'\); the inputs are: 'x'"),
        ({"x:5": 1}, r"input 'x' \[batch,seq,64\] has no axis '5'"),
        ({"x:a": 1}, "has no axis 'a'"),
        ({"x:2": 1}, "axis 2 of input 'x' is 64, it cannot become 1"),
        ({"batch": 1, "x:0": 2}, "dimension 'batch' is given both as 1 and as 2"),
    ],
)
def test_binding_errors(dims, line):
    model = parse(HEADS)
    with pytest.raises(ShapeError, match=line):
        bind_dims(model, dims)
    assert str(model.graph.inputs[0].shape) == "[batch,seq,64]"


def test_binding_to_a_size_that_the_graph_refuses():
    model = parse("""
    <ir_version: 10, opset_import: ["" : 23]>
    fixed (float[n,4] x, float[2,4] c) => (float[] y)
    { [sum] y = Add(x, c) }
    """)
    with pytest.raises(ShapeError, match=r"node 'sum' \(Add\): shapes \[3,4\] and \[2,4\] do not broadcast"):
        bind_dims(model, {"n": 3})


# Static shapes ---------------------------------------------------------------------------------------------


def test_require_static_names_input_and_remedy():
    model = parse(HEADS)
    infer_shapes(model)
    with pytest.raises(ShapeError, match=r"value 'x' \[batch,seq,64\], graph input.*--dim batch=1$"):
        require_static(model)


def test_require_static_names_the_node_where_data_decides():
    model = parse("""
    <ir_version: 10, opset_import: ["" : 23]>
    nonzero (float[8] x) => (int64[] y)
    { [find] y = NonZero(x) }
    """)
    infer_shapes(model)
    with pytest.raises(
        ShapeError,
        match=r"dimension 1 of value 'y' .*made by node 'find' \(NonZero\), is only known at run time",
    ):
        require_static(model)


def test_require_static_on_unknown_rank():
    model = parse("""
    <ir_version: 10, opset_import: ["" : 23, "mine" : 1]>
    foreign (float[2] x) => (float[] y)
    { [a] y = mine.magic(x) }
    """)
    infer_shapes(model)
    with pytest.raises(
        ShapeError, match=r"value 'y', made by node 'a' \(mine::magic\), has an unknown shape"
    ):
        require_static(model)


def test_sequences_and_left_out_outputs_need_no_shape():
    model = parse(
        """
    <ir_version: 10, opset_import: ["" : 23]>
    sequence (float[2,4] x) => (float[2,2] y)
    <int64 two = {2}, int64 zero = {0}>
    {
      s = SplitToSequence<axis=1>(x, two)
      p = SequenceAt(s, zero)
      y, = Dropout(p)
    }
    """.replace("y, = Dropout(p)", "y = Dropout(p)")
    )
    infer_shapes(model)
    require_static(model)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y, z = Split<axis=0>(x, n)", ["?", 4, 5]),
        ("y = Squeeze(x, axes)", ["?", "?"]),
        ("y = ReduceSum(x, axes)", ["?", "?", "?"]),
        ("y = Unique<axis=1>(x)", [1, "?", 5]),
    ],
)
def test_operands_that_come_at_run_time_decide_nothing_here(body, expected):
    model = parse(f"""
    <ir_version: 10, opset_import: ["" : 23]>
    late (float[1,4,5] x, int64[2] n, int64[1] axes) => (float[] y)
    {{ {body} }}
    """)
    infer_shapes(model)
    found = value(model, "y").shape
    assert found is not None
    assert [dim if isinstance(dim, int) else "?" for dim in found] == expected


def test_what_is_written_on_one_node_does_not_hold_for_the_next_like_it():
    """Shapes of operators met before are remembered, but not what an exporter wrote of an unknown size."""
    text = """
        <ir_version: 10, opset_import: ["" : 23]>
        g (float x, float[2] n) => (float[N, M] y) { size = Cast<to = 7>(n)
            wide = Expand(x, size)
            y = Neg(wide) }
    """
    fixed = parse(text)
    value(fixed, "wide").shape = ir.Shape([7, 5])
    infer_shapes(fixed)
    free = parse(text)
    infer_shapes(free)
    assert shape(free, "wide") in ("None", "[N,M]")
    assert shape(fixed, "wide") == "[7,5]"


def test_a_quotient_that_comes_out_even_is_a_number():
    model = parse("""
        <ir_version: 10, opset_import: ["" : 23]>
        flatten (float[batch,12,6,6] x) => (float[] y)
        <int64[1] zero = {0}, int64[1] rest = {-1}>
        {
          [dims] s = Shape(x)
          [first] b = Gather(s, zero)
          [target] wanted = Concat<axis=0>(b, rest)
          [flatten] y = Reshape(x, wanted)
        }
    """)
    infer_shapes(model)
    found = value(model, "y").shape
    assert found is not None and str(found[0]) == "batch" and found[1] == 432 and isinstance(found[1], int)


@pytest.mark.parametrize(
    ("dtype", "numbers", "op_type"),
    [("int32", [2**31 - 1, 5], "Add"), ("int64", [2**63 - 1, 2], "Mul"), ("uint8", [250, 3], "Add")],
)
def test_integers_that_run_over_are_not_taken_for_sizes(dtype, numbers, op_type):
    listed = ", ".join(map(str, numbers))
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]>\n'
        f"g ({dtype}[2] x) => ({dtype}[2] y) <{dtype}[2] w = {{{listed}}}> {{ a = {op_type}(w, w)\n y = Add(a, x) }}"
    )
    infer_shapes(model)
    assert model.graph[0].outputs[0].const_value is None
    assert str(model.graph.outputs[0].shape) == "[2]"
