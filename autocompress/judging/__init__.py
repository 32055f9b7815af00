"""What came of a study, judged: its front, what is picked, and what is said of methods."""
