"""Use a trained model: load it, predict new inputs, embed datasets."""
