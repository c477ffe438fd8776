"""Compiles the transformers' blocks beside serving."""
