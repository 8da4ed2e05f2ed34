"""nsupervisor: a process supervisor for Linux in which namespaces isolate, cgroups limit and tell, and policy acts."""

__version__ = "0.1.0"
