"""What workloads and the service say, as JSON records on one stream."""
