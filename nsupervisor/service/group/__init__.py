"""Groups of workloads: shared limits, rules that act on a member, and placement."""
