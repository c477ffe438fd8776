"""The front's side of the queue: submits requests and receives their results."""
