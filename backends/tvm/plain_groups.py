"""Groups as plain tensor expressions."""

from __future__ import annotations

from collections.abc import Sequence

from .emission import Emitted, te_parameters
from .lazy import Lazy, element
from .plain import plain_anchor, stored
from .roles import REDUCTIONS
from .spec import GroupSpec, evaluate


def emit_plain(spec: GroupSpec, dots: bool = False) -> Emitted:
    """The group as a function of tensor expressions, one stage per reduction and one for the output.

    With `dots` products of int8 are written as `dp4a`, which CUDA has.
    """
    from tvm import te

    from .integer_dots import dot_anchor

    parameters = te_parameters(spec)
    given: dict[int, Sequence[Lazy]] = {}
    if spec.anchor >= 0:
        op, inputs = spec.anchor_op, spec.members[spec.anchor].inputs
        inputs = inputs[:1] if op.type in REDUCTIONS else inputs
        refs = [ref for ref in inputs if ref is not None]
        lazies = iter(evaluate(spec, parameters.bind, parameters.derive, wanted=refs))
        args = [next(lazies) if ref is not None else None for ref in inputs]
        if refs and not refs[0].is_external:
            args[0] = stored(args[0], "prologue") if args[0] is not None else None
        value = dot_anchor(spec, parameters.derive, args) if dots else None
        given[spec.anchor] = [value if value is not None else plain_anchor(op, args)]
    (lazy,) = evaluate(spec, parameters.bind, parameters.derive, given=given)
    rank, layout = len(lazy.shape), spec.layout
    shape = layout.stored_shape(lazy.shape)
    output = te.compute(shape, lambda *index: element(lazy, layout.to_logical(index, rank)), name="out")
    func = te.create_prim_func([*parameters.buffers, output])
    kind = spec.anchor_op.type.lower() if spec.anchor >= 0 else "injective"
    return Emitted(func, tuple(parameters.arguments), kind)
