"""Quantisers: continuous feature maps to codes and back."""
