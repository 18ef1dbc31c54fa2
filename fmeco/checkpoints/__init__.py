"""Checkpoints: their format, writing and verified loading, the transplant, and where a REF points to."""
