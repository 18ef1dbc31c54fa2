"""Augmentations of training samples, one per file; the name of the file is the name in YAML."""
