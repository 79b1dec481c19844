"""Options of a pass: read off its dataclass fields, parsed from and printed to text."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import textwrap
import types
import typing
from dataclasses import dataclass
from typing import Any

from ..ir.errors import PipelineError
from .base import Pass

_BOOLS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


@dataclass(frozen=True)
class Option:
    """One option of a pass: name, type as text, default value and help line."""

    name: str
    type: str
    default: Any
    help: str

    @property
    def required(self) -> bool:
        """Whether the option has no default."""
        return self.default is dataclasses.MISSING


def options_of(cls: type[Pass]) -> list[Option]:
    """List the options of a pass class, its own first, the selectors last."""
    hints = typing.get_type_hints(cls)
    help_by_name = _field_docstrings(cls)
    found = [
        Option(f.name, _type_text(hints[f.name]), _default_of(f), help_by_name.get(f.name, ""))
        for f in dataclasses.fields(cls)
    ]
    own = [option for option in found if option.name not in ("only", "skip")]
    return own + [option for option in found if option.name in ("only", "skip")]


def build(cls: type[Pass], values: dict[str, Any]) -> Pass:
    """Make a pass from option values, given as text or already typed.

    Raises:
        PipelineError: An option is unknown, missing, or its value has the wrong type; the message names it.
    """
    hints = typing.get_type_hints(cls) if values else {}
    names = [f.name for f in dataclasses.fields(cls)]
    typed: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in names:
            raise PipelineError(f"pass '{cls.name}' has no option '{key}'{_suggest(name, names)}")
        if name in typed:
            raise PipelineError(f"pass '{cls.name}': option '{key}' is given twice")
        typed[name] = _convert(cls.name, key, hints[name], value)
    # Not `options_of`: that reads the source for help texts.
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if _default_of(f) is dataclasses.MISSING and f.name not in typed
    ]
    if missing:
        raise PipelineError(f"pass '{cls.name}' needs option '{missing[0]}'")
    try:
        return cls(**typed)
    except ValueError as error:
        raise PipelineError(f"pass '{cls.name}': {error}") from None


def given_options(instance: Pass) -> dict[str, Any]:
    """Return the options of `instance` that differ from their defaults, in field order."""
    return {
        f.name: getattr(instance, f.name)
        for f in dataclasses.fields(instance)
        if getattr(instance, f.name) != _default_of(f)
    }


def value_text(value: Any) -> str:
    """Print an option value the way a pipeline text spells it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    text = repr(value) if isinstance(value, float) else str(value)
    plain = text and all(c not in ' ,{}="\\\n\t' for c in text)
    # The words that mean None and True must stay text when they were text.
    if isinstance(value, str) and (not plain or text == "none"):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


def _convert(owner: str, key: str, hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, Bare) and value == "none" and type(None) in arguments):
            return None
        rest = [a for a in arguments if a is not type(None)]
        for candidate in rest[:-1]:
            try:
                return _convert(owner, key, candidate, value)
            except PipelineError:
                continue
        return _convert(owner, key, rest[-1], value)
    if origin is typing.Literal:
        for choice in arguments:
            if value == choice or str(value) == str(choice):
                return choice
        choices = ", ".join(map(str, arguments))
        raise PipelineError(f"pass '{owner}': option '{key}' must be one of {choices}; got '{value}'")
    expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(hint)
    try:
        if hint is bool:
            return value if isinstance(value, bool) else _BOOLS[str(value).lower()]
        if hint is int:
            if isinstance(value, (bool, float)):
                raise ValueError
            return int(value)
        if hint is float:
            if isinstance(value, bool):
                raise ValueError
            return float(value)
    except (KeyError, ValueError):
        raise PipelineError(f"pass '{owner}': option '{key}' must be {expected}; got '{value}'") from None
    if hint is str:
        return str(value)
    return value


class Bare(str):
    """An option value that was written without quotes."""


def _default_of(f: dataclasses.Field) -> Any:
    if f.default is not dataclasses.MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else dataclasses.MISSING


def _suggest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; it has: {', '.join(names)}"


def _type_text(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "|".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return "|".join("none" if a is type(None) else _type_text(a) for a in arguments)
    return getattr(hint, "__name__", str(hint))


def _field_docstrings(cls: type) -> dict[str, str]:
    """Map field names to the string literal that follows the field in the class body."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base is object or not dataclasses.is_dataclass(base):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for statement, following in itertools.pairwise(body):
            is_field = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
            is_text = (
                isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
                and isinstance(following.value.value, str)
            )
            if is_field and is_text:
                found[statement.target.id] = " ".join(following.value.value.split())  # type: ignore[union-attr, attr-defined]
    return found
