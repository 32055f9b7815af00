"""Finding a model's matrices, replacing them and putting them back, loading and storing models."""
