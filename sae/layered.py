"""Which latent fires where at which layer: beside the latent cache of a multi-layer dictionary. Needs no torch.

`layered.safetensors` in the folder of the cache: offsets i64 [n_latents + 1], token_index u32, layer u8, activation
f16 [nnz], by latent, then by token, then by layer. `layer` is a place in `layers`, the blocks that the dictionary
reads, which the manifest's config names. `entries.safetensors` beside it holds the largest activation over layers of
each token, so that everything else reads such a cache like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sae.artifacts import read_manifest
from sae.errors import InputError
from sae.latents import Array, map_tensors

LAYERED = "layered.safetensors"


@dataclass(frozen=True)
class LayeredEntries:
    """Entries (token, layer, activation) of every latent. Arrays are memory-mapped."""

    layers: tuple[int, ...]
    """Blocks, ascending, counted from zero."""
    offsets: Array
    token_index: Array
    layer: Array
    """Place in `layers`."""
    activation: Array

    @classmethod
    def open(cls, folder: Path) -> LayeredEntries:
        """Those of a complete latent cache.

        Raises:
            InputError: the cache is missing or damaged, or its dictionary reads one layer only.
        """
        mend = f"make it with python -m sae.cache --run {folder.parent.parent} ..."
        config = read_manifest(folder, "latents", mend).config
        if not (folder / LAYERED).exists():
            raise InputError(f"{folder} is the cache of a dictionary that reads one layer; name one of several layers")
        try:
            arrays = map_tensors(folder / LAYERED)
            entries = cls(tuple(config["layers"]), **arrays)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder / LAYERED} is damaged ({error}); remove {folder} and {mend}") from None
        sizes = {len(entries.token_index), len(entries.layer), len(entries.activation), int(entries.offsets[-1])}
        if len(sizes) > 1:
            raise InputError(f"{folder / LAYERED} is damaged (its parts do not fit); remove {folder} and {mend}")
        return entries

    @property
    def n_latents(self) -> int:
        """Latents of the dictionary, dead ones included."""
        return len(self.offsets) - 1
