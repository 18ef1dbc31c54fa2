"""YAML (and --set) -> one frozen, complete RunConfig, checked before torch is imported."""
