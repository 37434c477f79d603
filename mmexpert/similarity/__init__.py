"""Scores of token sequences: (Encoding, Encoding) -> [Bq, Bt] in [-1, 1]."""
