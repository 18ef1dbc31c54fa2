"""Several processes that train one model: starting them, and talking between them."""
