"""Assemble a training run from a config, in four stages. Each stage takes the frozen result of the one before it."""
