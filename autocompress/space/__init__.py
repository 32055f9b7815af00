"""What may be chosen: spaces and recipes, from YAML to typed objects, each error of a file told."""
