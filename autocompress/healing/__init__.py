"""Trains the stored numbers of a compressed model against the dense one."""
