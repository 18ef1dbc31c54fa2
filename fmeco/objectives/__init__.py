"""objectives: what is learned: Batch -> Loss; one plug-in per file."""
