"""Write and verify checkpoints, resolve REFs to weights, and load weights into models."""
