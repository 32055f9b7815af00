"""Engines that run the jobs of a search: here, in worker processes, on Ray."""
