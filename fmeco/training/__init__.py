"""Training runs: pretrain, finetune, resume, and the one loop."""
