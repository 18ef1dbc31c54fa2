"""Plug-ins: a name in YAML is a file in a folder, and the signature in that file is its config schema."""
