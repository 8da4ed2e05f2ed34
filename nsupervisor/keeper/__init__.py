"""The keeper, a separate process that is the parent of every workload, and its trio client."""
