"""The products, with one file each."""
