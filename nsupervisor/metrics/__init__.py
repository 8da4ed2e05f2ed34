"""The service's metrics, exposed in the OpenMetrics format."""
