"""Inputs -> Encoding: one tower a file."""
