"""Fine-tuning: from an exported encoder and labels to a model that tells a label of a study."""
