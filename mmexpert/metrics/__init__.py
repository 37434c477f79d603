"""Tensors -> floats."""
