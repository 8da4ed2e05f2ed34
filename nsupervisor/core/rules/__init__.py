"""Rules: conditions on readings, sampling, victims, and group policy."""
