"""The order in which workload instances start and stop: start jobs, relations between workloads, and the registry."""
