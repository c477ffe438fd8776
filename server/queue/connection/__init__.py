"""The connection to the NATS servers."""
