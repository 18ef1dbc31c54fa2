"""Provide the parts of object detection that plug-ins share, as pure functions."""
