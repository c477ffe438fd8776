"""The queue that several servers share, on NATS JetStream. Imported only if a queue is set."""
