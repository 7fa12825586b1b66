"""SIGKILL to the real training and caching processes: what comes out in the end is what an uninterrupted run gives."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sae.cache import main as cache
from sae.train import main as train

FILES = {
    "sae": ("config.json", "weights.safetensors", "metrics.json"),
    "latents": ("tokens.safetensors", "entries.safetensors", "neighbours.safetensors", "documents.json"),
}


def _flags(run: Path, subject: Path, corpus: Path) -> dict[str, list[str]]:
    train_flags = f"--run {run} --subject {subject} --corpus {corpus} --tokens 20000 --k 4 --expansion 2 --layers 0 1"
    return {"train": [*train_flags.split(), "--eval-tokens", "500"], "cache": f"--run {run} --tokens 6000".split()}


def _killed_after(stage: str, flags: list[str], seconds: float) -> bool:
    """Start a stage and kill it; whether it was still running."""
    process = subprocess.Popen([sys.executable, "-m", f"sae.{stage}", *flags], stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return alive


def _fingerprints(run: Path) -> dict[str, str]:
    return {
        str(path.parent.relative_to(run)): json.loads(path.read_text())["fingerprint"]
        for path in sorted(run.rglob("manifest.json"))
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_training_and_caching_give_the_same_artifacts(
    tmp_path: Path, neox_folder: Path, corpus_file: Path, seed: int
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    stages = {"train": train, "cache": cache}
    for name, stage in stages.items():
        stage(_flags(whole, neox_folder, corpus_file)[name])
    draw = random.Random(seed)
    flags = _flags(killed, neox_folder, corpus_file)
    interrupted = 0
    for name, stage in stages.items():
        # Importing torch takes the first seconds; kills fall before, inside and between the writing of artifacts.
        interrupted += sum(_killed_after(name, flags[name], draw.uniform(1.5, 6.0)) for _ in range(2))
        for manifest in killed.rglob("manifest.json"):
            if manifest.parent.suffix != ".partial":
                assert all((manifest.parent / file).exists() for file in FILES[manifest.parent.parent.name])
        stage(flags[name])
    assert interrupted > 0
    assert _fingerprints(killed) == _fingerprints(whole)
    for kind, names in FILES.items():
        for folder in (whole / kind).iterdir():
            if folder.is_dir():
                for file in names:
                    assert (killed / kind / folder.name / file).read_bytes() == (folder / file).read_bytes()
    assert not [path for path in killed.rglob("*") if path.name.startswith(".") and not path.name.endswith(".lock")]
