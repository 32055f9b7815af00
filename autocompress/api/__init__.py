"""The Python API: the same words as the command line, put together from the floors below."""
