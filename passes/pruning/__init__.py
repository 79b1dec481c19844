"""What to prune and how much of it: decisions on top of the dependency analysis in `passes/channels/`.

- `members`: the weights and activations at which the channels of a group show.
- `moments`: statistics of activations over calibration data, streamed.
- `importance`: criteria by name (also of your own), reduced and normalized to one score per class.
- `ranking`: which classes go, given the scores and a ratio; `rounding` to counts that the target likes.
- `budget`, `latency`: the smallest ratio that meets a budget, and what a pruned model would cost.
- `recovery`: least-squares reconstruction and bias compensation of what reads pruned channels.
- `blocks`: residual branches and layers that can be left out, and how little each does.
- `sensitivity`: how much each group, and all together, cost in accuracy.
- `counting`: the operation counts of other tools.
"""

from .importance import Importance, View, importance_names, register_importance

__all__ = ["Importance", "View", "importance_names", "register_importance"]
