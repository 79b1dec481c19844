"""The pages hold what they say: their code runs, and their outputs are what the commands print."""

from __future__ import annotations

import re
from pathlib import Path

import onnx_ir as ir
import pytest
from graphwright.passes.analyses import Analyses
from graphwright.passes.base import PassContext
from graphwright.passes.driver import drive
from graphwright.passes.equivalence import check_equivalent
from graphwright.passes.manager import PassManager

DOCS = Path(__file__).parents[2] / "docs"


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def code(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page(name), flags=re.MULTILINE | re.DOTALL)


def model_of(text: str) -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]>\n' + text)
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    return PassManager("").run(model)[0]


@pytest.fixture
def net(tmp_path, monkeypatch):
    from graphwright.tools.zoo.synthetic import build_synthetic

    monkeypatch.chdir(tmp_path)
    ir.save(build_synthetic(1000), "net.onnx")
    Path("wrong_pass.py").write_text(code("debugging-a-pipeline.md")[0])


def shown() -> dict[str, list[str]]:
    """Commands of the page on debugging with the lines below them."""
    found = {}
    for block in re.findall(
        r"^```console\n(.*?)^```", page("debugging-a-pipeline.md"), re.MULTILINE | re.DOTALL
    ):
        for part in re.split(r"^\$ graphwright ", block, flags=re.MULTILINE)[1:]:
            command, *lines = part.rstrip().splitlines()
            found[command] = [line for line in lines if line]
    return found


def words(command: str) -> list[str]:
    import shlex

    return shlex.split(command)


@pytest.mark.slow
def test_the_page_on_debugging_shows_what_is_printed(cli, net):
    commands = shown()
    assert len(commands) == 6
    for command, lines in commands.items():
        outcome = cli(*words(command))
        if "--timing" in command:
            # Times differ; what is timed and counted does not.
            assert {"preparation", "folding (2 times)", "shape update (2 times)"} <= {
                line.split("% ")[-1].strip() for line in outcome.out.splitlines()
            }
            lines = [line for line in lines if "%" not in line and "share" not in line]
        if "--check-each" in command:
            assert outcome.code == 2
            text = " ".join(outcome.err.split())
            for part in (
                "rule 'AddIsMax' at node 'Add_645' (Add) is the first to do so",
                "--replay; --keep-going",
            ):
                assert part in text and part in " ".join(" ".join(lines).split())
            continue
        printed = set(outcome.out.splitlines())
        for line in lines:
            if "max difference" in line or "max relative" in line:
                # The last digits depend on the processor.
                line = line[: line.index(": max ")]
                assert any(each.startswith(line) for each in printed), (line, outcome)
            else:
                assert line in printed, (line, outcome)
    assert cli("reduce", "small.onnx", "--replay", "--plugin", "wrong_pass.py").code == 1


def test_the_rules_on_the_page_on_patterns_work():
    scope: dict[str, type] = {}
    for block in code("patterns.md"):
        exec(compile(block, "patterns.md", "exec"), scope)
    model = model_of("""
        g (float[2,4] a) => (float[2,4] y)
        <float three = {3.0}, float zero = {0.0}, float six = {6.0}> {
            s = Add (three, a)
            c = Clip (s, zero, six)
            m = Mul (c, a)
            y = Div (m, six)
        }""")
    after = ir.from_proto(ir.to_proto(model))
    assert drive(after, [scope["FuseHardSwish"]()], PassContext())
    assert [node.op_type for node in after.graph] == ["HardSwish"]
    assert check_equivalent(model, after).passed

    model = model_of("""
        g (float[3,2] a) => (float[3,2] p, float[3,1] q)
        <float[2,2] v = {1.0, 2.0, 3.0, 4.0}, float[2,1] w = {5.0, 6.0}> {
            p = MatMul (a, v)
            q = MatMul (a, w)
        }""")
    after = ir.from_proto(ir.to_proto(model))
    assert drive(after, [scope["MergeProducts"]()], PassContext())
    assert [node.op_type for node in after.graph] == ["MatMul", "Split"]
    assert check_equivalent(model, after).passed


def test_every_form_on_the_page_on_patterns_exists():
    from graphwright.passes import patterns

    table = re.findall(r"^\| `(\w+)\(", page("patterns.md"), re.MULTILINE)
    assert {"value", "constant", "op", "maybe", "any_of", "outputs"} == set(table)
    for name in (*table, "rest"):
        assert callable(getattr(patterns, name))
    x = patterns.value("x")
    assert patterns.op("Transpose", x, perm=lambda p: p[0] == 0) and patterns.op("Gelu", x, approximate=None)


def test_the_code_on_the_page_on_analyses_works():
    from graphwright.passes import analyses_graph, analyses_values

    scope: dict[str, type] = {"__name__": "analyses_page"}
    report, depth = code("analyses.md")
    import sys
    import types

    sys.modules["analyses_page"] = types.ModuleType("analyses_page")
    exec(compile(report, "analyses.md", "exec"), scope)
    exec(compile(depth, "analyses.md", "exec"), scope)
    ones = ", ".join(["1.0"] * 16)
    more = ", ".join(["1.0"] * 64)
    model = model_of(f"""
        g (float[3,2] a) => (float[3,8] y) <float[2,8] k = {{{ones}}}, float[8,8] l = {{{more}}}> {{
            p = MatMul (a, k)
            r = Relu (p)
            y = MatMul (r, l)
        }}""")
    _, records = PassManager(scope["ReportHot"](share=0.5)).run(model)
    assert records[0].notes == ["MatMul_2 (MatMul) does 80% of the work"]
    depths = Analyses(model).get(scope["Depth"]).depths
    assert [depths[node] for node in model.graph] == [1, 2, 3]
    listed = re.findall(r"^\| `(\w+)` \| `passes\.(\w+)`", page("analyses.md"), re.MULTILINE)
    modules = {"analyses_graph": analyses_graph, "analyses_values": analyses_values}
    assert len(listed) == 6 and all(hasattr(modules[module], name) for name, module in listed)
