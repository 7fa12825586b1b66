"""Explain dictionary latents, score the explanations, and say what the scores mean. Imports no torch."""
