"""Check, before a start, that the host offers enough: limits, privileges, open files, and rules that work."""
