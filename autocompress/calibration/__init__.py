"""What is measured once per model: statistics, loss increases, and the menu of options."""
