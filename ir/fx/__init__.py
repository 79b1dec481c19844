"""From the graph to a `torch.fx.GraphModule`: one form per operator, one file per family of operators."""
