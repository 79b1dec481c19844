"""The operator set that every graph inside the house is written in."""

CANONICAL_OPSET = 23
