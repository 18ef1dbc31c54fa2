"""Using a trained model: load, predict, embed."""
