"""Everything a person browses, in MLflow."""
