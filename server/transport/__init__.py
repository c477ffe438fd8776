"""HTTP/1.1: connections, middleware, request bodies, timeouts and graceful shutdown."""
