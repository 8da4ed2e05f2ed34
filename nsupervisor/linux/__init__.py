"""Thin typed wrappers around system calls; standard library only."""
