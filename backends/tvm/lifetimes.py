"""Weights outlive every run, so that the machine need not be told when it may drop them."""

from __future__ import annotations

from typing import Any

from .module_builder import WEIGHT

_KILLS = ("relax.vm.kill_object", "relax.memory.kill_tensor")


def keep_weights() -> Any:
    """A pass that removes what `KillAfterLastUse` put in for weights: an instruction of 40 bytes for each."""
    from tvm import relax
    from tvm.ir.transform import module_pass

    @relax.expr_functor.mutator
    class Keep(relax.PyExprMutator):  # type: ignore[misc]
        def visit_binding_block_(self, block: Any) -> Any:
            kept = [binding for binding in block.bindings if not _kills_weight(binding)]
            return type(block)(kept)

    @module_pass(opt_level=0, name="KeepWeights")
    def run(module: Any, _: Any) -> Any:
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                module[variable] = Keep(module).visit_expr(function)
        return module

    return run


def _kills_weight(binding: Any) -> bool:
    from tvm import ir, relax

    call = getattr(binding, "value", None)
    if not isinstance(call, relax.Call) or not isinstance(call.op, ir.Op) or call.op.name not in _KILLS:
        return False
    (killed,) = call.args
    return isinstance(killed, relax.Var) and killed.name.startswith(WEIGHT)
