"""Dictionaries of a run as the multi-layer analysis uses them: one over several layers, and those of single layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae.artifacts import check_contents, complete_folders, dictionary_folder, latents_folder, read_json, read_manifest
from sae.checkpoint import load_dictionary
from sae.errors import InputError
from sae.evaluate import Placed, placed_at
from sae.hookpoints import residual_streams
from sae.latents import LatentCache
from sae.layer_maps import LayerMaps, load_layer_maps
from sae.model import SparseAutoencoder

SAME = ("architecture", "k", "n_latents", "seed", "groups", "null", "sparsity", "skip_embed")
"""What a single-layer dictionary must share with the multi-layer one to be its baseline."""


@dataclass(frozen=True)
class LayerDictionary:
    """A dictionary that can be applied at any layer of the residual stream."""

    name: str
    layers: tuple[int, ...]
    """Where it was trained: blocks, ascending."""
    model: SparseAutoencoder
    maps: LayerMaps | None
    facts: dict[str, Any]
    fingerprint: str

    def seen(self, x: Tensor, layer: int) -> Tensor:
        """What the autoencoder sees of vectors of a layer [token, d]."""
        return x if self.maps is None else self.maps.apply(x, self.maps.place_of(layer))

    def encode(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Values and indices [token, width] of the active latents of vectors of a layer [token, d]."""
        return self.model.encode(self.seen(x, layer))

    def placed(self, layers: Sequence[int]) -> tuple[Placed, ...]:
        """It at those of these layers at which it can be applied."""
        known = [layer for layer in layers if self.maps is None or layer in self.maps.layers]
        return placed_at(self.model, residual_streams(known), maps=self.maps)

    def added(self, x: Tensor, layer: int, latent: int, amount: float) -> Tensor:
        """What so much more activation of a latent adds to the reconstruction of x [token, d], in the units of x."""
        units = self.model.prepared(self.seen(x, layer))[1]
        shift: Tensor = (amount * self.model.w_dec[latent] * units.factor).expand_as(x)
        if self.maps is None:
            return shift
        place = self.maps.place_of(layer)
        return self.maps.invert(shift, place) - self.maps.invert(torch.zeros_like(shift), place)


def load_layered(run: Path, name: str | None) -> LayerDictionary:
    """The multi-layer dictionary of a run of this name, or its only one.

    Raises:
        InputError: there is none, several and no name, or a damaged one.
    """
    known = [folder.name for folder, facts in _configs(run) if facts.get("layers")]
    train = f"train one with python -m sae.train --run {run} --multi-layer ..."
    if not known:
        raise InputError(f"{run} has no multi-layer dictionary; {train}")
    if name is None and len(known) > 1:
        raise InputError(f"{run} has several multi-layer dictionaries ({', '.join(known)}); name one by --dictionary")
    if name is not None and name not in known:
        raise InputError(f"{run} has no multi-layer dictionary {name!r}, but {', '.join(known)}; name one, or {train}")
    chosen = name or known[0]
    return _loaded(dictionary_folder(run, chosen))


def load_singles(run: Path, of: LayerDictionary) -> list[LayerDictionary]:
    """Dictionaries of one of its layers each, with its settings, ascending by layer."""
    wanted = {key: of.facts.get(key) or None for key in SAME}
    found = [
        _loaded(folder)
        for folder, facts in _configs(run)
        if not facts.get("layers")
        and facts.get("layer") in of.layers
        and facts.get("hookpoint") == f"layers.{facts.get('layer')}"
        and not facts.get("target")
        and {key: facts.get(key) or None for key in SAME} == wanted
    ]
    by_layer: dict[int, LayerDictionary] = {}
    for single in found:
        by_layer.setdefault(single.layers[0], single)
    return [by_layer[layer] for layer in sorted(by_layer)]


def _configs(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    mend = "remove its folder and train it again with python -m sae.train"
    return [(folder, read_json(folder / "config.json", mend)) for folder in complete_folders(run / "sae")]


def _loaded(folder: Path) -> LayerDictionary:
    mend = f"remove it and train it again with python -m sae.train --run {folder.parent.parent} ..."
    manifest = read_manifest(folder, "sae", mend)
    check_contents(folder, manifest, mend)
    model, facts = load_dictionary(folder)
    layers = tuple(facts["layers"]) if facts.get("layers") else (int(facts["layer"]),)
    return LayerDictionary(folder.name, layers, model, load_layer_maps(folder, facts), facts, manifest.fingerprint)


def living_latents(run: Path, dictionary: LayerDictionary) -> npt.NDArray[np.bool_] | None:
    """Which latents fire in the dictionary's cache, [latent]; None where it has no cache."""
    folder = latents_folder(run, dictionary.name)
    if not (folder / "manifest.json").exists():
        return None
    living: npt.NDArray[np.bool_] = np.diff(np.asarray(LatentCache.open(folder).offsets)) > 0
    return living
