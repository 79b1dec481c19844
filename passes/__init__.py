"""Passes: the manager, the rewriting driver, and one file per pass."""
