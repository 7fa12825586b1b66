"""Compare runs: trained minus each random baseline, per dictionary and scorer, with intervals and effect sizes.

python benchmarks/compare.py runs/trained runs/control --out runs/table
python benchmarks/compare.py --suite benchmarks/suites/demo.toml --out runs/demo
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import tyro

# As a script, Python looks beside this file only.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from autointerp.stats import Estimate
from benchmarks.comparison import ONE_TOKEN, SAE_METRICS, TRAINED, Line, Scores, lines_of, read_scores
from benchmarks.suite import ROOT, Suite, run_suite
from sae.cli import parse, run_stage
from sae.config import VARIANTS
from sae.errors import InputError

HEADER = (
    *("dictionary", "scorer", "variant", "AUROC [95 %]", "trained − this [95 %]", "Hedges' g [95 %]"),
    *("balanced accuracy", "FVU", "token mean", "PCA", "one-token", "scored", "rare / dense", "failed"),
)
OFFLINE = "offline"
UNDEFINED = "–"


@dataclass(frozen=True)
class CompareConfig:
    """Which runs to compare, and where the table goes."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of runs, each with scores."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for table.md and table.csv, and with --suite for the runs."""
    suite: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Suite file: make its runs first, then compare them."""


def main(argv: Sequence[str] | None = None) -> None:
    """Make the suite's runs if one is given, compare, print the table and write it."""
    config = parse(CompareConfig, argv, "python benchmarks/compare.py")
    if config.out is None:
        raise InputError("--out is missing; name a folder for the table")
    if (config.suite is None) == (not config.runs):
        raise InputError(
            "name either runs or one --suite, e.g. python benchmarks/compare.py runs/a runs/b --out runs/table"
        )
    runs = list(config.runs) if config.suite is None else run_suite(Suite.read(config.suite), config.out)
    sections = sections_of(read_scores(runs))
    text = "\n".join(markdown(lines) for lines in sections)
    _write(config.out, {"table.md": text, "table.csv": long_table(sections).to_csv(index=False)})
    print(text, end="", flush=True)


def sections_of(scores: Sequence[Scores]) -> list[list[Line]]:
    """Lines that belong in one table: one subject on one corpus, one explainer, one judge."""

    def section(part: Scores) -> tuple[Any, ...]:
        subject, question = part.subject, part.question
        at = (subject.name, subject.revision, subject.corpus, subject.corpus_fingerprint)
        return (*at, question.explainer, question.explainer_model, question.judge)

    ordered = sorted(scores, key=section)
    return [lines_of(list(parts), VARIANTS) for _, parts in groupby(ordered, key=section)]


def markdown(lines: Sequence[Line]) -> str:
    """A section as a person reads it: title, table, notes."""
    table = [HEADER, tuple("---" for _ in HEADER), *(_cells(line, _labels(lines)) for line in lines)]
    rows = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([*_title(lines), "", *rows, "", *(f"- {note}" for note in _notes(lines)), ""])


def _title(lines: Sequence[Line]) -> list[str]:
    question, subject = lines[0].question, lines[0].parts[0].subject
    folder = Path(subject.name)
    name = str(folder.relative_to(ROOT)) if folder.is_relative_to(ROOT) else subject.name
    about = f"Subject {name}{f' at {subject.revision}' if subject.revision else ''}, corpus {subject.corpus}."
    if question.judge == OFFLINE:
        return ["# Lexical predictability (offline judge)", "", f"{about} Explainer {question.explainer}."]
    who = f"explainer {question.explainer} ({question.explainer_model}), judge {question.judge}"
    return [f"# Scores by {who}", "", about]


def _labels(lines: Sequence[Line]) -> dict[Any, str]:
    """Names of the dictionaries: the hookpoint, with the size where a hookpoint has several."""
    shapes = {(q.hookpoint, q.k, q.n_latents) for q in (line.question for line in lines)}
    several = {h for h, _, _ in shapes if sum(h == other for other, _, _ in shapes) > 1}
    return {(h, k, n): f"{h} (k {k}, {n} latents)" if h in several else h for h, k, n in shapes}


def _cells(line: Line, labels: dict[Any, str]) -> tuple[str, ...]:
    question, counts, difference = line.question, line.counts, line.difference
    accuracy = line.mean("balanced_accuracy")
    failed = f"{counts['judgements_failed']} of {counts['judgements']}"
    return (
        labels[question.hookpoint, question.k, question.n_latents],
        question.scorer,
        line.variant,
        _interval(line.mean("auroc"), ".3f"),
        _interval(difference.difference if difference else None, "+.3f"),
        _interval(difference.effect if difference else None, "+.2f"),
        UNDEFINED if accuracy is None else f"{accuracy.value:.3f}",
        *(_number(line.reconstruction(name), ".3f") for name in ("fvu", "fvu_token_mean", "fvu_pca")),
        _number(line.one_token, ".1%"),
        str(counts["latents_scored"]),
        f"{counts['latents_too_rare']} / {counts['latents_too_dense']}",
        failed,
    )


