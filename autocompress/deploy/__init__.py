"""The picked plan as a model on disk."""
