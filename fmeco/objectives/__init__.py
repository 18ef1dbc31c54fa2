"""Objectives, one per file: each turns a Batch into a Loss. The name of the file is the name in YAML."""
