"""Few-step generators learnt from trained ones."""
