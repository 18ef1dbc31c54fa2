"""What a person reads of a run: the model card and report.html."""
