"""What a person asks for: one frozen class a verb, for the command line, Python and storage."""
