"""The speed benchmark's flags: what cannot be timed is one line, before anything is."""

from __future__ import annotations

import pytest
import torch

from benchmarks import speed_sae
from sae.errors import InputError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line() -> None:
    with pytest.raises(InputError, match=r"--device cuda cannot be used .*; try --device cpu"):
        speed_sae.main(["--device", "cuda", "--sizes", "16x64", "--runs", "1"])


def test_more_active_latents_than_there_are_is_said_before_anything_is_timed() -> None:
    with pytest.raises(InputError, match="--k 65 is out of range: the smallest of --sizes has 64 latents"):
        speed_sae.main(["--sizes", "16x128", "16x64", "--k", "65"])
