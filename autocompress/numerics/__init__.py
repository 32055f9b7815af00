"""Tensors in, tensors out: the decompositions, rounding and packing."""
