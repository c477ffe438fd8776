"""Which unit of work runs next: plain Python, no tensors."""
