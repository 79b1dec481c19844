r"""Pipelines as text: `fold-batch-norm,prune-channels{ratio=0.5 importance=l1}`.

Grammar: passes separated by commas; options in braces, `key=value`, separated by blanks. A value that
contains a blank, comma, brace, quote or equals sign is written in double quotes, with `\"` and `\\`
inside. A named pipeline (a preset) stands for its passes and hands the selectors `only` and `skip` on to
each of them. Text and objects round-trip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..ir.errors import PipelineError
from .base import Pass
from .options import Bare, build, given_options, value_text
from .registry import PRESETS, lookup

_HANDED_ON = ("only", "skip")


@dataclass(frozen=True)
class Pipeline:
    """A sequence of passes; `str()` gives the text that parses back to it."""

    passes: tuple[Pass, ...] = ()

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def __len__(self) -> int:
        return len(self.passes)

    def __str__(self) -> str:
        return ",".join(pass_text(p) for p in self.passes)


def pass_text(instance: Pass) -> str:
    """Print one pass with the options that differ from their defaults."""
    options = " ".join(f"{key}={value_text(value)}" for key, value in given_options(instance).items())
    return f"{instance.name}{{{options}}}" if options else instance.name


def parse_pipeline(text: str) -> Pipeline:
    """Parse a pipeline text.

    Raises:
        PipelineError: Bad syntax (with the column), or an unknown pass or option, or a bad value.
    """
    return Pipeline(tuple(_Parser(text).parse()))


def as_pipeline(pipeline: str | Pass | Pipeline | list[Pass]) -> Pipeline:
    """Accept the forms in which callers give pipelines."""
    if isinstance(pipeline, Pipeline):
        return pipeline
    if isinstance(pipeline, Pass):
        return Pipeline((pipeline,))
    if isinstance(pipeline, str):
        return parse_pipeline(pipeline)
    return Pipeline(tuple(pipeline))


class _Parser:
    """Recursive descent over one line; `at` is the index of the next character."""

    def __init__(self, text: str):
        self.text = text
        self.at = 0

    def parse(self) -> list[Pass]:
        passes: list[Pass] = []
        self._blanks()
        if self.at == len(self.text):
            return passes
        while True:
            passes.extend(self._element())
            self._blanks()
            if self.at == len(self.text):
                return passes
            self._expect(",", "',' between passes")

    def _element(self) -> list[Pass]:
        self._blanks()
        name = self._word("a pass name")
        self._blanks()
        options = self._options() if self._peek() == "{" else {}
        if name not in PRESETS:
            return [build(lookup(name), options)]
        other = sorted(set(options) - set(_HANDED_ON))
        if other:
            raise PipelineError(
                f"'{name}' is a named pipeline: it hands {' and '.join(_HANDED_ON)} on to its passes and has "
                f"no option '{other[0]}'; write its passes out ('graphwright passes' lists them)"
            )
        members = parse_pipeline(PRESETS[name])
        return [build(type(each), {**given_options(each), **options}) for each in members]

    def _options(self) -> dict[str, str]:
        self.at += 1
        options: dict[str, str] = {}
        while True:
            self._blanks()
            if self._peek() == "}":
                self.at += 1
                return options
            key = self._word("an option name or '}'")
            self._expect("=", f"'=' after option '{key}'")
            if key in options:
                raise PipelineError(f"option '{key}' is given twice (column {self.at})")
            options[key] = self._quoted() if self._peek() == '"' else Bare(self._word(f"a value for '{key}'"))

    def _quoted(self) -> str:
        start = self.at
        self.at += 1
        out: list[str] = []
        while self._peek() != '"':
            if self._peek() == "\\":
                self.at += 1
            if self.at >= len(self.text):
                raise PipelineError(f"quote opened at column {start + 1} is never closed: {self.text}")
            out.append(self.text[self.at])
            self.at += 1
        self.at += 1
        return "".join(out)

    def _word(self, what: str) -> str:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in ' \t\n,{}="':
            self.at += 1
        if start == self.at:
            raise self._error(what)
        return self.text[start : self.at]

    def _peek(self) -> str:
        return self.text[self.at] if self.at < len(self.text) else ""

    def _blanks(self) -> None:
        while self._peek() in (" ", "\t", "\n") and self._peek():
            self.at += 1

    def _expect(self, char: str, what: str) -> None:
        if self._peek() != char:
            raise self._error(what)
        self.at += 1

    def _error(self, expected: str) -> PipelineError:
        found = f"'{self._peek()}'" if self._peek() else "the end"
        return PipelineError(
            f"pipeline text: expected {expected} at column {self.at + 1}, found {found}: {self.text}"
        )
