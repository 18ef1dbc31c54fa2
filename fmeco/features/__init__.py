"""Features of frozen networks, computed once: extraction, and splitting a network at its frozen part."""
