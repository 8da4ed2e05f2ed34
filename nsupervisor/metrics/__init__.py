"""What the service measures, as OpenMetrics."""
