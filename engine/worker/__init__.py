"""The worker process: its step loop and the measurement of its cost model."""
