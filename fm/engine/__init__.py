"""The training engine: Trainer, teacher, checkpoints, guards, signals, metrics, export."""
