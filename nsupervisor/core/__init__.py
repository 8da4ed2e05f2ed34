"""Pure decisions: events in, actions out. No clock, no file, no trio."""
