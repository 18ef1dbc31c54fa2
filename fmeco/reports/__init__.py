"""Write a run's logs (metrics.jsonl, run.log, TensorBoard), its report.html, and the model cards of its checkpoints."""
