"""Datasets, one per file: `build(known, whole, *, ...)` builds a Data, and `read(spec, sources)` reads new inputs."""
