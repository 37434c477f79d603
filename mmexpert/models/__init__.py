"""Encodings -> Pair: how towers and heads are joined."""
