"""Chaos: the real service under faults, and what must hold after each of them. See docs/chaos.md."""
