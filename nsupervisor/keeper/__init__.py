"""The other process: parent of every workload; and the trio client of it."""
