"""Search spaces and recipes: YAML in, typed objects out, and every error of a file at once."""
