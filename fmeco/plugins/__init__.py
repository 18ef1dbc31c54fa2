"""Find and build plug-ins: each name in YAML is a file in a folder, whose `build` signature is its config schema."""
