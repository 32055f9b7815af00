"""Finding the matrices of a model, replacing them and putting them back, loading and storing models."""
