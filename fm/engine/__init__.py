"""The training engine: Trainer, teacher, checkpoints, guards, signals, metrics, export. It knows no objective by name."""
