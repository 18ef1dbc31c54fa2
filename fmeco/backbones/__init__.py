"""Backbones, one per file: `build(spec, ...)` returns a Backbone. The name of the file is the name in YAML."""
