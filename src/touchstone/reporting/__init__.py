"""From results to the report in both languages."""
