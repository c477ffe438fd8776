"""From parameters to encoded images."""
