"""Rules of `canonicalize`, by what they know about: signs, bounds, numbers, logic, reductions."""
