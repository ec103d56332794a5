"""Layers without decisions: each does one thing to a tensor, and knows no network, process or config."""
