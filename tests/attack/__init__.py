"""Attacks on the listeners of the real service, and what must hold meanwhile and afterwards. See docs/chaos.md."""
