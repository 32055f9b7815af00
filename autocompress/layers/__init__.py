"""Modules that hold a matrix in a stored form and compute with it."""
