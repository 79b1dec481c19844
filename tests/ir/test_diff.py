"""The graph diff: what counts as a difference, how nodes find each other, and the pages it is written as."""

import json
from html.parser import HTMLParser

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.diff import diff
from graphwright.ir.errors import ToolError
from graphwright.ir.shapes import infer_shapes
from hypothesis import given, settings
from hypothesis import strategies as st

NET = """
<ir_version: 10, opset_import: ["" : 23]>
net (float[1,3,8,8] x) => (float[1,4,8,8] y)
<float[4,3,1,1] w1 = {1,2,3,4,5,6,7,8,9,10,11,12}, float[4,4,1,1] w2 = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16},
 float[4] scale = {1,1,1,1}, float[4] shift = {0,0,0,0}, float[4] mean = {0,0,0,0}, float[4] var = {1,1,1,1}>
{
  [conv1] a = Conv(x, w1)
  [norm] b = BatchNormalization(a, scale, shift, mean, var)
  [act] c = Relu(b)
  [conv2] d = Conv(c, w2)
  [act2] y = Relu(d)
}
"""

FOLDED = """
<ir_version: 10, opset_import: ["" : 23]>
net (float[1,3,8,8] x) => (float[1,4,8,8] y)
<float[4,3,1,1] w1 = {1,2,3,4,5,6,7,8,9,10,11,13}, float[4,4,1,1] w2 = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16},
 float[4] bias = {0,0,0,0}>
{
  [conv1] a = Conv(x, w1, bias)
  [act] c = Relu(a)
  [conv2] d = Conv(c, w2)
  [act2] y = Relu(d)
}
"""

BRANCHES = """
<ir_version: 10, opset_import: ["" : 23]>
branches (bool c, float[4] x) => (float[4] y)
{
  [choose] y = If(c) <
    then_branch = yes () => (float[4] t) { [pos] t = Relu(x) },
    else_branch = no () => (float[4] e) { [neg] e = Neg(x) }
  >
}
"""


def parse(text: str) -> ir.Model:
    model = ir.from_onnx_text(text)
    infer_shapes(model)
    return model


def node(model: ir.Model, name: str) -> ir.Node:
    return next(n for g in model.graphs() for n in g if n.name == name)


@pytest.mark.parametrize("text", [NET, FOLDED, BRANCHES])
def test_a_copy_is_no_different(text):
    model = parse(text)
    found = diff(model, model.clone())
    assert not found.changed
    assert "no differences" in found.text()
    assert found.renamed == ()


def test_batch_norm_folded():
    """The whole text of a small, typical diff."""
    text = diff(parse(NET), parse(FOLDED)).text()
    assert (
        text
        == """\
--- net
+++ net

                              before             after    change
nodes                              5                 4   -20.0 %
parameters                        36                32   -11.1 %
parameter bytes                  176               128   -27.3 %
constant bytes                   176               128   -27.3 %
MACs                           1,792             1,792

operators:
  BatchNormalization: 1 -> 0

nodes removed (1):
  - norm: %b = BatchNormalization(%a, %scale, %shift, %mean, %var) : f32[1,4,8,8]

nodes changed (2):
  ~ conv1 (Conv)
      input 2: none -> %bias
  ~ act (Relu)
      input 0: %b -> %a

weights (6):
  ~ w1 changed: f32[4,3,1,1], largest difference 1
  + bias added: f32[4] [0,0,0,0]
  - scale removed: f32[4] [1,1,1,1]
  - shift removed: f32[4] [0,0,0,0]
  - mean removed: f32[4] [0,0,0,0]
  - var removed: f32[4] [1,1,1,1]
"""
    )


def test_long_lists_can_be_cut():
    text = diff(parse(NET), parse(FOLDED)).text(limit=1)
    assert "nodes changed (2):\n  ~ conv1 (Conv)\n      input 2: none -> %bias\n  ... and 1 more\n" in text


def test_renaming_everything_is_no_difference():
    before = parse(NET)
    after = before.clone()
    for index, item in enumerate(after.graph):
        item.name = f"op_{index}"
        for value in item.outputs:
            if not value.is_graph_output():
                value.name = f"v_{index}"
    for value in list(after.graph.initializers.values()):
        value.name = f"p_{value.name}"
    found = diff(before, after)
    assert not found.changed
    assert ("conv1", "op_0") in found.renamed and ("w1", "p_w1") in found.renamed
    assert "renamed without any other difference (11): conv1 -> op_0" in found.text()


def test_renumbering_after_a_removal_is_no_noise():
    """Every name has moved on to another node; weights and structure tell which is which."""
    before, after = parse(NET), parse(FOLDED)
    for model in (before, after):
        for index, item in enumerate(model.graph):
            item.name = f"node_{index}"
    found = diff(before, after)
    assert [e.op_type for e in found.removed] == ["BatchNormalization"]
    assert found.added == ()
    assert ("node_3", "node_2") in found.renamed


