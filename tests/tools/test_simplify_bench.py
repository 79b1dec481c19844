"""The comparison of simplifiers: one real run of ours, and what is said about numbers."""

import math

import pytest
from graphwright.tools.simplify_bench import OURS, Outcome, findings, growth_exponent, run_tool
from graphwright.tools.simplify_models import MODELS, build_model


def outcome(model="m", tool=OURS, nodes=10, wall=0.1, before=20, size=100, after=100, error=""):
    return Outcome(model, tool, before, size, wall=wall, nodes=nodes, constant_bytes=after, error=error)


@pytest.mark.parametrize("name", ["control_flow", "synthetic_1k"])
def test_our_tool_in_a_process_of_its_own(name, tmp_path):
    found = run_tool(OURS, name, build_model(name, tmp_path), repeat=0, core=0)
    assert not found.error
    assert found.difference <= 1e-4
    assert 0 < found.nodes < found.nodes_before
    assert found.wall > 0 and found.cpu > 0 and found.memory >= 0
    assert found.to_json()["nodes"] == found.nodes


def test_a_crash_is_an_outcome(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(build_model("control_flow", tmp_path).read_bytes())
    found = run_tool("no-such-tool", "broken", path, repeat=1, core=0)
    assert found.error.startswith("crashes") and math.isnan(found.wall)
    assert found.to_json()["wall"] is None


def test_findings_say_who_wins_and_who_fails():
    lines = findings(
        [
            outcome(),
            outcome(tool="fast", wall=0.05),
            outcome(tool="small", nodes=9, wall=0.2),
            outcome(tool="wrong", nodes=1, wall=0.01, error="outputs differ by 2"),
        ]
    )
    assert lines == [
        "m: wrong outputs differ by 2",
        "m: fast takes 50 ms, we 100",
        "m: small leaves 9 nodes, we 10",
    ]


def test_grown_constants_are_a_finding():
    assert findings([outcome(after=80_000)]) == ["m: our constants grew from 100 to 80000"]


def test_growth_is_an_exponent_over_synthetic_graphs():
    points = [outcome(f"synthetic_{n}", before=n, wall=1e-6 * n**1.5) for n in (1000, 3000, 10000)]
    assert growth_exponent(points, OURS) == pytest.approx(1.5)
    assert math.isnan(growth_exponent(points[:1], OURS))


def test_the_set_covers_what_it_should():
    assert {"swin", "llama", "llama_dynamic", "control_flow", "synthetic_30k"} <= set(MODELS)
