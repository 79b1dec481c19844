"""Choosing the parameters of kernel templates by measurement, and the records of what was measured."""
