"""The plan of a reload, decided from two configurations."""
