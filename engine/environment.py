"""Environment variables that libraries read while torch is loaded. Torch-free."""

import os

_VARIABLES = {
    # Threads share the rows of the weights. By default MKL divides the tokens, and where they are few, every
    # thread reads all weights.
    "MKL_NUM_STRIPES": "2",
    # Threads that wait at a barrier sleep. By default they spin, and two processes that share cores slow
    # each other down a hundredfold.
    "OMP_WAIT_POLICY": "passive",
}


def set_up_environment() -> None:
    """Set the variables that the operator has not set. Call this before torch is imported."""
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
