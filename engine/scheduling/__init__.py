"""The scheduler: chooses the next unit of work. Plain Python without tensors."""
