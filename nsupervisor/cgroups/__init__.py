"""Cgroups behind one interface, whichever hierarchies the host has; and the watcher of their files."""
