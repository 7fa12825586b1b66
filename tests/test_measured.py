"""Measures of several runs side by side: what is refused, and that what is said of intervals is so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import DICTIONARY, write_planted_run

from autointerp.explain import main as explain
from autointerp.measure import main as measure
from autointerp.score import main as score
from benchmarks.compare import main
from benchmarks.measured import Measured
from sae.cli import run_stage
from sae.errors import InputError

TABLE = f"measures/{DICTIONARY}/latents.parquet"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_planted_run(tmp_path_factory.mktemp("planted") / "run")
    measure(["--run", str(run), "--workers", "1"])
    return run


@pytest.fixture
def run(measured: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(measured, tmp_path / "run"))


def test_latents_of_the_same_draw_are_not_counted_twice(measured: Path, run: Path, tmp_path: Path) -> None:
    for other in (measured, run):
        with pytest.raises(InputError, match="hold the same draw of variant trained; name only one"):
            main([str(measured), str(other), "--out", str(tmp_path / "out")])


def without_eligible(path: Path) -> None:
    pd.read_parquet(path).drop(columns="eligible").to_parquet(path)


def with_text(path: Path) -> None:
    pd.read_parquet(path).astype({"token_entropy": str}).to_parquet(path)


@pytest.mark.parametrize(
    "damage",
    [
        without_eligible,
        with_text,
        lambda path: pd.read_parquet(path).iloc[:3].to_parquet(path),
        lambda path: pd.read_parquet(path).iloc[[0, 0, *range(2, 8)]].to_parquet(path),
        lambda path: path.write_bytes(path.read_bytes()[:500]),
    ],
)
def test_a_damaged_table_is_one_line(
    run: Path, tmp_path: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / TABLE)
    capsys.readouterr()
    assert run_stage(main, [str(run), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "latents.parquet is damaged" in error and "autointerp.measure" in error and error.count("\n") == 1


def test_every_subject_has_figures_of_its_own(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    explain(["--run", str(run)])
    score(["--run", str(run), "--scorers", "detection"])
    other = Path(shutil.copytree(run, tmp_path / "other"))
    held = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**held, "subject": "another"}))
    capsys.readouterr()
    main([str(run), str(other), "--out", str(tmp_path / "out")])
    figures = sorted(path.name for path in (tmp_path / "out").glob("*.svg"))
    assert figures == ["quadrants-detection-2.svg", "quadrants-detection.svg"]
    text = capsys.readouterr().out
    assert [text.count(f"Subject and corpus: {name}, topics.") for name in ("planted", "another")] == [2, 2]


def frame_of(seeds: dict[str, tuple[int, ...]]) -> pd.DataFrame:
    rng, parts = np.random.default_rng(0), []
    for variant, own in seeds.items():
        for seed in own:
            about = {"variant": variant, "dictionary": "layers.1", "layer": 1, "seed": seed, "subject": "s"}
            columns = {"context_gain_average_precision": rng.normal(0.1, 0.1, 50), "density": 0.01}
            parts.append(pd.DataFrame(columns).assign(**about, eligible=True, token_determined=False))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize(
    ("seeds", "differences", "means"),
    [
        ({"trained": (0,), "control": (0,)}, "over latents only; one draw of each.", "over latents only; one draw"),
        ({"trained": (0, 1), "control": (0, 1)}, "over 2 seeds, paired.", "over 2 seeds (t"),
        ({"trained": (0, 1), "control": (2, 3)}, "over seeds, not paired.", "over 2 seeds (t"),
        (
            {"trained": (0, 1), "step0": (0, 1), "control": (0,)},
            "over 2 seeds, paired (step0), over latents only; one draw of each (control).",
            "over up to 2 seeds (t over their means); with one seed over latents only",
        ),
    ],
)
def test_what_the_intervals_are_over_is_said(seeds: dict[str, tuple[int, ...]], differences: str, means: str) -> None:
    text = Measured.of(frame_of(seeds), []).markdown
    assert f"Mean over dictionaries; intervals {differences}" in text
    assert f"often enough in both splits, intervals {means}" in text
