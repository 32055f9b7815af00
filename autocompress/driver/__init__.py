"""The run of a search: what is proposed, allocated, priced and measured."""
