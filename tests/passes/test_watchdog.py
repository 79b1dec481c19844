"""Rules that hang, leave the program, or are interrupted: named, with a file that shows it again."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from graphwright.ir.errors import PassCrash, PipelineError
from graphwright.ir.load import load
from graphwright.passes.base import Pass
from graphwright.passes.equivalence import check_equivalent
from graphwright.passes.optimize import optimize
from graphwright.passes.plugins import load_plugin
from graphwright.passes.registry import register
from graphwright.passes.reproducer import PIPELINE_KEY, observe, replay
from graphwright.passes.rules import Rule
from graphwright.passes.watchdog import rule_limit, watching

load_plugin(Path(__file__).with_name("broken_rules.py"))
broken = sys.modules["graphwright_plugin_broken_rules"]


class Spin(Rule):
    """Never comes back from the node called `bad`, and swallows every error on the way."""

    op_types = ("Neg",)

    def match_and_rewrite(self, node, rewriter):
        turns, bad = 0, node.name == "bad"
        while bad:
            try:
                turns += 1
            except Exception:
                turns = 0
        return False


class Leave(Rule):
    """Ends the program."""

    op_types = ("Neg",)

    def match_and_rewrite(self, node, rewriter):
        sys.exit(3)


class Interrupt(Rule):
    """What Ctrl-C does in the middle of a rule."""

    op_types = ("Neg",)

    def match_and_rewrite(self, node, rewriter):
        if node.name == "bad":
            raise KeyboardInterrupt
        return False


class Slow(Rule):
    """Takes its time at every node, but no longer than allowed at any."""

    op_types = ()

    def match_and_rewrite(self, node, rewriter):
        end = time.monotonic() + 0.15
        while time.monotonic() < end:
            pass
        return False


RULES = {"spin": Spin, "leave": Leave, "interrupt": Interrupt, "slow": Slow}


@register
@dataclass(frozen=True)
class Misbehave(Pass):
    """Drive one of these rules, or leave the program without any."""

    name: ClassVar[str] = "test-misbehave"
    how: str = "spin"

    def apply(self, model, context):
        if self.how == "leave at once":
            raise SystemExit("enough")
        if self.how == "interrupt at once":
            raise KeyboardInterrupt
        context.rewrite(model, RULES[self.how]())


def test_a_rule_that_hangs_is_stopped_and_named(tmp_path):
    model = broken.model()
    with pytest.raises(PassCrash) as caught:
        optimize(model, "eliminate-identity,test-misbehave", rule_timeout=0.4, reproducer=tmp_path)
    line = str(caught.value)
    assert "rule 'Spin' at node 'bad' (Neg) did not come to an end within 0.4 s at test_watchdog.py:" in line
    assert caught.value.before is not None
    (file,) = tmp_path.iterdir()
    with rule_limit(0.4):
        failure = replay(file)
    assert failure is not None and "rule 'Spin' at node 'bad'" in failure.message


def test_the_run_goes_on_without_it_where_asked():
    model = broken.model()
    result = optimize(
        model, "test-misbehave,eliminate-dead", rule_timeout=0.4, keep_going=True, check_each=True
    )
    assert [bool(record.error) for record in result.report.records] == [True, False]
    assert check_equivalent(model, result.model).passed


def test_it_works_in_other_threads_too():
    caught: list[BaseException] = []

    def run():
        try:
            optimize(broken.model(), "test-misbehave", rule_timeout=0.4, reproducer=None)
        except PassCrash as crash:
            caught.append(crash)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert len(caught) == 1 and "rule 'Spin'" in str(caught[0])


def test_many_slow_nodes_are_no_hang():
    result = optimize(broken.model(), "test-misbehave{how=slow}", rule_timeout=0.6)
    assert not result.report.records[0].changed


def test_no_watch_where_none_is_wanted_and_one_is_enough():
    names = lambda: [thread.name for thread in threading.enumerate()]  # noqa: E731
    with watching(0):
        assert "graphwright-watchdog" not in names()
    with rule_limit(0), watching(None):
        assert "graphwright-watchdog" not in names()
    with watching(5), watching(None):
        assert names().count("graphwright-watchdog") == 1


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("leave", r"rule 'Leave' at node 'net/Neg_1' \(Neg\) raised SystemExit: 3"),
        ('"leave at once"', r"pass 'test-misbehave' failed: SystemExit: enough"),
    ],
)
def test_leaving_the_program_is_a_crash(how, says, tmp_path):
    with pytest.raises(PassCrash, match=says):
        optimize(broken.model(), f"test-misbehave{{how={how}}}", reproducer=tmp_path)
    (file,) = tmp_path.iterdir()
    failure = replay(file)
    assert failure is not None and re.search(says, failure.message)


def test_a_plugin_that_leaves_the_program_is_named(tmp_path):
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(4)\n")
    with pytest.raises(PipelineError, match="leaves.py' fails to load: SystemExit: 4"):
        load_plugin(tmp_path / "leaves.py")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("interrupt", "interrupted in pass 'test-misbehave', rule 'Interrupt' at node 'bad' (Neg)"),
        ('"interrupt at once"', "interrupted in pass 'test-misbehave' at test_watchdog.py"),
    ],
)
def test_an_interruption_leaves_a_reproducer(how, says, tmp_path):
    pipeline = f"eliminate-identity,test-misbehave{{how={how}}},eliminate-dead"
    with pytest.raises(KeyboardInterrupt) as caught:
        optimize(broken.model(), pipeline, reproducer=tmp_path)
    notes = "; ".join(caught.value.__notes__)
    (file,) = tmp_path.iterdir()
    assert says in notes and str(file) in notes
    stored = load(file).metadata_props[PIPELINE_KEY]
    assert stored.startswith("eliminate-identity,test-misbehave") and "eliminate-dead" not in stored


def test_an_interruption_elsewhere_leaves_none(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("graphwright.passes.eliminate_dead.EliminateDead.apply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimize(broken.model(), "eliminate-dead", reproducer=tmp_path)
    assert not list(tmp_path.iterdir())


def test_observing_keeps_to_the_limit():
    with rule_limit(0.4):
        failure = observe(broken.model(), "test-misbehave")
    assert failure is not None and "within 0.4 s" in failure.message


def test_whoever_profiles_after_a_watch_gets_on():
    """CPython 3.11 hangs in a profiled thread once an asynchronous exception was taken back there."""
    code = (
        "import cProfile, faulthandler\n"
        "from graphwright.passes.watchdog import watching\n"
        "faulthandler.dump_traceback_later(20, exit=True)\n"
        "profile = cProfile.Profile()\n"
        "profile.enable()\n"
        "with watching(60.0):\n"
        "    pass\n"
        "print(sum(abs(i) for i in range(1000)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "499500\n"), done.stderr
