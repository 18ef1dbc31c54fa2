"""Read weights that other tools saved: files and shards, harmless objects beside them, and other names."""
