"""Model functions: fused layers that the standard has no operator for, with a body every runtime can run.

A fusion that yields no standard operator calls a function of the domain `graphwright`. Its body, in standard
operators, is stored in the model once, so any ONNX runtime can still run the file, and a backend that knows
the function by its name may do better than the body.

**Define** a function next to the rule that makes it, in ONNX's own text syntax; the name must be new:

    SWISH = define(
        '''
        Swish (x) => (y)
        {
            gate = Sigmoid (x)
            y = Mul (x, gate)
        }
        ''',
        "x sigmoid(x), Ramachandran, Zoph and Le, 2017",
    )

- Attribute parameters stand behind the name: `Name <axis: int = -1, alpha: float = 1.0, pads> (x) => (y)`.
  One with a default may be left out by a call; one without (written without type) must be given by every
  call. The body refers to them: `y = Softmax <axis: int = @axis> (x)`.
- Trailing or middle inputs may be left out by a call (None) where the operator that reads them allows it.
- Bodies know no types. A number is cast to that of an input: `c = Constant <value_float: float = @alpha> ()`
  followed by `k = CastLike (c, x)`. Cast like an input of the function, not like an inner value: inlining
  then turns it into a constant.
- Where a body depends on ranks, shapes or on which inputs there are, define one function per variant under a
  name that tells them apart (`ConvRelu`, `ConvAddRelu`); `define` may be called while a pass runs, and
  calling it again with the same text returns the same function.
- Only standard operators, no subgraph that reads the function's attributes as graphs, no recursion.

**Call** it in a rule:

    (y,) = call_function(rewriter, node, SWISH, [x])
    rewriter.replace(node, [y])

`call_function` adds the function to the model when it is first called, checks inputs and attributes, and
inserts the call in front of the anchor. `eliminate-dead` drops functions that nothing calls any more.

**Match** a call in a pattern with `op("Swish", x, domain=DOMAIN)`; by hand with `called(value, SWISH)`. A
rule that starts at calls lists them in `op_types` as `"graphwright::Swish"`.

The driver leaves bodies of the domain `graphwright` alone, so a rule never fires on the very parts it put
there.

**Inline** with `inline_calls(rewriter, wanted)` or the pass `inline-functions`; inlined nodes keep the name
of the function they come from in their metadata (`FUNCTION_KEY`). A pass that looks at standard operators
only begins with `flatten_functions(model, context)`, which inlines all and says so in the report.
"""

from __future__ import annotations

from .calls import call_function, called, is_known
from .definitions import DOMAIN, KnownFunction, define, known_functions
from .flatten import flatten_functions
from .inline import FUNCTION_KEY, inline_calls, why_not_inline

__all__ = [
    "DOMAIN",
    "FUNCTION_KEY",
    "KnownFunction",
    "call_function",
    "called",
    "define",
    "flatten_functions",
    "inline_calls",
    "is_known",
    "known_functions",
    "why_not_inline",
]
