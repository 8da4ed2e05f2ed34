"""One workload instance: its actor, policy, limits, output and checkpoint inputs."""
