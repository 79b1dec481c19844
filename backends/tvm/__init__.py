"""Lowering to TVM Relax: fusion groups, layouts, kernels, schedules, and the library they are built into."""
