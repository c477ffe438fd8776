"""LoRA adapters: which there are, who may use them, and which a request applies."""