def _number(value: float, spec: str) -> str:
    return UNDEFINED if math.isnan(value) else format(value, spec)


def _interval(estimate: Estimate | None, spec: str) -> str:
    if estimate is None:
        return UNDEFINED
    if estimate.low is None or estimate.high is None:
        return format(estimate.value, spec)
    return f"{estimate.value:{spec}} [{estimate.low:{spec}}, {estimate.high:{spec}}]"


def _notes(lines: Sequence[Line]) -> list[str]:
    draws = max(line.n_draws for line in lines)
    notes = []
    if lines[0].question.judge == OFFLINE:
        notes.append(
            "Lexical predictability says how well tokens and what stands right before them tell where a latent fires. "
            "It is not interpretability, and a higher value is not better."
        )
    if draws == 1:
        notes.append("Interval over latents only; one draw of each network and dictionary.")
    else:
        notes.append(
            f"Up to {draws} draws of a variant: t interval over the draws' means; a variant with one draw has its "
            "interval over latents only. Hedges' g is over latents."
        )
    if not all(part.graded for line in lines for part in line.parts):
        notes.append("The judge gives hard answers: AUROC equals balanced accuracy.")
    notes += _learning(lines) + _missing(lines) + _mismatches(lines)
    notes.append(
        "FVU on held-out documents, lower is better, beside that of a per-token-mean lookup and of a PCA of k "
        f"components; one-token: living latents with over {ONE_TOKEN:.0%} of their activation on one token id; rare / "
        "dense: sampled latents that fire in too few contexts to be judged, or leave too few without."
    )
    lost = sum(line.counts["latents_failed"] for line in lines)
    return [*notes, *([f"{lost} scores are missing because the explainer or the judge failed."] if lost else [])]


def _learning(lines: Sequence[Line]) -> list[str]:
    """Whether each trained dictionary does better than lookups that have learnt nothing."""
    labels, notes = _labels(lines), {}
    for line in lines:
        fvu, token, pca = (line.reconstruction(name) for name in ("fvu", "fvu_token_mean", "fvu_pca"))
        if line.variant != TRAINED or any(map(math.isnan, (fvu, token, pca))):
            continue
        label = labels[line.question.hookpoint, line.question.k, line.question.n_latents]
        numbers = f"FVU {fvu:.3f}, token mean {token:.3f}, PCA {pca:.3f}"
        beaten = fvu < min(token, pca)
        verdict = "beats both baselines" if beaten else "does not beat both baselines: it has not learnt"
        notes[label] = f"{label}: the trained variant's SAE {verdict} ({numbers})."
    return list(notes.values())


def _missing(lines: Sequence[Line]) -> list[str]:
    labels = _labels(lines)
    shapes = {(q.hookpoint, q.k, q.n_latents) for q in (line.question for line in lines if not line.trained)}
    names = sorted(labels[shape] for shape in shapes)
    return [f"No trained run to compare with for {', '.join(names)}: no difference is taken."] if names else []


def _mismatches(lines: Sequence[Line]) -> list[str]:
    """Settings that differ between the variants of one question."""
    notes: dict[str, None] = {}
    for _, group in groupby(lines, key=lambda line: line.question):
        parts = [part for line in group for part in line.parts]
        for name in parts[0].settings:
            found = {str(part.settings[name]): part for part in parts}
            if len(found) > 1:
                shown = "; ".join(f"{part.variant}: {value}" for value, part in found.items())
                notes[f"Settings differ, and a difference may come from that: {name} ({shown})."] = None
    return list(notes)


def long_table(sections: Sequence[Sequence[Line]]) -> pd.DataFrame:
    """All numbers, unrounded, one a row."""
    rows = []
    for line in (line for lines in sections for line in lines):
        subject, question, difference = line.parts[0].subject, line.question, line.difference
        about = {"subject": subject.name, "corpus": subject.corpus, **vars(question), "variant": line.variant}
        estimates = {name: line.mean(name) for name in ("auroc", "balanced_accuracy")}
        if difference:
            estimates |= {"auroc_trained_minus_this": difference.difference, "hedges_g": difference.effect}
        for name, estimate in estimates.items():
            rows.append({**about, "quantity": name, **(vars(estimate) if estimate else {})})
        single = {name: line.reconstruction(name) for name in SAE_METRICS}
        single |= {"one_token_share": line.one_token, "draws": line.n_draws, **line.counts}
        rows += [{**about, "quantity": name, "value": value} for name, value in single.items()]
    return pd.DataFrame(rows)


def _write(out: Path, files: dict[str, str]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            partial = out / f".{name}.partial"
            partial.write_text(text, encoding="utf-8")
            partial.replace(out / name)
    except OSError as error:
        raise InputError(f"cannot write to --out {out}: {error.strerror}; name a folder that can be written") from None


if __name__ == "__main__":
    raise SystemExit(run_stage(main))
