"""What the checkpoint and the operator declare. Torch-free."""
