"""Schedules, pure functions from a step to the factor on the learning rate, one per file; the name of the file is the name in YAML."""
