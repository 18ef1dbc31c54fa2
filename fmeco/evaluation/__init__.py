"""Measure models: metrics of a split, comparisons, probes, baselines, and the dry run."""
