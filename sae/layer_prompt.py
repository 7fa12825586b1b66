"""A user's own prompt: which latents fire at which layers, and what the subject says next when one is turned up.

The first token carries no latents here as everywhere: it is an attention sink.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae.errors import InputError
from sae.hookpoints import Hookpoint
from sae.splice import Splice, spliced_logits
from sae.subject import Subject, caught, forward_inputs

LEAST_TOKENS = 2
LEAST_ACTIVATION = 1e-3
"""Latents that nowhere on the prompt fire more than this are left out (Lawson et al., arXiv 2409.04185)."""

Encoder = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From vectors of one layer [token, d] to values and indices [token, width]; a value of zero is no latent."""


@dataclass(frozen=True)
class PromptView:
    """What fires on a prompt; latents are sorted by mean layer on it, last ones first."""

    tokens: tuple[str, ...]
    """All of the prompt's, the first one included."""
    latents: npt.NDArray[np.int64]
    activations: npt.NDArray[np.float64]
    """[latent, layer, token]"""


@dataclass(frozen=True)
class Steering:
    """Next-token logits without and with a latent turned up, [vocabulary]."""

    own: npt.NDArray[np.float64]
    steered: npt.NDArray[np.float64]

    def most_changed(self, n: int) -> npt.NDArray[np.int64]:
        """Tokens whose logits change most, the largest change first."""
        return np.argsort(-np.abs(self.steered - self.own), kind="stable")[:n]


def token_ids(subject: Subject, text: str) -> Tensor:
    """The prompt's tokens [1, token].

    Raises:
        InputError: fewer than two, or more than the subject reads.
    """
    ids = subject.tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    if len(ids) < LEAST_TOKENS:
        raise InputError(f"--prompt has {len(ids)} tokens, expected at least {LEAST_TOKENS}; give a longer one")
    longest = getattr(subject.model.config.get_text_config(), "max_position_embeddings", None) or len(ids)
    if len(ids) > longest:
        raise InputError(f"--prompt has {len(ids)} tokens, the subject reads at most {longest}; give a shorter one")
    return torch.tensor([ids])


@torch.no_grad()
def prompt_view(subject: Subject, text: str, layers: Sequence[int], encoders: Sequence[Encoder]) -> PromptView:
    """Latents on a prompt.

    Args:
        subject: the model.
        text: the prompt.
        layers: numbers of the layers, ascending.
        encoders: of each layer's vectors.

    Raises:
        InputError: the prompt is too short or too long.
    """
    ids = token_ids(subject, text)
    zero = torch.zeros(1, dtype=torch.int64)
    found = caught(subject, ids, zero, zero, [Hookpoint(layer) for layer in layers])
    rows = []
    for place, (x, encode) in enumerate(zip(found, encoders, strict=True)):
        values, indices = (part.cpu() for part in encode(x[0, 1:].float()))
        where = (values > LEAST_ACTIVATION).nonzero(as_tuple=True)
        here = torch.full_like(where[0], place)
        rows.append((indices[where], here, where[0] + 1, values[where]))
    latent, layer, token, value = (torch.cat(parts).numpy() for parts in zip(*rows, strict=True))
    latents, row = np.unique(latent, return_inverse=True)
    activations = np.zeros((len(latents), len(layers), ids.shape[1]))
    activations[row, layer, token] = value
    by_layer = activations.sum(2)
    order = np.argsort(-(by_layer @ np.array(layers, float)) / by_layer.sum(1), kind="stable")
    tokens = tuple(subject.tokenizer.decode([token]) for token in ids[0].tolist())
    return PromptView(tokens, latents[order], activations[order])


@torch.no_grad()
def steering(subject: Subject, text: str, layer: int, added: Callable[[Tensor], Tensor]) -> Steering:
    """What the subject says after a prompt when something is added to the stream at its last position.

    Args:
        subject: the model.
        text: the prompt.
        layer: the block after which it is added.
        added: what is added to vectors [token, d], in their units.

    Raises:
        InputError: the prompt is too short or too long, or the subject has no such layer.
    """
    subject.check_layer(layer)
    ids = token_ids(subject, text)
    zero = torch.zeros(1, dtype=torch.int64)
    inputs = forward_inputs(subject, ids, zero, zero)
    last = torch.zeros(ids.shape, dtype=torch.bool)
    last[0, -1] = True
    place = Hookpoint(layer)
    splice = Splice(place, place, lambda x: x + added(x))
    own, steered = (spliced_logits(subject, inputs, last, s)[0, -1].double().cpu().numpy() for s in (None, splice))
    return Steering(own, steered)
