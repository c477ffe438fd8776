"""LoRA adapters: their files, and those in memory."""
