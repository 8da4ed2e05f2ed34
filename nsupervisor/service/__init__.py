"""The trio shell: turns kernel facts into events, and actions into system calls."""
