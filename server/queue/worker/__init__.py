"""The worker's side of the queue: pulls requests and runs them on the devices of this process."""
