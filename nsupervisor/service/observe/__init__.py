"""History, recordings, usage and reopened log files, for people and collectors."""
