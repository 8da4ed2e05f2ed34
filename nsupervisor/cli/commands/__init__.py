"""One module per subcommand, or per family of them; what is heavy is imported when a command runs."""
