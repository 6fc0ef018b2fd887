"""reference.py imports what the tests do without: it is a program, not a test."""

collect_ignore = ["reference.py"]
