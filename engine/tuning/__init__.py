"""Chooses kernels, dtype and number of threads by measurement, and keeps the choices on disk."""
