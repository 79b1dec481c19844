"""The errors a user can cause.

Each ends in one clear line that names the node, option or file and says what to do. The command line prints
that line and exits with code 2; anything that is not a `GraphwrightError` is a bug of ours.
"""

from __future__ import annotations

from typing import Any


class GraphwrightError(Exception):
    """Base of every error that a user can cause and understand."""


class ModelError(GraphwrightError):
    """A model cannot be read, traced, written or executed."""


class VerifyError(GraphwrightError):
    """A graph breaks a structural rule.

    Attributes:
        problems: every violation found, one line each; the message names the first.
    """

    def __init__(self, problems: list[str]):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"invalid graph: {problems[0]}{more}")
        self.problems = list(problems)


class ShapeError(GraphwrightError):
    """A shape is unknown, symbolic or contradictory where it must be static."""


class PassError(GraphwrightError):
    """A pass cannot do what it was asked to do, or broke the graph."""


class PassCrash(PassError):
    """A pass raised, left an invalid graph, or changed the outputs although it is lossless: its own bug.

    Attributes:
        index: Position of the pass in its pipeline, from 0; -1 where it is not known.
        kind: "raised", "graph" (invalid), "shapes" (lost or contradictory), "numbers" (other outputs) or
            "analysis" (one that it claims to preserve is wrong).
        before: The model as it was right before the pass, or None where it could not be had again.
        reproducer: The file that shows the crash again, or None where none was written yet.
    """

    index: int = -1
    kind: str = "raised"
    before: Any = None
    reproducer: str | None = None


class PipelineError(PassError):
    """A pipeline text names an unknown pass or option, or does not parse."""


class TargetError(GraphwrightError):
    """A target is unknown, or what it needs (compiler, device, instruction set) is absent."""


class CompileError(GraphwrightError):
    """A model cannot be lowered or compiled, or the compiled model computes something else."""


class ToolError(GraphwrightError):
    """A command was given a bad file, folder or option."""


def one_line(error: BaseException) -> str:
    """An exception of somebody else's code for use in a message: its type, and its text on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
