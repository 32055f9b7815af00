"""Texts, objectives and scores by them, latency, and benchmark tasks."""
