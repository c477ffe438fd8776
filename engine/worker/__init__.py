"""The worker process: its loop, the scheduler and what it measures at start."""
