"""Provide layers, metrics and statistics that plug-ins share, as pure functions and small modules."""
