"""Trains the stored weights of a compressed model against the dense one."""
