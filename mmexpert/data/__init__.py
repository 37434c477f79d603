"""Data sets, and the way from their records to batches."""
