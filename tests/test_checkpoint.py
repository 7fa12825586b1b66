"""Own dictionaries whose files somebody has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae.architecture import Architecture
from sae.checkpoint import load_dictionary, save_dictionary
from sae.errors import InputError
from sae.model import SparseAutoencoder


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"k": 3', '"k": true', "k must be between 1 and n_latents=16, got True"),
        # 40 GB: a machine might even have them.
        ('"n_latents": 16', '"n_latents": 1000000000', "weights.safetensors cannot be used .*size mismatch"),
        ('"d_in": 8', '"d_in": ' + "9" * 5000, "config.json is damaged"),
        ('"groups": []', '"groups": ' + "[" * 100_000, "config.json is damaged"),
    ],
    ids=["k", "n_latents", "digits", "brackets"],
)
def test_a_config_that_lies_is_one_line_and_nothing_is_allocated_for_it(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    save_dictionary(tmp_path, SparseAutoencoder(Architecture("topk", 8, 16, 3)), {})
    config = tmp_path / "config.json"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message) as caught:
        load_dictionary(tmp_path)
    assert "\n" not in str(caught.value)
