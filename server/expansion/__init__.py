"""Magic prompt: a plain prompt made into a caption by a service."""
