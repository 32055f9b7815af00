"""Key-value caches of an opened model."""
