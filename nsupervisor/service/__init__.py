"""The trio part of the supervisor: turns kernel events into inputs, and actions into system calls."""
