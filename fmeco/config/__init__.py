"""Read YAML and --set into one frozen, complete RunConfig, and check it before torch is imported."""
