"""Run training: pretrain, finetune, resume, and the one loop that they share."""
