"""Container images as root file systems: read, check, unpack, and keep them. Nothing here trusts an archive."""
