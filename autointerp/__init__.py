"""Explain dictionary latents, score the explanations, and say what the scores mean. Imports no torch."""

import sae  # noqa: F401 - stages of both packages say one line where Ctrl-C comes before they can catch it
