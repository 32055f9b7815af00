"""What a search will take, before it is run."""
