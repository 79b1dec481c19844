"""The verifier: what it accepts, and the line it writes for each way to break a graph."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.errors import VerifyError
from graphwright.ir.verify import find_cycle, problems, verify
from hypothesis import given, settings
from hypothesis import strategies as st

CHAIN = """
<ir_version: 10, opset_import: ["" : 23]>
chain (float[1,4] x) => (float[1,4] y)
<float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}>
{
  [mul] a = MatMul(x, w)
  [act] b = Relu(a)
  [sum] y = Add(b, x)
}
"""

BRANCHES = """
<ir_version: 10, opset_import: ["" : 23]>
branches (bool c, float[4] x) => (float[4] y)
{
  [twice] d = Add(x, x)
  [choose] y = If(c) <
    then_branch = yes () => (float[4] t) { [pos] t = Relu(d) },
    else_branch = no () => (float[4] e) { [neg] e = Neg(x) }
  >
}
"""

LOOP = """
<ir_version: 10, opset_import: ["" : 23]>
loop (int64 n, bool go, float[4] x) => (float[4] y)
{
  [rounds] y = Loop(n, go, x) <
    body = step (int64 i, bool on, float[4] s) => (bool keep, float[4] next) {
      [keep_on] keep = Identity(on)
      [grow] next = Add(s, x)
    }
  >
}
"""

FUNCTION = """
<ir_version: 10, opset_import: ["" : 23, "mine" : 1]>
calls (float[4] x) => (float[4] y)
{
  [call] y = mine.leaky <slope = 0.5> (x)
}
<domain: "mine", opset_import: ["" : 23]>
leaky <slope> (a) => (b)
{
  [inner] b = LeakyRelu <alpha : float = @slope> (a)
}
"""


def node(model: ir.Model, name: str) -> ir.Node:
    return next(n for g in model.graphs() for n in g if n.name == name)


def branch(model: ir.Model, name: str = "then_branch") -> ir.Graph:
    return node(model, "choose").attributes[name].as_graph()


@pytest.mark.parametrize("text", [CHAIN, BRANCHES, LOOP, FUNCTION])
def test_sound_models_have_no_problems(text):
    assert problems(ir.from_onnx_text(text)) == []


def only_problem(model: ir.Model) -> str:
    found = problems(model)
    assert len(found) == 1, found
    return found[0]


def test_error_has_first_problem_in_its_line_and_all_in_a_list():
    model = ir.from_onnx_text(CHAIN)
    node(model, "act").op_type = "Reluu"
    node(model, "sum").op_type = "Addd"
    with pytest.raises(
        VerifyError, match=r"^invalid graph: node 'act' \(Reluu\): unknown .* \(and 1 more\)"
    ) as e:
        verify(model)
    assert len(e.value.problems) == 2


# Order and scope -------------------------------------------------------------------------------------------


def test_cycle_names_its_nodes():
    model = ir.from_onnx_text(CHAIN)
    node(model, "mul").replace_input_with(0, node(model, "act").outputs[0])
    assert "is on a cycle" in only_problem(model)
    assert "node 'mul' (MatMul)" in only_problem(model) and "node 'act' (Relu)" in only_problem(model)
    assert {n.name for n in find_cycle(model.graph)} == {"mul", "act"}


def test_cycle_through_a_subgraph():
    model = ir.from_onnx_text(BRANCHES)
    node(model, "twice").replace_input_with(0, node(model, "choose").outputs[0])
    assert "is on a cycle" in only_problem(model)


def test_body_that_reads_the_result_of_its_own_node():
    model = ir.from_onnx_text(BRANCHES)
    node(model, "pos").replace_input_with(0, node(model, "choose").outputs[0])
    assert "node 'choose' (If) is on a cycle" in only_problem(model)


def test_cycle_inside_a_body():
    model = ir.from_onnx_text(LOOP)
    grow = node(model, "grow")
    grow.replace_input_with(0, grow.outputs[0])
    assert only_problem(model).startswith("node 'grow' (Add) is on a cycle")
    assert only_problem(model).endswith("in 'body' of node 'rounds' (Loop)")


def test_wrong_order_is_told_from_a_cycle():
    model = ir.from_onnx_text(CHAIN)
    act = node(model, "act")
    model.graph.remove(act)
    model.graph.append(act)
    assert only_problem(model) == (
        "node 'sum' (Add): input 'b' is produced later, by node 'act' (Relu); "
        "nodes are not in topological order"
    )


def test_value_of_a_removed_node():
    model = ir.from_onnx_text(CHAIN)
    model.graph.remove(node(model, "act"))
    assert only_problem(model) == (
        "node 'sum' (Add): input 'b' comes from node 'act' (Relu), which is not in the graph"
    )


def test_value_from_nowhere():
    model = ir.from_onnx_text(CHAIN)
    node(model, "act").replace_input_with(0, ir.Value(name="ghost"))
    assert "'ghost' has no producer and is no graph input or initializer" in only_problem(model)


def test_weight_that_was_taken_out_of_the_graph():
    model = ir.from_onnx_text(CHAIN)
    model.graph.initializers.pop("w")
    assert "input 'w' has no producer and is no graph input or initializer" in only_problem(model)


def test_value_of_a_branch_used_outside():
    model = ir.from_onnx_text(BRANCHES)
    late = ir.node("Abs", [node(model, "pos").outputs[0]], name="late")
    late.outputs[0].name = "l"
    model.graph.append(late)
    assert "input 't' comes from node 'pos' (Relu) in graph 'yes', out of scope here" in only_problem(model)


def test_value_of_one_branch_used_in_the_other():
    model = ir.from_onnx_text(BRANCHES)
    node(model, "neg").replace_input_with(0, node(model, "pos").outputs[0])
    assert "out of scope here" in only_problem(model)


def test_input_of_a_body_used_outside():
    model = ir.from_onnx_text(LOOP)
    body = node(model, "rounds").attributes["body"].as_graph()
    late = ir.node("Abs", [body.inputs[2]], name="late")
    late.outputs[0].name = "l"
    model.graph.append(late)
    assert "input 's' belongs to another graph ('step')" in only_problem(model)


def test_branch_that_returns_an_outer_value():
    model = ir.from_onnx_text(BRANCHES)
    branch(model).outputs[0] = node(model, "twice").outputs[0]
    assert any("needs Identity" in p for p in problems(model))


def test_inner_name_that_hides_the_outer_value_in_use():
    model = ir.from_onnx_text(LOOP)
    body = node(model, "rounds").attributes["body"].as_graph()
    body.inputs[2].name = "x"
    assert any("input 'x' is hidden by an inner value of the same name" in p for p in problems(model))


def test_inner_name_that_hides_an_unused_outer_value_is_fine():
    model = ir.from_onnx_text(LOOP)
    body = node(model, "rounds").attributes["body"].as_graph()
    body.inputs[0].name = "n"
    assert problems(model) == []
    assert problems(model) == []  # checking leaves no trace


# Names and tensors -----------------------------------------------------------------------------------------


def test_duplicate_names():
    model = ir.from_onnx_text(CHAIN)
    node(model, "sum").name = "act"
    node(model, "act").outputs[0].name = "a"
    assert problems(model) == [
        "node 'act' (Relu): duplicate value name 'a'",
        "node 'act' (Add): duplicate node name, also of a Relu",
    ]


def test_result_in_a_body_named_like_an_outer_value():
    model = ir.from_onnx_text(BRANCHES)
    node(model, "pos").outputs[0].name = "d"
    assert any("duplicate value name 'd' in 'then_branch'" in p for p in problems(model))


def test_input_and_weight_of_the_same_name():
    model = ir.from_onnx_text(CHAIN)
    model.graph.inputs[0].name = "w"
    assert problems(model)[0] == "duplicate value name 'w': initializer and another value"


def test_unnamed_values():
    model = ir.from_onnx_text(CHAIN)
    node(model, "mul").outputs[0].name = None
    node(model, "sum").outputs[0].name = ""
    assert problems(model) == [
        "node 'act' (Relu): input (unnamed) has no name",
        "graph output without a name",
    ]


def test_initializer_without_data():
    model = ir.from_onnx_text(CHAIN)
    model.graph.initializers["w"].const_value = None
    assert only_problem(model) == "initializer 'w' has no data"


def test_initializer_against_its_declaration():
    model = ir.from_onnx_text(CHAIN)
    weight = model.graph.initializers["w"]
    weight.const_value = ir.tensor(np.zeros((4, 3), np.float16), name="w")
    assert problems(model)[:2] == [
        "initializer 'w' is declared FLOAT but holds FLOAT16",
        "initializer 'w' is declared [4,4] but holds [4,3]",
    ]


def test_symbolic_declaration_admits_any_size():
    model = ir.from_onnx_text(CHAIN)
    model.graph.initializers["w"].shape = ir.Shape(["n", 4])
    assert problems(model) == []


def test_outputs_that_are_missing_or_never_made():
    model = ir.from_onnx_text(CHAIN)
    model.graph.outputs[0] = ir.Value(name="z")
    assert only_problem(model) == "graph output 'z' is produced by nothing"
    model.graph.outputs.clear()
    assert only_problem(model) == "the graph has no outputs"


def test_an_input_may_be_an_output():
    model = ir.from_onnx_text(CHAIN)
    model.graph.outputs.append(model.graph.inputs[0])
    assert problems(model) == []


# Operators -------------------------------------------------------------------------------------------------


def test_unknown_operator_and_removed_operator():
    model = ir.from_onnx_text(CHAIN)
    node(model, "act").op_type = "Upsample"
    assert only_problem(model) == ("node 'act' (Upsample): unknown operator in opset 23 of domain 'ai.onnx'")


def test_missing_opset_import():
    model = ir.from_onnx_text(CHAIN)
    node(model, "act").domain = "mine"
    assert only_problem(model) == "node 'act' (mine::Relu): no opset import for domain 'mine'"


def test_operators_of_foreign_domains_are_taken_on_trust():
    model = ir.from_onnx_text(CHAIN)
    model.opset_imports["mine"] = 1
    node(model, "act").domain = "mine"
    assert problems(model) == []


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["x"], "1 inputs, at least 2 needed"),
        (["x", "x", "x"], "3 inputs, at most 2 allowed"),
        ([None, "x"], "input 0 ('A') is required but left out"),
    ],
)
def test_number_of_inputs(inputs, expected):
    model = ir.from_onnx_text(CHAIN)
    x = model.graph.inputs[0]
    broken = ir.node("Mul", [x if name else None for name in inputs], name="broken")
    broken.outputs[0].name = "broken_out"
    model.graph.append(broken)
    assert only_problem(model) == f"node 'broken' (Mul): {expected}"


def test_trailing_empty_outputs_of_an_optional_kind_are_fine():
    model = ir.from_onnx_text(CHAIN)
    drop = ir.node("Dropout", [model.graph.inputs[0]], num_outputs=2, name="drop")
    drop.outputs[0].name, drop.outputs[1].name = "dropped", ""
    model.graph.append(drop)
    assert problems(model) == []


def test_attributes():
    model = ir.from_onnx_text(CHAIN)
    x = model.graph.inputs[0]
    for name, attributes in (("none", {}), ("kind", {"axis": 1.5}), ("more", {"axis": 0, "colour": 1})):
        concat = ir.node("Concat", [x, x], attributes, name=name)
        concat.outputs[0].name = f"{name}_out"
        model.graph.append(concat)
    assert problems(model) == [
        "node 'none' (Concat): attribute 'axis' is missing",
        "node 'kind' (Concat): attribute 'axis' is FLOAT, not INT",
        "node 'more' (Concat): no attribute 'colour' in this operator",
    ]


def test_element_types():
    model = ir.from_onnx_text(CHAIN)
    node(model, "mul").outputs[0].dtype = ir.DataType.INT64
    assert problems(model) == [
        "node 'mul' (MatMul): 'a' is INT64 but 'x' is FLOAT, they must be equal",
    ]
    node(model, "act").op_type = "Sigmoid"
    assert "node 'act' (Sigmoid): 'a' is INT64, which 'X' does not take" in problems(model)


@pytest.mark.parametrize(
    ("body", "shapes", "expected"),
    [
        ("Add(a, b)", ([2, 3], [2, 4]), "shapes [2,3] and [2,4] do not broadcast"),
        ("MatMul(a, b)", ([2, 3], [4, 5]), "shapes [2,3] and [4,5] do not multiply"),
        ("MatMul(a, b)", ([2, 3, 4], [3, 4, 5]), "shapes [2,3,4] and [3,4,5] do not broadcast"),
        ("Gemm<transB = 1>(a, b)", ([2, 3], [3, 5]), "shapes [2,3] and [3,5] do not multiply"),
        (
            "Conv(a, b)",
            ([1, 32, 8, 8], [4, 64, 3, 3]),
            "input [1,32,8,8] has 32 channels, weight [4,64,3,3] in 1 groups wants 64",
        ),
        ("Concat<axis = 1>(a, b)", ([2, 3], [3, 3]), "shapes [2,3] and [3,3] differ outside axis 1"),
    ],
)
def test_shapes_that_contradict_each_other(body, shapes, expected):
    a, b = (",".join(map(str, shape)) for shape in shapes)
    model = ir.from_onnx_text(f"""
    <ir_version: 10, opset_import: ["" : 23]>
    clash (float[{a}] a, float[{b}] b) => (float[] y)
    {{ [op] y = {body} }}
    """)
    assert problems(model) == []
    (problem,) = problems(model, shapes=True)
    assert problem.endswith(expected) and problem.startswith("node 'op'")


# Bodies and functions --------------------------------------------------------------------------------------


def test_branch_with_other_outputs_than_its_node():
    model = ir.from_onnx_text(BRANCHES)
    branch(model).outputs.append(node(model, "pos").outputs[0])
    assert "'then_branch' gives 2 outputs, the node 1" in only_problem(model)


def test_branch_of_another_type():
    model = ir.from_onnx_text(BRANCHES)
    node(model, "choose").outputs[0].dtype = ir.DataType.DOUBLE
    assert "'then_branch' gives FLOAT for 'y', which is DOUBLE" in problems(model)[0]


def test_loop_body_with_too_few_inputs():
    model = ir.from_onnx_text(LOOP)
    node(model, "rounds").resize_inputs(2)
    assert "'body' takes 3 inputs, not 2 + 0 carried" in only_problem(model)


def test_scan_body_with_other_inputs_than_its_node():
    model = ir.from_onnx_text("""
    <ir_version: 10, opset_import: ["" : 23]>
    scan (float[2] s, float[5,2] x) => (float[2] t, float[5,2] y)
    {
      [each] t, y = Scan <num_scan_inputs = 1, body = step (float[2] a, float[2] b) => (float[2] c, float[2] d) {
        [sum] c = Add(a, b)
        [copy] d = Identity(c)
      }> (s, x)
    }
    """)
    assert problems(model) == []
    node(model, "each").resize_inputs(1)
    assert "'body' takes 2 inputs, the node 1" in only_problem(model)


def test_call_against_its_function():
    model = ir.from_onnx_text(FUNCTION)
    call = node(model, "call")
    call.attributes.pop("slope")
    call.resize_inputs(2)
    assert problems(model) == [
        "node 'call' (mine::leaky): 2 inputs, its function has 1",
        "node 'call' (mine::leaky): attribute 'slope' is missing",
    ]


def test_attribute_reference_that_nobody_declares():
    model = ir.from_onnx_text(FUNCTION)
    next(iter(model.functions.values())).attributes.pop("slope")
    assert "attribute 'alpha' refers to 'slope', which no enclosing function declares" in problems(model)[0]


def test_problem_inside_a_function_says_so():
    model = ir.from_onnx_text(FUNCTION)
    inner = next(iter(model.functions.values())).graph[0]
    inner.op_type = "LeakyRelux"
    assert "LeakyRelux" in problems(model)[0] and problems(model)[0].endswith("in function 'mine::leaky'")


def test_function_that_calls_itself():
    model = ir.from_onnx_text(FUNCTION)
    function = next(iter(model.functions.values()))
    function.opset_imports["mine"] = 1
    again = ir.node("leaky", [function.inputs[0]], {"slope": 0.5}, domain="mine", name="again")
    again.outputs[0].name = "again_out"
    function.append(again)
    assert "function 'mine::leaky' calls itself" in problems(model)


# Random damage ---------------------------------------------------------------------------------------------


def chain_of(length: int) -> ir.Model:
    x = ir.Value(name="x", shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes, values = [], [x]
    for i in range(length):
        made = ir.node("Add", [values[-1], values[i // 2]], name=f"n{i}")
        made.outputs[0].name = f"v{i}"
        nodes.append(made)
        values.append(made.outputs[0])
    graph = ir.Graph([x], [values[-1]], nodes=nodes, opset_imports={"": 23}, name="random")
    return ir.Model(graph, ir_version=10)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.data())
def test_any_rewired_edge_is_found_iff_it_breaks_the_order(length, data):
    model = chain_of(length)
    reader = data.draw(st.integers(0, length - 1), "reader")
    source = data.draw(st.integers(0, length - 1), "source")
    model.graph[reader].replace_input_with(0, model.graph[source].outputs[0])
    found = problems(model)
    assert bool(found) == (source >= reader)
    assert all("is on a cycle" in p or "topological order" in p for p in found)
    if found and find_cycle(model.graph):
        cycle = find_cycle(model.graph)
        for first, second in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            assert first in second.predecessors()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.data())
def test_any_removed_node_that_is_used_is_missed(length, data):
    model = chain_of(length)
    gone = model.graph[data.draw(st.integers(0, length - 1), "gone")]
    used = bool(gone.outputs[0].uses())
    model.graph.remove(gone)
    assert any(f"node '{gone.name}' (Add), which is not in the graph" in p for p in problems(model))
    assert used or len(problems(model)) == 1  # the last node makes the graph output


def test_deep_chain_needs_no_recursion():
    model = chain_of(5000)
    model.graph[0].replace_input_with(0, model.graph[4999].outputs[0])
    assert "is on a cycle" in only_problem(model)
