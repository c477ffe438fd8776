"""Linear layers with quantised weights, and how they are made and multiplied."""
