"""The table of a comparison: its numbers, its notes, what it refuses, and suites that make the runs first."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from planted import DICTIONARY, write_planted_run
from scipy import stats

from autointerp.config import ExplainConfig, ScoreConfig
from autointerp.explain import main as explain
from autointerp.score import main as score
from benchmarks import suite as suites
from benchmarks.compare import main
from benchmarks.suite import ROOT, Suite
from sae.artifacts import complete_folders
from sae.cli import parse, run_stage
from sae.errors import InputError

SCORES = f"scores/{DICTIONARY}/lexical@offline"


def scored(folder: Path, variant: str, seed: int = 0, **metrics: Any) -> Path:
    run = write_planted_run(folder, variant, seed, metrics)
    explain(["--run", str(run)])
    score(["--run", str(run)])
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two draws of a trained and of a control run."""
    folder = tmp_path_factory.mktemp("runs")
    for variant in ("trained", "control"):
        for seed in (0, 1):
            scored(folder / f"{variant}{seed}", variant, seed, fvu=0.3 if variant == "trained" else 0.9)
    # Planted latents are the same in all runs; the control's scores are lowered so that there is something to see.
    for path in folder.glob(f"control*/{SCORES}/*/scores.csv"):
        table = pd.read_csv(path)
        table["auroc"] -= 0.3 if "control0" in str(path) else 0.2
        table.to_csv(path, index=False)
    return folder


@pytest.fixture
def compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, pd.DataFrame]]:
    def run(*folders: Path) -> tuple[str, pd.DataFrame]:
        capsys.readouterr()
        main([*map(str, folders), "--out", str(tmp_path / "out")])
        shown = capsys.readouterr().out
        assert (tmp_path / "out" / "table.md").read_text(encoding="utf-8") == shown
        return shown, pd.read_csv(tmp_path / "out" / "table.csv")

    return run


def aurocs(run: Path, scorer: str, null: str = "") -> np.ndarray[Any, Any]:
    return pd.read_csv(run / SCORES / f"{scorer}@offline{null}" / "scores.csv")["auroc"].dropna().to_numpy()


