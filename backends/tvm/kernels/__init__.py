"""Anchor kernels for CPU targets: each a spec, a compute, a schedule and a weight packer."""
