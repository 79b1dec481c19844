import numpy as np
import pytest
from graphwright.backends.target import host_target, resolve_target
from graphwright.tools import float_exactness
from typer import Typer
from typer.testing import CliRunner

AMX = resolve_target("sapphirerapids")


def command(*arguments):
    app = Typer()
    app.command()(float_exactness.main)
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.skipif(not AMX.runs_here, reason=f"needs AMX: {AMX.why_not_here()}")
def test_every_way_keeps_to_what_the_documentation_says():
    errors = list(float_exactness.measure(float_exactness.ways(), (64, 1024)))
    mean = {}
    for each in errors:
        mean.setdefault(each.by, []).append(each.mean)
    assert max(mean["bf16x3"]) < 6e-6 and max(mean["bf16x3"]) > 1e-6
    assert max(mean["bf16x6"]) < 1e-6 and max(mean["vectors"]) < 1e-6
    kernels = {each.by: each.kernel for each in errors}
    assert "tdpbf16ps x3" in kernels["bf16x3"] and "tdpbf16ps x6" in kernels["bf16x6"]
    assert "tdp" not in kernels["vectors"]


def test_errors_are_relative_to_the_result(monkeypatch):
    def off(left, right, target):
        exact = left.astype(np.float64) @ right.astype(np.float64)
        return exact + 0.5 * np.sqrt(np.mean(exact**2)), "off by half"

    monkeypatch.setattr(float_exactness, "_product", off)
    errors = list(float_exactness.measure({"half": None}, (8,)))
    assert [each.values for each in errors] == ["random", "positive"]
    assert all(each.mean == pytest.approx(0.5) and each.worst == pytest.approx(0.5) for each in errors)


def test_the_command_writes_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(float_exactness, "LENGTHS", (16,))
    name = f"{host_target().family},+avx2" if host_target().family == "x86" else "host"
    found = command("--target", name, "-o", str(tmp_path / "table.md"))
    assert found.exit_code == 0, found.output
    text = (tmp_path / "table.md").read_text()
    assert text.count("\n| random") == text.count("\n| positive") == 1 and name in text
    failed = command("--target", "cortex-a76" if host_target().family == "x86" else "x86-64-v3")
    assert failed.exit_code == 2 and "cannot be run here" in failed.output
