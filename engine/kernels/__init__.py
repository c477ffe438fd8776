"""The operations that the models are built from; each picks its implementation for the device and dtype."""
