"""Commands that take no option twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

from typer.core import TyperCommand, TyperOption

from ..ir.errors import ToolError


class OnceCommand(TyperCommand):
    """Refuses an option with a value that is given twice, of which all but the last would be lost."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As the base class, after counting.

        Raises:
            ToolError: an option that takes one value is given more than once.
        """
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            for option, times in Counter(order).items():
                if times > 1 and _takes_one_value(option):
                    raise ToolError(f"{option.opts[-1]} is given {times} times; it takes one value")
        return super().parse_args(ctx, args)


def _takes_one_value(parameter: Any) -> bool:
    return isinstance(parameter, TyperOption) and not (
        parameter.multiple or parameter.is_flag or parameter.count
    )
