"""Losses between images and their reconstructions, and the networks that judge them."""
