"""Text for people: numbers, times, records in words, tables and colours. The standard library alone."""
