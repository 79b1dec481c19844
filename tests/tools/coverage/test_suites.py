"""`graphwright coverage`: the worker on small networks, the runner, the file of results, the page."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types

import pytest
from graphwright.ir.errors import ToolError
from graphwright.tools.cli import main
from graphwright.tools.coverage import suites
from graphwright.tools.coverage.records import (
    FAILED,
    NO_EXPORT,
    NO_MODEL,
    NOTHING,
    OURS,
    PROVEN,
    RIVAL,
    WRONG,
    Outcome,
    append_outcome,
    read_outcomes,
)
from graphwright.tools.coverage.report import summary, to_markdown
from graphwright.tools.coverage.timm import names as timm_names
from graphwright.tools.coverage.transformers import names as transformers_names
from graphwright.tools.coverage.worker import cover
from graphwright.tools.coverage.worker import main as work

OPTIONS = {"ratio": 0.5, "allow_statistical": True, "memory_gib": 64}
GOOD = Outcome(
    "timm",
    "resnet18",
    phase="done",
    parameters=(11_000_000, 3_000_000),
    macs=(2_000_000_000, 500_000_000),
    bytes=(44_000_000, 12_000_000),
    nodes=60,
    export_seconds=3.0,
    prune_seconds=0.5,
    groups=12,
    kept=1,
    proof=1e-7,
    difference=2e-7,
    effect=0.9,
    options="ratio 0.5, statistical groups pruned",
)


def told(call, *arguments):
    found = {}
    call(*arguments, lambda **fields: found.update(fields))
    return found


@pytest.fixture
def suite(monkeypatch):
    """A suite of three networks: one that can be pruned, one that cannot, one that torch cannot export."""
    import torch

    class Data(torch.nn.Module):
        def forward(self, x):
            return x if bool(x.sum() > 0) else -x

    networks = {
        "mlp": torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)),
        "single": torch.nn.Sequential(torch.nn.Linear(6, 3)),
        "data": Data(),
    }
    module = types.ModuleType("graphwright.tools.coverage.torchvision")
    module.names = lambda: list(networks)
    module.build = lambda name: (networks[name], (torch.rand(2, 6),), "")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    monkeypatch.setattr(suites.importlib.util, "find_spec", lambda name: name == "torchvision" or None)


class TestWorker:
    def test_prunes_and_compares(self, suite):
        found = told(cover, "torchvision", "mlp", OPTIONS)
        assert found["phase"] == "done"
        assert found["parameters"] == [6 * 8 + 8 + 8 * 3 + 3, 6 * 4 + 4 + 4 * 3 + 3]
        assert found["macs"] == [2 * (6 * 8 + 8 * 3), 2 * (6 * 4 + 4 * 3)]
        assert found["bytes"] == [4 * 83, 4 * 43]
        assert found["groups"] == 1
        assert found["difference"] < 1e-5 < 0.01 < found["effect"]

    def test_names_what_stopped_it(self, suite):
        found = told(cover, "torchvision", "single", OPTIONS)
        assert found["groups"] == 0
        assert "graph output" in found["barriers"][0]
        assert Outcome.from_json({"suite": "torchvision", "name": "single", **found}).status() == NOTHING

    def test_says_why_an_export_fails(self, suite):
        found = told(work, OURS, "torchvision", "data", OPTIONS)
        assert found["phase"] == "export"
        assert found["cause"]
        assert "\n" not in found["cause"]
        assert Outcome.from_json({"suite": "torchvision", "name": "data", **found}).status() == NO_EXPORT

    def test_finds_a_wrong_file(self, suite, monkeypatch):
        import onnx_ir as ir
        from graphwright.ir.constants import constant_array
        from graphwright.passes import prune_channels
        from graphwright.passes.channels import apply_removal

        def spoiled(model, removal, rewriter):
            apply_removal(model, removal, rewriter)
            for value in model.graph.initializers.values():
                value.const_value = ir.tensor(constant_array(value) * 1.01, name=value.name)

        monkeypatch.setattr(prune_channels, "apply_removal", spoiled)
        found = told(cover, "torchvision", "mlp", OPTIONS)
        assert found["proof"] < 1e-5 < found["difference"]
        assert Outcome.from_json({"suite": "torchvision", "name": "mlp", **found}).status() == WRONG


class TestStatus:
    @pytest.mark.parametrize(
        ("changes", "status"),
        [
            ({}, PROVEN),
            ({"difference": 1e-3}, WRONG),
            ({"difference": math.nan}, WRONG),
            ({"unproven": ("conv: the proof failed: off",)}, WRONG),
            ({"groups": 0, "difference": None}, NOTHING),
            ({"phase": "prune", "cause": "out of memory"}, FAILED),
            ({"phase": "check", "cause": "stopped after 5 s"}, FAILED),
            ({"phase": "export", "cause": "torch cannot"}, NO_EXPORT),
            ({"phase": "build", "cause": "no such model"}, NO_MODEL),
        ],
    )
    def test_of(self, changes, status):
        assert dataclasses.replace(GOOD, **changes).status() == status


class TestResults:
    def test_last_of_an_architecture_counts(self, tmp_path):
        file = tmp_path / "r.jsonl"
        newer = dataclasses.replace(GOOD, difference=math.nan)
        for each in (GOOD, dataclasses.replace(GOOD, name="other"), newer):
            append_outcome(file, each)
        found = {each.name: each for each in read_outcomes(file)}
        assert list(found) == ["other", "resnet18"]
        assert math.isnan(found["resnet18"].difference)
        assert found["other"] == dataclasses.replace(GOOD, name="other")

    def test_a_line_cut_short_is_dropped_and_not_joined(self, tmp_path):
        file = tmp_path / "r.jsonl"
        append_outcome(file, GOOD)
        file.write_text(file.read_text()[:-1] + '\n{"suite": "ti')
        assert read_outcomes(file) == [GOOD]
        append_outcome(file, GOOD)
        with pytest.raises(ToolError, match="line 2"):
            read_outcomes(file)

    def test_of_another_version(self, tmp_path):
        file = tmp_path / "r.jsonl"
        file.write_text('{"suite": "timm", "name": "a", "colour": 1}\n')
        with pytest.raises(ToolError, match="another version"):
            read_outcomes(file)


class TestRunner:
    def run(self, monkeypatch, program, **settings):
        monkeypatch.setattr(suites.sys, "executable", self.program(program))
        return suites.run_one(("timm", "net", OURS), suites.Settings(**settings))

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.folder = tmp_path

    def program(self, text):
        path = self.folder / "python"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    def test_reads_what_the_worker_said(self, monkeypatch):
        lines = """echo '{"phase": "prune"}'; echo '{"phase": "done", "groups": 3, "difference": 0.0}'"""
        found = self.run(monkeypatch, lines)
        assert (found.status(), found.groups, found.cause) == (PROVEN, 3, "")
        assert found.seconds > 0

    def test_stops_it_after_the_time_limit(self, monkeypatch):
        found = self.run(monkeypatch, """echo '{"phase": "export"}'; sleep 60""", time_limit=0.5)
        assert found.cause == "stopped after 0.5 s"
        assert found.status() == NO_EXPORT
        assert found.seconds < 30

    @pytest.mark.parametrize(
        ("end", "cause"),
        [
            ("kill -SEGV $$", "crashed with SIGSEGV"),
            ("kill -KILL $$", "killed, most likely for want of memory"),
            ("echo no >&2; exit 3", "ended with exit code 3: no"),
            ("exit 0", "ended with exit code 0"),
        ],
    )
    def test_a_worker_that_dies(self, monkeypatch, end, cause):
        found = self.run(monkeypatch, f"""echo '{{"phase": "prune"}}'; {end}""")
        assert (found.status(), found.cause) == (FAILED, cause)

    def test_goes_on_where_it_was(self, monkeypatch, tmp_path):
        ran = []

        def one(key, settings, running):
            ran.append(key[1])
            return dataclasses.replace(GOOD, suite=key[0], name=key[1], tool=key[2], options=settings.text)

        monkeypatch.setattr(suites, "run_one", one)
        settings, file = suites.Settings(), tmp_path / "r.jsonl"
        suites.run_coverage([("timm", "a")], settings, results=file)
        found = suites.run_coverage([("timm", "a"), ("timm", "b")], settings, results=file)
        assert ran == ["a", "b"]
        assert [each.name for each in found] == ["a", "b"]
        again = dataclasses.replace(settings, again=True)
        suites.run_coverage([("timm", "a")], again, results=file)
        suites.run_coverage([("timm", "a")], dataclasses.replace(settings, ratio=0.3), results=file)
        assert ran == ["a", "b", "a", "a"]
        nothing = suites.run_coverage([("timm", "z"), ("timm", "b")], settings, results=file, run=False)
        assert [each.name for each in nothing] == ["b"]


class TestPage:
    def test_counts_and_names_causes(self):
        outcomes = [
            GOOD,
            dataclasses.replace(GOOD, name="bad", difference=0.5),
            dataclasses.replace(
                GOOD, name="big", phase="prune", cause="/a/b/run.py: out of memory", parameters=None
            ),
            dataclasses.replace(GOOD, tool=RIVAL, macs=(2_000_000_000, 600_000_000)),
            dataclasses.replace(GOOD, tool=RIVAL, name="bad", difference=0.25),
            dataclasses.replace(GOOD, tool=RIVAL, name="big", difference=None, cause="ZeroDivisionError: x"),
        ]
        assert summary(outcomes)["timm"] == {
            PROVEN: 1,
            NOTHING: 0,
            WRONG: 1,
            FAILED: 1,
            NO_EXPORT: 0,
            NO_MODEL: 0,
        }
        page = to_markdown(outcomes, {"timm": 5})
        assert "| timm | 5 | 3 | 1 | 0 | 1 | 1 | 0 | 0 |" in page
        assert "timm/bad: off by 5.0e-01" in page
        assert "timm/big: (prune) run.py: out of memory" in page
        assert "2 of 5 have not run yet" in page
        assert "| resnet18 | 3.0 | 60 | 0.5 | 11.000 -> 3.000 | 2000.0 -> 500.0 | 44.0 -> 12.0 |" in page
        assert "2000.0 -> 600.0 | 0.5 | equal |" in page and "| wrong by 2.5e-01 |" in page
        told = " ".join(page.split())
        assert "ran on 3 of these" in told and "It stopped at 1, " in told and "2 ran afterwards" in told
        assert "1 equal the original" in told and "1 do not" in told
        assert "- timm/bad: 2.5e-01" in page and "- 1 x ZeroDivisionError: x" in page

    def test_says_what_was_kept_where_much_is_left(self):
        large = dataclasses.replace(GOOD, name="large", parameters=(100, 60), barriers=("Conv: x", "Gemm: y"))
        page = to_markdown([GOOD, large], {"timm": 2})
        assert "- timm/large: 0.60; Conv: x; Gemm: y" in page
        assert "timm/resnet18: " not in page

    def test_says_when_a_suite_ran_completely(self):
        assert "| timm | 1 | all | 1 |" in to_markdown([GOOD], {"timm": 1})


def test_suites_are_large_enough():
    timm, transformers = timm_names(), transformers_names()
    assert len(set(timm)) == len(timm) >= 100
    assert len(set(transformers)) == len(transformers) >= 15
    assert {"bert", "gpt2", "llama", "t5", "vit", "swin", "detr", "whisper", "wav2vec2", "mamba"} <= {
        *transformers
    }


class TestCommand:
    @pytest.fixture(autouse=True)
    def _runs(self, suite, monkeypatch):
        def one(key, settings, running):
            outcome = told(work, key[2], key[0], key[1], json.loads(settings.options()))
            data = {"suite": key[0], "name": key[1], "options": settings.text}
            return Outcome.from_json({**data, **outcome})

        monkeypatch.setattr(suites, "run_one", one)
        monkeypatch.setattr("graphwright.tools.commands.coverage.has_rival", lambda: False)

    def test_writes_page_and_results(self, tmp_path, capsys):
        page, results = tmp_path / "c.md", tmp_path / "r.jsonl"
        arguments = ["coverage", "--suite", "torchvision", "-o", str(page), "--results", str(results)]
        assert main(arguments) == 0
        assert "| torchvision | 3 | all | 1 | 1 | 0 | 0 | 1 | 0 |" in page.read_text()
        assert "torchvision/data: export failed" in capsys.readouterr().out
        assert len(results.read_text().splitlines()) == 3
        assert main([*arguments, "--json", "--report-only", "--only", "mlp"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["summary"]["torchvision"][PROVEN] == 1
        assert [each["name"] for each in document["outcomes"]] == ["mlp"]

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (["--suite", "keras"], "there is no suite 'keras'"),
            (["--suite", "timm"], "timm is not installed here"),
            (["--suite", "torchvision", "--only", "zebra"], "no architecture matches 'zebra'"),
            (["--report-only"], "--results FILE"),
            (["--rival"], "torch-pruning is not installed"),
            (["-o", "nowhere/c.md"], "no such folder"),
        ],
    )
    def test_trouble_is_one_line(self, arguments, line, capsys):
        assert main(["coverage", *arguments]) == 2
        error = capsys.readouterr().err
        assert line in error and error.count("\n") == 1
