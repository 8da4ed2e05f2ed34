"""The steps of a new process between clone3 and execve."""