def cell(table: pd.DataFrame, variant: str, scorer: str, quantity: str) -> pd.Series[Any]:
    rows = table[(table.variant == variant) & (table.scorer == scorer) & (table.quantity == quantity)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_the_table_has_means_and_differences_with_intervals(runs: Path, compare: Any) -> None:
    text, table = compare(runs / "trained0", runs / "control0")
    assert text.startswith("# Lexical predictability (offline judge)\n")
    for scorer in ("detection", "fuzzing"):
        x, y = aurocs(runs / "trained0", scorer), aurocs(runs / "control0", scorer)
        mean = cell(table, "control", scorer, "auroc")
        interval = stats.t.interval(0.95, len(y) - 1, loc=y.mean(), scale=stats.sem(y))
        assert (mean.value, mean.low, mean.high, mean.n) == pytest.approx((y.mean(), *interval, 3))
        difference = cell(table, "control", scorer, "auroc_trained_minus_this")
        welch = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
        assert (difference.value, difference.low, difference.high) == pytest.approx((0.3, welch.low, welch.high))
        assert cell(table, "control", scorer, "hedges_g").value > 0
        row = next(line for line in text.splitlines() if f"| {scorer} | control |" in line)
        assert f"| {y.mean():.3f} [" in row and "| +0.300 [" in row
        assert re.search(r"\| 0\.900 \| 0\.500 \| 0\.600 \| 40\.0% \| 3 \| 1 / 1 \| 0 of 300 \|$", row)
    assert "auroc_trained_minus_this" not in set(table[table.variant == "trained"].quantity)
    assert "Interval over latents only; one draw" in text
    assert "beats both baselines (FVU 0.300, token mean 0.500, PCA 0.600)" in text


def test_floors_and_ceilings_stand_beside_the_scores_and_are_not_mixed_with_them(
    runs: Path, tmp_path: Path, compare: Any
) -> None:
    plain, before = compare(runs / "trained0", runs / "control0")
    assert "floor" not in plain and "Floors and ceilings" not in plain
    run = Path(shutil.copytree(runs / "trained0", tmp_path / "trained0"))
    score(["--run", str(run), "--nulls", "shuffled", "oracle", "always-yes"])
    text, table = compare(run, runs / "control0")
    shuffled = aurocs(run, "detection", "+shuffled")
    interval = stats.t.interval(0.95, len(shuffled) - 1, loc=shuffled.mean(), scale=stats.sem(shuffled))
    floor = cell(table, "trained", "detection", "shuffled_auroc")
    assert (floor.value, floor.low, floor.high, floor.n) == pytest.approx((shuffled.mean(), *interval, 3))
    assert cell(table, "trained", "fuzzing", "oracle_f1").value == 1
    assert cell(table, "trained", "fuzzing", "always_yes_balanced_accuracy").value == 0.5
    large, small = text.split("## Floors and ceilings")
    header, first = (line for line in large.splitlines() if "AUROC †" in line or "| detection | trained | 0" in line)
    assert "| AUROC † [95 %] | floor [95 %] | ceiling | trained − this [95 %] |" in header
    assert f"| {floor.value:.3f} [{floor.low:.3f}, {floor.high:.3f}] | 1.000 | – |" in first
    assert "| always-yes AUROC | always-yes balanced accuracy |" in small and "| control |" not in small
    same = [name for name in set(before.quantity) if not name.startswith(("shuffled", "oracle", "always"))]
    pd.testing.assert_frame_equal(table[table.quantity.isin(same)].reset_index(drop=True), before)


def test_metrics_that_do_not_notice_wrong_labels_are_marked(runs: Path, compare: Any) -> None:
    text, table = compare(runs / "trained0")
    assert "| average precision | F1 | balanced accuracy † |" in text and "- †: falls hardly at all" in text
    for metric in ("average_precision", "f1", "iou", "correlation", "precision", "recall"):
        path = runs / "trained0" / SCORES / "fuzzing@offline" / "scores.csv"
        assert cell(table, "trained", "fuzzing", metric).value == pytest.approx(pd.read_csv(path)[metric].mean())


def test_latents_left_out_are_counted_by_decade_of_density(runs: Path, compare: Any) -> None:
    _, table = compare(runs / "trained0")
    rows = table[(table.scorer == "fuzzing") & table.quantity.str.contains("_density_")]
    found = dict(zip(rows.quantity, rows.value, strict=True))
    assert found == {
        "latents_eligible_density_1e-3": 3,
        "latents_too_rare_density_1e-5": 1,
        "latents_too_dense_density_1e-1": 1,
    }


def test_several_draws_are_clusters_and_the_note_says_so(runs: Path, compare: Any) -> None:
    folders = [runs / name for name in ("trained0", "trained1", "control0", "control1")]
    text, table = compare(*folders)
    means = {name: aurocs(runs / name, "detection").mean() for name in ("trained0", "trained1", "control0", "control1")}
    control = [means["control0"], means["control1"]]
    mean = cell(table, "control", "detection", "auroc")
    assert (mean.value, mean.n) == pytest.approx((np.mean(control), 2))
    difference = cell(table, "control", "detection", "auroc_trained_minus_this")
    expected = stats.ttest_ind([means["trained0"], means["trained1"]], control, equal_var=False).confidence_interval()
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))
    assert "2 draws of a variant" in text and "so the former's interval says nothing of other networks" in text
    assert "one draw of each" not in text


def test_without_a_trained_run_no_difference_is_taken(runs: Path, compare: Any) -> None:
    text, table = compare(runs / "control0")
    assert "No trained run to compare with for layers.1" in text
    assert not {"hedges_g", "auroc_trained_minus_this"} & set(table.quantity)


