"""`make coverage`: published architectures, pruned and proven."""
