"""Which dictionaries a training command asks for, and what each is called."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae.architecture import K_KINDS, Architecture
from sae.artifacts import plain
from sae.config import BASES, UNTRAINED, SAEConfig, TrainConfig, TrainingSite
from sae.errors import InputError
from sae.hookpoints import Hookpoint

MOST_LATENTS = 2**31 - 1
"""Latents are counted in int32 where they are sorted."""
SWEPT = (
    *("run", "layers", "sites", "seed", "seeds", "ks", "overwrite"),
    *("snapshot_minutes", "snapshot_steps", "track", "shard_latents"),
)
"""Settings of a command that are not those of each dictionary, or that change no number of it."""


@dataclass(frozen=True)
class DictionarySpec:
    """One dictionary to be trained."""

    layer: int
    site: TrainingSite
    sae: SAEConfig
    seed: int

    @property
    def hookpoint(self) -> Hookpoint:
        """Where it reads."""
        return Hookpoint(self.layer, "mlp.in" if self.site == "transcoder" else self.site)

    @property
    def target(self) -> Hookpoint:
        """What it reconstructs: where it reads, but for a transcoder."""
        return Hookpoint(self.layer, "mlp") if self.site == "transcoder" else self.hookpoint

    @property
    def name(self) -> str:
        """The hookpoint, then whatever differs from the defaults."""
        defaults, sae = SAEConfig(), self.sae
        parts = [f"layers.{self.layer}"]
        parts += [self.site] if self.site != "residual" else []
        parts += [sae.architecture.replace("_", "-")] if sae.architecture != defaults.architecture else []
        parts += ["matryoshka"] if sae.matryoshka else []
        parts += [sae.null] if sae.null != defaults.null else []
        parts += [f"k{sae.k}"] if sae.k != defaults.k else []
        parts += [f"x{sae.expansion}"] if sae.expansion != defaults.expansion else []
        parts += [f"l{sae.sparsity:g}".replace("+", "")] if sae.sparsity is not None else []
        parts += ["skip-embed"] if sae.skip_embed else []
        return ".".join(parts + ([f"s{self.seed}"] if self.seed else []))

    def architecture(self, d_in: int, d_out: int) -> Architecture:
        """The form of the dictionary between these widths.

        Raises:
            InputError: k does not fit the number of latents, or they are too many.
        """
        n_latents, sae = self.sae.expansion * d_in, self.sae
        if n_latents > MOST_LATENTS:
            found = f"{sae.expansion} x {d_in} latents are more than {MOST_LATENTS:,}"
            raise InputError(f"--expansion {sae.expansion} is out of range: {found}; ask for fewer")
        if sae.k > n_latents:
            found = f"the dictionary has {n_latents} latents ({sae.expansion} x {d_in})"
            raise InputError(f"--k {sae.k} is out of range: {found}; ask for fewer")
        groups = sorted({max(1, round(share * n_latents)) for share in sae.matryoshka} | {n_latents})
        transcoder = self.target != self.hookpoint
        return Architecture(
            kind=sae.architecture,
            d_in=d_in,
            n_latents=n_latents,
            k=sae.k if sae.architecture in K_KINDS else None,
            d_out=d_out if transcoder else None,
            subtract_b_dec=not transcoder,
            groups=tuple(groups) if sae.matryoshka else (),
        )

    def facts(self) -> dict[str, Any]:
        """What the dictionary's own config says of it, beside its architecture."""
        target = {"target": str(self.target)} if self.target != self.hookpoint else {}
        more: dict[str, Any] = {"null": self.sae.null} if self.sae.null != "none" else {}
        more |= {"sparsity": self.sae.sparsity} if self.sae.sparsity is not None else {}
        return {"hookpoint": str(self.hookpoint), **target, "layer": self.layer, "seed": self.seed, **more}

    def settings(self, config: TrainConfig, identity: Mapping[str, Any], corpus: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that decides its numbers: the config of its artifact."""
        training = {k: v for k, v in dataclasses.asdict(config).items() if k not in SWEPT}
        known = {
            name: value for name, value in identity.items() if name != "subject" or not identity["subject_fingerprint"]
        }
        whole = {
            "dictionary": self.name,
            **self.facts(),
            **dataclasses.asdict(self.sae),
            "training": {**training, "data_seed": config.seed},
            "subject": known,
            "corpus": corpus,
        }
        result: dict[str, Any] = plain(whole)
        return result


def kind_of(facts: Mapping[str, Any]) -> str:
    """What tells a dictionary from a trained TopK of one place, in words, by its `config.json`; empty for such a one.

    Dictionaries of different kinds answer different questions: no table pools them.
    """
    defaults = SAEConfig()
    words = [str(facts.get("architecture", defaults.architecture))]
    words = [] if words == [defaults.architecture] else words
    words += ["matryoshka"] if facts.get("groups") else []
    words += [str(facts["null"])] if facts.get("null") else []
    words += [f"sparsity {facts['sparsity']:g}"] if facts.get("sparsity") is not None else []
    words += ["transcoder"] if facts.get("target") else []
    return " ".join(words)


def asked(config: TrainConfig, sae: SAEConfig) -> list[DictionarySpec]:
    """The dictionaries that a command asks for: layers x sites x seeds x ks.

    A basis and its opposites have two latents per dimension, whatever was asked.

    Raises:
        InputError: settings that do not go together.
    """
    if sae.skip_embed and "transcoder" in config.sites:
        raise InputError("--skip-embed and --sites transcoder do not go together; leave one out")
    if sae.null in (*UNTRAINED, "gaussian") and "transcoder" in config.sites:
        raise InputError(f"--null {sae.null} and --sites transcoder do not go together; leave one out")
    if len(config.ks) > 1 and sae.architecture in ("relu", "gated"):
        raise InputError(
            f"--ks would train the same dictionary several times: {sae.architecture} has no k; leave it out"
        )
    sae = dataclasses.replace(sae, expansion=2) if sae.null in BASES else sae
    return [
        DictionarySpec(layer, site, dataclasses.replace(sae, k=k), seed)
        for layer in config.layers
        for site in config.sites
        for k in config.ks or (sae.k,)
        for seed in config.seeds or (config.seed,)
    ]
