"""The networks: text encoder, DiT and VAE decoder."""
