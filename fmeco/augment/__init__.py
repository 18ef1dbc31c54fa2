"""augment: how training samples vary; one plug-in per file."""
