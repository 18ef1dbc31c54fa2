"""Datasets: each file's `build(known, whole, *, ...)` makes a Data, its `read(spec, sources)` reads new inputs."""
