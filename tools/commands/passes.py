"""`graphwright passes [NAME]`: what can stand in a pipeline."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...ir.errors import GraphwrightError
from ..console import print_json, print_line, print_table
from ..options import JsonOption, PluginOption, load_plugins

if TYPE_CHECKING:
    from ...passes.base import Pass
    from ...passes.options import Option


SELECTORS = ("only", "skip")
"""Options that every pass has."""


def passes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One pass to describe in full.", show_default=False)
    ] = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the passes, or describe one: purpose, lossless or not, options with types and defaults."""
    load_plugins(plugin)
    from ...passes.registry import PRESETS, lookup

    if name is not None and name not in PRESETS:
        _describe(lookup(name), as_json)
        return
    if name is not None:
        print_json({"name": name, "pipeline": PRESETS[name]}) if as_json else print_line(
            f"{name} = {PRESETS[name]}"
        )
        return
    classes, broken = _load_all()
    if as_json:
        print_json({"passes": [_as_json(cls) for cls in classes], "presets": PRESETS, "broken": broken})
        return
    rows = [(cls.name, _lossless(cls), _purpose(cls), _option_names(cls)) for cls in classes]
    print_table(None, ["pass", "lossless", "purpose", "options"], rows, left=4)
    print_line(
        "Every pass also takes only= and skip=: a regular expression on node name, module path or op type."
    )
    for preset, pipeline in PRESETS.items():
        print_line(f"{preset} = {pipeline}")
    for problem in broken.values():
        print_line(f"not usable: {problem}")


def _load_all() -> tuple[list[type[Pass]], dict[str, str]]:
    """All passes, and by name why one that another package announces does not load."""
    from ...passes.registry import all_names, lookup

    classes: list[type[Pass]] = []
    broken: dict[str, str] = {}
    for name in all_names():
        try:
            classes.append(lookup(name))
        except GraphwrightError as error:
            broken[name] = str(error)
    return classes, broken


def _describe(cls: type[Pass], as_json: bool) -> None:
    from ...passes.options import options_of

    if as_json:
        print_json(_as_json(cls))
        return
    print_line(f"{cls.name} ({'lossless' if cls.lossless else 'lossy'})")
    print_line()
    print_line(inspect.cleandoc(cls.__doc__ or ""))
    print_line()
    rows = [(option.name, option.type, _default(option), option.help) for option in options_of(cls)]
    print_table(None, ["option", "type", "default", "meaning"], rows, left=4)
    for word, analyses in (("needs", cls.needs), ("preserves", cls.preserves)):
        if analyses:
            print_line(f"{word} the analyses: {', '.join(analysis.name for analysis in analyses)}")


def _as_json(cls: type[Pass]) -> dict[str, Any]:
    from ...passes.options import options_of

    return {
        "name": cls.name,
        "purpose": _purpose(cls),
        "lossless": cls.lossless,
        "needs": [analysis.name for analysis in cls.needs],
        "preserves": [analysis.name for analysis in cls.preserves],
        "options": [
            {
                "name": option.name,
                "type": option.type,
                "required": option.required,
                "default": None if option.required else option.default,
                "help": option.help,
            }
            for option in options_of(cls)
        ],
    }


def _purpose(cls: type[Pass]) -> str:
    return inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]


def _lossless(cls: type[Pass]) -> str:
    return "yes" if cls.lossless else "no"


def _option_names(cls: type[Pass]) -> str:
    from ...passes.options import options_of

    return ", ".join(option.name for option in options_of(cls) if option.name not in SELECTORS)


def _default(option: Option) -> str:
    from ...passes.options import value_text

    return "required" if option.required else value_text(option.default)
