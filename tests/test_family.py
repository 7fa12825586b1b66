"""The study over subjects of several sizes: what is wrong is told before hours are spent."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.family import FamilyConfig, main, steps
from sae.errors import InputError


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--sizes", "--sizes takes one or more, each once, got none"),
        ("--sizes 2x64 2x64", "each once, got 2x64 2x64"),
        ("--sizes 2x33", "the width a multiple of 32"),
        ("--variants", "--variants takes one or more"),
        ("--subject-tokens 0", "--subject-tokens must be at least 1, got 0"),
        ("--expansion 0", "--expansion must be at least 1, got 0"),
        ("--seed -1", "--seed must be between 0 and 4294967295, got -1"),
        ("--sizes 2x64 embedded --k 513", "--k 513 is out of range: the smallest subject's dictionary has 512 latents"),
    ],
)
def test_a_mistake_is_told_before_anything_is_made(flags: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        main(["--out", str(tmp_path / "out"), *flags.split()])
    assert not (tmp_path / "out").exists()


def test_every_subject_is_made_once_and_every_variant_goes_through_all_stages() -> None:
    todo = [module for module, _ in steps(FamilyConfig(Path("out"), sizes=("2x64", "embedded"), k=512))]
    per_run = ["sae.train", "sae.cache", "sae.layers", "autointerp.measure"]
    assert todo == ["benchmarks.train_subject", *per_run, *per_run, *per_run, *per_run]
