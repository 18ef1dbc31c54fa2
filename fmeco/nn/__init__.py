"""Layers, metrics and statistics that plug-ins share: pure functions and small blocks."""
