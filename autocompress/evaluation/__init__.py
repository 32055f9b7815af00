"""Texts, perplexity, divergence, latency, and benchmark tasks."""