def test_two_nodes_swapping_names_are_told_apart():
    before = parse(NET)
    after = before.clone()
    node(after, "conv1").name = "tmp"
    node(after, "conv2").name = "conv1"
    node(after, "tmp").name = "conv2"
    assert not diff(before, after).changed


def test_attributes_shapes_and_types():
    before = parse("""
    <ir_version: 10, opset_import: ["" : 23]>
    reduce (float[2,6] x) => (float[2,1] y)
    <int64[1] axes = {1}>
    { [sum] y = ReduceSum<keepdims = 1>(x, axes) }
    """)
    after = parse("""
    <ir_version: 10, opset_import: ["" : 23]>
    reduce (float[3,6] x) => (float[3] y)
    <int64[1] axes = {1}>
    { [sum] y = ReduceSum<keepdims = 0, noop_with_empty_axes = 1>(x, axes) }
    """)
    found = diff(before, after)
    assert found.interface == ("input %x: f32[2,6] -> f32[3,6]", "output %y: f32[2,1] -> f32[3]")
    (change,) = found.modified
    assert change.details == (
        "attribute keepdims=1 -> keepdims=0",
        "attribute noop_with_empty_axes=1 added",
        "output 0: f32[2,1] -> f32[3]",
    )


def test_weights_reshaped_and_retyped():
    before = parse(NET)
    after = before.clone()
    for name, array in (("w1", np.zeros((2, 3, 1, 1), np.float32)), ("mean", np.zeros(4, np.float16))):
        after.graph.initializers[name].const_value = ir.tensor(array, name=name)
    kinds = {w.name: (w.kind, w.detail) for w in diff(before, after).weights}
    assert kinds["w1"] == ("reshaped", "f32[4,3,1,1] -> f32[2,3,1,1]")
    assert kinds["mean"][0] == "retyped"
    assert len(kinds) == 2


def test_equal_weights_in_other_memory_are_equal_and_nan_equals_itself():
    before = parse(NET)
    before.graph.initializers["w1"].const_value = ir.tensor(
        np.full((4, 3, 1, 1), np.nan, np.float32), name="w1"
    )
    after = before.clone()
    after.graph.initializers["w1"].const_value = ir.tensor(
        np.full((4, 3, 1, 1), np.nan, np.float32), name="w1"
    )
    assert not diff(before, after).changed


def test_constants_in_nodes_are_compared_by_content():
    def model(number: int) -> ir.Model:
        return parse(f"""
        <ir_version: 10, opset_import: ["" : 23]>
        const (float[2] x) => (float[2] y)
        {{ [k] c = Constant<value = float[2] {{1,{number}}}>() [sum] y = Add(x, c) }}
        """)

    assert not diff(model(2), model(2)).changed
    (change,) = diff(model(2), model(3)).modified
    assert change.details == ("attribute value=f32[2] [1,2] -> value=f32[2] [1,3]",)


def test_inputs_outputs_opsets_and_functions():
    before = parse(NET)
    after = before.clone()
    after.graph.inputs[0].name = "image"
    after.graph.inputs.append(
        ir.Value(name="extra", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.INT64))
    )
    after.graph.outputs[0] = node(after, "conv2").outputs[0]
    after.opset_imports["mine"] = 1
    found = diff(before, after)
    assert set(found.interface) == {
        "input %x removed",
        "input %image added: f32[1,3,8,8]",
        "input %extra added: i64[2]",
        "output %y removed",
        "output %d added: f32[1,4,8,8]",
        "opset of domain 'mine': None -> 1",
    }
    assert found.modified == ()  # a renamed input rewires nothing


def test_output_that_comes_from_elsewhere():
    before = parse(NET)
    after = before.clone()
    last, first = after.graph.outputs[0], node(after, "act").outputs[0]
    after.graph.outputs[0] = first
    last.name, first.name = "old", "y"
    assert diff(before, after).interface == ("output %y comes from another node",)


def test_subgraphs_are_compared_inside():
    before = parse(BRANCHES)
    after = before.clone()
    node(after, "neg").op_type = "Abs"
    found = diff(before, after)
    assert [(e.scope, e.name, e.op_type) for e in found.removed] == [("choose/else_branch/", "neg", "Neg")]
    assert [(e.scope, e.name, e.op_type) for e in found.added] == [("choose/else_branch/", "neg", "Abs")]
    assert found.operators == {"Abs": (0, 1), "Neg": (1, 0)}
    assert found.modified == ()


def test_provenance_of_new_nodes_is_shown():
    before = parse(NET)
    after = before.clone()
    extra = ir.node("Abs", [node(after, "act2").outputs[0]], name="new")
    extra.outputs[0].name = "n"
    extra.metadata_props["graphwright.pass"] = "insert-qdq"
    extra.metadata_props["graphwright.from"] = "act2"
    after.graph.append(extra)
    (entry,) = diff(before, after).added
    assert entry.origin == "made by insert-qdq from act2"


