"""Who may refuse a prompt or an image."""
