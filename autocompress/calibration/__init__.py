"""What is measured once per model: statistics, damage, the menu of options, and their cache."""
