"""Decompositions of a matrix folded to a tensor, and their fits."""
