"""One file per way to store a matrix, and the plan that says which matrix is stored how."""
