"""The inference engine: a torch-free client for the server's process, and one worker process per device."""
