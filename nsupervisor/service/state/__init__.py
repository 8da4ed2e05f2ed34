"""The state file: everything that the next supervisor has to know."""
