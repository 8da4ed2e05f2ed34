"""The subcommands: one module per command, or per family of commands.

Packages that take long to import are imported when a command runs.
"""
