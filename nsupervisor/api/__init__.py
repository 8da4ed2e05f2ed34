"""HTTP on a Unix socket: the server's application and the standard-library client."""
