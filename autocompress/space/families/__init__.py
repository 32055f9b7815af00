"""Families of methods: settings that a space lists, and their methods for one matrix."""
