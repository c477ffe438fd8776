"""Content credentials: an image that says, signed, where it comes from."""
