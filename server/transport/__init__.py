"""HTTP: connections, bodies, timeouts, shutdown."""