def test_a_dictionary_that_has_not_learnt_is_named(tmp_path: Path, compare: Any) -> None:
    text, _ = compare(scored(tmp_path / "run", "trained", fvu=0.55))
    assert "does not beat both baselines: it has not learnt (FVU 0.550" in text


def test_settings_that_differ_are_named(runs: Path, tmp_path: Path, compare: Any) -> None:
    other = write_planted_run(tmp_path / "other", "control", metrics={"n_tokens_train": 9}, training={"lr": 0.1})
    explain(["--run", str(other), "--n-test", "30"])
    score(["--run", str(other)])
    text, _ = compare(runs / "trained0", other)
    assert "Settings differ" in text
    assert "tokens trained on (trained: 1000.0; control: 9.0)" in text
    assert "examples n_test (trained: 50; control: 30)" in text
    assert "training lr (trained: 0.001; control: 0.1)" in text
    assert "Settings differ" not in compare(runs / "trained0", runs / "control0")[0]


def test_a_judge_with_hard_answers_is_named_and_its_failures_are_counted(
    runs: Path, tmp_path: Path, compare: Any
) -> None:
    run = Path(shutil.copytree(runs / "trained0", tmp_path / "run"))
    for folder in complete_folders(run / SCORES):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["config"] |= {"judge": "some-llm", "graded": False}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        table = pd.read_csv(folder / "scores.csv")
        table.loc[0, ["n_failed", "auroc", "balanced_accuracy"]] = [100, np.nan, np.nan]
        table.to_csv(folder / "scores.csv", index=False)
    text, table = compare(run)
    assert text.startswith("# Scores by explainer lexical (offline), judge some-llm\n")
    assert "exical predictability" not in text
    assert "hard answers: AUROC equals balanced accuracy" in text
    assert "| 2 | 1 / 1 | 100 of 300 |" in text
    assert "2 scores are missing because the explainer or the judge failed" in text
    assert cell(table, "trained", "fuzzing", "judgements_failed").value == 100