def test_models_are_left_as_they_are():
    """Shapes are inferred on a copy where they are missing, so that costs are right."""
    before, after = ir.from_onnx_text(NET), ir.from_onnx_text(FOLDED)
    found = diff(before, after)
    assert next(t for t in found.totals if t.label == "MACs").before == 1792
    assert node(before, "conv1").outputs[0].shape is None


# Written forms ---------------------------------------------------------------------------------------------


def test_json_is_plain_data(tmp_path):
    diff(parse(NET), parse(FOLDED)).save(tmp_path / "d.json")
    data = json.loads((tmp_path / "d.json").read_text())
    assert data["changed"] is True
    assert data["operators"] == {"BatchNormalization": [1, 0]}
    assert data["removed"][0]["name"] == "norm"


def test_markdown_and_text(tmp_path):
    found = diff(parse(NET), parse(FOLDED))
    found.save(tmp_path / "d.md")
    found.save(str(tmp_path / "d.txt"))
    page = (tmp_path / "d.md").read_text()
    assert "| parameters | 36 | 32 | -11.1 % |" in page
    assert "| BatchNormalization | 1 | 0 |" in page
    assert "  - norm: %b = BatchNormalization" in page
    assert (tmp_path / "d.txt").read_text() == found.text()


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html_page_is_well_formed_and_loads_nothing(tmp_path):
    diff(parse(NET), parse(FOLDED)).save(tmp_path / "d.html")
    page = (tmp_path / "d.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not {"script", "link", "img", "iframe"} & set(tags.tags)
    assert "http" not in page
    assert "input 2: none -> %bias" in "".join(tags.text)


def test_hostile_names_stay_text_in_html(tmp_path):
    hostile = "<script>alert('x')</script>\x1b[31m"
    before = parse(NET)
    after = before.clone()
    for model in (before, after):
        model.graph.name = hostile
    act = node(after, "act")
    act.name = hostile
    act.outputs[0].name = hostile
    act.op_type = hostile
    act.metadata_props["graphwright.pass"] = hostile
    after.graph.initializers["mean"].name = hostile
    node(after, "conv2").attributes["auto_pad"] = ir.AttrString("auto_pad", hostile)
    found = diff(before, after)
    found.save(tmp_path / "d.html")
    page = (tmp_path / "d.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.tags and tags.open == []
    assert "\x1b" not in page + found.text()
    assert all(line.isprintable() for line in found.text().splitlines())


def test_other_suffixes_and_bad_folders(tmp_path):
    found = diff(parse(NET), parse(FOLDED))
    with pytest.raises(ToolError, match="use one of .html, .json, .md, .txt"):
        found.save(tmp_path / "d.pdf")
    with pytest.raises(ToolError, match="No such file or directory"):
        found.save(tmp_path / "missing" / "d.html")
    (tmp_path / "taken.txt").mkdir()
    with pytest.raises(ToolError, match="cannot write"):
        found.save(tmp_path / "taken.txt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken.txt"]


# Random graphs ---------------------------------------------------------------------------------------------


@st.composite
def random_model(draw) -> ir.Model:
    x = ir.Value(name="x", shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.FLOAT))
    values, nodes = [x], []
    for index in range(draw(st.integers(1, 20))):
        op_type = draw(st.sampled_from(["Add", "Mul", "Relu", "Neg"]))
        count = 2 if op_type in ("Add", "Mul") else 1
        made = ir.node(op_type, [draw(st.sampled_from(values)) for _ in range(count)], name=f"n{index}")
        made.outputs[0].name = f"v{index}"
        values.append(made.outputs[0])
        nodes.append(made)
    graph = ir.Graph([x], [values[-1]], nodes=nodes, opset_imports={"": 23}, name="random")
    return ir.Model(graph, ir_version=10)


@settings(max_examples=40, deadline=None)
@given(random_model(), st.randoms(use_true_random=False))
def test_any_graph_equals_its_copy_under_any_names(model, random):
    copy = model.clone()
    names = [f"q{i}" for i in range(len(copy.graph))]
    random.shuffle(names)
    for item, name in zip(copy.graph, names, strict=True):
        item.name = name
    assert not diff(model, copy).changed


@settings(max_examples=40, deadline=None)
@given(random_model(), st.data())
def test_any_changed_operator_is_seen(model, data):
    copy = model.clone()
    victim = copy.graph[data.draw(st.integers(0, len(copy.graph) - 1))]
    victim.op_type = {"Add": "Sub", "Mul": "Div", "Relu": "Abs", "Neg": "Exp"}[victim.op_type]
    found = diff(model, copy)
    assert found.changed
    assert [e.op_type for e in found.added] == [victim.op_type]
    assert len(found.removed) == 1
