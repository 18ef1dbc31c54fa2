"""Assembly: a config becomes a training run in four stages, each a frozen value that the next one takes whole."""
