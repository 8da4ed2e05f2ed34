"""The nsupervisor command."""
