"""Files on the broker, which are larger than its messages."""
