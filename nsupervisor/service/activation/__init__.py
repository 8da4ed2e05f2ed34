"""Starts of workloads by what others do: connections, and changes of files."""
