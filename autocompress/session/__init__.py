"""A loaded model with its texts, statistics and cache: what every command starts from."""