def test_other_subjects_and_judges_get_a_table_of_their_own(runs: Path, tmp_path: Path, compare: Any) -> None:
    other = Path(shutil.copytree(runs / "control0", tmp_path / "other"))
    held = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(held | {"corpus": "elsewhere"}))
    text, table = compare(runs / "trained0", other)
    assert text.count("# Lexical predictability (offline judge)") == 2
    assert "hedges_g" not in set(table.quantity)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: shutil.rmtree(run / "scores"), "has no scores; make them with python -m autointerp.score"),
        (lambda run: (run / "run.json").unlink(), "is not a run"),
        (lambda run: (run / SCORES / "fuzzing@offline" / "scores.csv").write_text("a,b\n1,2\n"), "is damaged"),
        (lambda run: (run / SCORES / "fuzzing@offline" / "scores.csv").unlink(), "is damaged"),
        (lambda run: shutil.rmtree(run / "latents"), "python -m sae.cache"),
    ],
)
def test_a_run_that_cannot_be_compared_is_one_line(
    runs: Path, tmp_path: Path, break_it: Callable[[Path], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(runs / "trained0", tmp_path / "run"))
    break_it(run)
    capsys.readouterr()
    assert run_stage(main, [str(run), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_same_draw_twice_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the same draw of variant trained"):
        main([str(runs / "trained0"), str(runs / "trained0"), "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--out", "x"], "name either runs or one --suite"),
        (["run"], "--out is missing"),
        (["run", "--suite", "s.toml", "--out", "x"], "name either"),
        (["--suite", "no-such.toml", "--out", "x"], "cannot be read"),
        (["run", "--out", "x", "--colour"], "colour"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(argv)


def test_it_runs_as_a_script(runs: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "compare.py"), str(runs / "trained0"), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "table.md").read_text(encoding="utf-8")


# --- suites

SUITE = 'subject = "s"\nvariants = ["trained"]\nlayers = [1]\n'


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (SUITE + 'colour = "red"', "unknown key colour"),
        ('subject = "s"\nlayers = [1]', "variants is missing"),
        (SUITE.replace("[1]", "[]"), "layers is missing or empty"),
        (SUITE.replace("[1]", '["1"]'), "expected a list of whole numbers"),
        (SUITE.replace("[1]", "1"), "expected a list of whole numbers"),
        (SUITE + "k = true", "expected a whole number"),
        (SUITE + "corpus = 3", "expected a string"),
        (SUITE.replace("trained", "untrained"), "no variant 'untrained'"),
        ("subject = ", "cannot be read"),
        ("\x00\xff", "cannot be read"),
    ],
)
def test_a_suite_that_cannot_be_run_is_one_line(tmp_path: Path, toml: str, message: str) -> None:
    path = tmp_path / "suite.toml"
    path.write_bytes(toml.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        Suite.read(path)


@pytest.mark.parametrize("name", ["demo", "demo-full"])
def test_every_flag_of_the_shipped_suites_is_known_to_its_stage(name: str, tmp_path: Path) -> None:
    from sae.cache import Arguments as CacheArguments
    from sae.train import Arguments as TrainArguments

    suite = Suite.read(ROOT / "benchmarks" / "suites" / f"{name}.toml")
    assert suite.train_tokens is not None and suite.train_tokens >= 500_000
    configs = {"train": TrainArguments, "cache": CacheArguments, "explain": ExplainConfig, "score": ScoreConfig}
    found: dict[str, Any] = {}
    for stage, config in configs.items():
        flags = suites._flags(suite, stage, tmp_path, "control", 3)
        found[stage] = parse(config, flags, stage)  # type: ignore[arg-type]
    assert found["train"].train.layers == suite.layers and found["train"].train.seed == 3
    assert found["train"].subject.variant == "control" and found["train"].subject.variant_seed == 3
    assert found["score"].nulls == suite.nulls
    assert found["explain"].n_latents == 100 and found["score"].scorers == ("detection", "fuzzing")


def test_a_suite_makes_its_runs_in_order_and_does_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[str] = []

    def train(flags: Sequence[str]) -> None:
        run, variant = Path(flags[1]), flags[flags.index("--variant") + 1]
        called.append(f"train {run.name}")
        if not run.exists():
            write_planted_run(run, variant)

    def cache(flags: Sequence[str]) -> None:
        called.append(f"cache {Path(flags[1]).name}")
        print("what a stage prints is not the table")

    fakes = {"train": train, "cache": cache, "explain": explain, "score": score}
    monkeypatch.setattr(suites, "_stage", fakes.__getitem__)
    path = tmp_path / "suite.toml"
    path.write_text(SUITE.replace('"trained"', '"trained", "control"') + "n_latents = 3\n")
    argv = ["--suite", str(path), "--out", str(tmp_path / "out")]
    main(argv)
    first = capsys.readouterr()
    assert called == ["train trained", "cache trained", "train control", "cache control"]
    assert "[1/8] train" in first.err and "[8/8] score" in first.err
    assert first.out.startswith("# Lexical") and "not the table" not in first.out
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("manifest.json")}
    started = time.monotonic()
    main(argv)
    assert capsys.readouterr().out == first.out
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("manifest.json")} == files
    assert time.monotonic() - started < 10


def test_a_subject_in_the_repository_is_found_from_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(SUITE.replace('"s"', '"benchmarks"'))
    flags = suites._flags(Suite.read(path), "train", tmp_path, "trained", 0)
    assert flags[flags.index("--subject") + 1] == str(ROOT / "benchmarks")
    path.write_text(SUITE.replace('"s"', '"org/model"'))
    flags = suites._flags(Suite.read(path), "train", tmp_path, "trained", 0)
    assert flags[flags.index("--subject") + 1] == "org/model"
