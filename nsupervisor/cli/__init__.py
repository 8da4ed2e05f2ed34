"""The `nsupervisor` command and its subcommands."""
