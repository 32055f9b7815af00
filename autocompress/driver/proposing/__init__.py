"""What may be tried: allocations, knobs, neighbours, uniform baselines."""
