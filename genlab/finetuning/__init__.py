"""Parameter-efficient fine-tuning of trained networks."""
