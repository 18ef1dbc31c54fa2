"""backbones: architectures, spec -> Backbone; one plug-in per file."""
