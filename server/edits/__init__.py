"""Images that clients send: uploads, processes with limits that decode them, masks, and fitting to a size."""
