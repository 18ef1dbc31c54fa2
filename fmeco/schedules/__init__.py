"""Schedules, one per file: pure functions from the step to a factor on the learning rate. The name of the file is the name in YAML."""
