"""What a known function is, and the list of them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

import onnx_ir as ir

from ...ir.errors import PassError
from ...ir.opset import CANONICAL_OPSET

DOMAIN = "graphwright"
"""Operator domain of all functions made here; there is one version of it."""

VERSION = 1

_NAME = re.compile(r"\s*(\w+)")
_NO_DEFAULT = re.compile(r"(\w+)\s*:\s*\w+\s*[,>]")
_known: dict[str, KnownFunction] = {}


@dataclass(frozen=True)
class KnownFunction:
    """A function of the domain `graphwright`.

    Attributes:
        name: Its name, the op type of calls.
        text: Definition in ONNX text syntax, without domain and opset.
        reference: What it computes and where that is described.
        inputs, outputs: Names of the formal parameters.
        required: Attribute parameters that every call must give.
        optional: Attribute parameters with a default.
    """

    name: str
    text: str
    reference: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    required: frozenset[str]
    optional: frozenset[str]

    def build(self, opset: int = CANONICAL_OPSET) -> ir.Function:
        """A new copy of the function, written in standard operators of version `opset`; nodes are unnamed."""
        function = _parse(self.text, opset)
        function.doc_string = self.reference
        return function


def define(text: str, reference: str) -> KnownFunction:
    """Make a function known; the same definition twice is one function.

    Args:
        text: `Name <attributes> (inputs) => (outputs) { body }` in ONNX text syntax.
        reference: One sentence: the formula, and the paper or the operator that it follows.

    Raises:
        PassError: The text is wrong, or the name stands for something else already.
    """
    text = textwrap.dedent(text).strip()
    match = _NAME.match(text)
    known = _known.get(match.group(1)) if match else None
    if known is not None:
        if known.text != text:
            raise PassError(f"function '{known.name}' is defined already, with another body")
        return known
    parsed = _parse(text, CANONICAL_OPSET)
    attributes = parsed.attributes.values()
    function = KnownFunction(
        parsed.name,
        text,
        reference,
        tuple(value.name or "" for value in parsed.inputs),
        tuple(value.name or "" for value in parsed.outputs),
        frozenset(each.name for each in attributes if each.value is None),
        frozenset(each.name for each in attributes if each.value is not None),
    )
    _known[function.name] = function
    return function


def known_functions() -> dict[str, KnownFunction]:
    """The functions that the modules imported so far define, by name."""
    return dict(_known)


def _parse(text: str, opset: int) -> ir.Function:
    import onnx.parser

    typed = _NO_DEFAULT.search(text.partition("(")[0])
    if typed:
        # The parser would read it as a default of zero.
        raise PassError(f"attribute '{typed.group(1)}' has a type but no default; write its name alone")
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n'
    try:
        return ir.serde.deserialize_function(onnx.parser.parse_function(header + text))
    except onnx.parser.ParseError as error:
        raise PassError(f"this is no function in ONNX text syntax: {error}") from error
