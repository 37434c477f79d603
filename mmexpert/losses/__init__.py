"""Features or scores, with positives -> named scalars."""
