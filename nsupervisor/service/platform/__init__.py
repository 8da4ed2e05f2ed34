"""The operating system as the service uses it: the seam, and what this process and this host can do."""
