"""Reload: from the configuration in force to another while everything runs."""
