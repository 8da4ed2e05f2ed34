"""The products, one file each."""
