"""Train one model with several processes: launch them, and communicate between them."""
