"""Explanations and scores on disk: where they lie, how answers are kept as they come, how rows are read and written.

While an artifact is made, its `.partial` folder holds a journal with one line per answered request. A process that is
killed loses at most the answers that were on their way; the next one with the same settings reads the journal and asks
only for the rest. The rows are then written in their own order, so that nothing shows how often it was interrupted.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, cast, get_args

from autointerp.reasking import answers_of
from autointerp.records import ANSWERED, Explanation, ExplanationStatus, Judgement, Usage
from sae.artifacts import Manifest, complete_folders, dictionary_folder, digest, latents_folder, read_manifest
from sae.errors import InputError
from sae.latents import LatentCache

JOURNAL = ".answers.jsonl"
EXPLANATIONS = "explanations.jsonl"
JUDGEMENTS = "judgements.jsonl"
SCORES = "scores.csv"
MEASURES = "latents.parquet"
COLUMNS = (
    *("dictionary", "variant", "layer", "seed", "latent", "explainer", "explainer_model", "scorer", "judge"),
    *("n", "n_positive", "n_failed", "density"),
    *("auroc", "average_precision", "balanced_accuracy", "f1", "precision", "recall"),
    *("iou", "correlation", "null", "n_skipped", "status", "graded", "reason"),
    *("accuracy", "chance", "n_repaired", "n_unparseable", "n_refused", "n_truncated", "n_error", "n_reasked"),
)
SPARE = ("earlier_key", "earlier_fault", "tokens")
"""Fields of a row that are left out where they say nothing."""

Row = dict[str, Any]


def slug(name: str) -> str:
    """A name as a part of a folder's name; the real one is in the manifest."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def explanations_folder(run: Path, dictionary: str, explainer: str, model: str) -> Path:
    """Where the explanations of a dictionary's latents live."""
    return run / "explanations" / dictionary / f"{slug(explainer)}@{slug(model)}"


def scores_folder(run: Path, explanations: Path, scorer: str, judge: str, null: str = "") -> Path:
    """Where the scores of one folder of explanations live, or a null of them."""
    name = f"{slug(scorer)}@{slug(judge)}" + (f"+{slug(null)}" if null else "")
    return run / "scores" / explanations.parent.name / explanations.name / name


def measures_folder(run: Path, dictionary: str) -> Path:
    """Where the lexical measures of a dictionary's latents live."""
    return run / "measures" / dictionary


def explanation_folders(run: Path) -> list[Path]:
    """All complete explanations of a run."""
    parents = sorted(p for p in (run / "explanations").glob("*") if p.is_dir())
    return [folder for parent in parents for folder in complete_folders(parent)]


def latent_caches(run: Path, names: Sequence[str]) -> dict[str, LatentCache]:
    """The latent caches of a run by dictionary, or those of the given names.

    Raises:
        InputError: there are none, or none of such a name.
    """
    folders = {folder.name: folder for folder in complete_folders(run / "latents")}
    if not folders:
        raise InputError(f"{run} has no latent caches; make them with python -m sae.cache --run {run} ...")
    for name in names:
        if name not in folders:
            raise InputError(f"no cached dictionary {name!r} in {run}; there are {', '.join(folders)}")
    return {name: open_cache(run, name) for name in folders if not names or name in names}


def open_cache(run: Path, dictionary: str) -> LatentCache:
    """The latent cache of a dictionary, which must be of the run's own dictionary of that name where there is one.

    Raises:
        InputError: it is missing or damaged, or of another dictionary than the run has now under that name.
    """
    cache = LatentCache.open(latents_folder(run, dictionary))
    own = dictionary_folder(run, dictionary)
    if (own / "manifest.json").exists():
        made = read_manifest(own, "sae", f"remove it and make it again with python -m sae.train --run {run}")
        if cache.manifest.parents.get("dictionary") != made.fingerprint:
            mend = f"python -m sae.cache --run {run} --overwrite"
            raise InputError(f"{cache.folder} is of another dictionary than {own} is now; {mend}")
    return cache


class Journal:
    """Answers as they come, one line per request; a line cut off by a kill counts as not written.

    A slot is (latent, number of the request within the latent). Memory holds a slot's place in the file, not its rows.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self._places: dict[tuple[int, int], tuple[str, bool, int]] = {}
        self.usage = Usage()
        self.n_answers = 0
        self._stream = self.path.open("a+b")
        self._read_back()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __len__(self) -> int:
        return sum(not failed for _, failed, _ in self._places.values())

    def answered(self, latent: int, number: int, key: str) -> bool:
        """Whether this request has an answer; one that failed has none and may be sent again."""
        found = self._places.get((latent, number))
        return found is not None and found[0] == key and not found[1]

    def add(self, slot: tuple[int, int], key: str, rows: Sequence[Any], usage: Usage) -> None:
        """Append the rows that one answer gave (dataclasses), and make sure that a kill cannot take them away."""
        place = self._stream.seek(0, 2)
        entry = _entry(slot, key, rows, usage)
        self._stream.write(entry)
        self._stream.flush()
        self._note(json.loads(entry), place)

    def __contains__(self, slot: tuple[int, int]) -> bool:
        """Whether a request has rows, be it those of a failure."""
        return slot in self._places

    def rows(self, latent: int, number: int) -> list[Row]:
        """The rows of a request's last answer."""
        self._stream.seek(self._places[latent, number][2])
        return cast(list[Row], json.loads(self._stream.readline())["rows"])

    def adopt(self, rows: Iterable[Explanation | Judgement], per_request: int, usage: Usage) -> None:
        """Take over the rows of a complete artifact, of which some are to be asked again, and what they have cost.

        Only the last request about a latent has fewer rows than the others, so that equal requests which follow each
        other, as duplicate texts make them, can be told apart. A kill leaves the journal as it was, or with all rows.

        Args:
            rows: the rows, in the order of the requests.
            per_request: rows of a request.
            usage: what all of them have cost.
        """
        whole = self.path.with_suffix(".adopted")
        with whole.open("wb") as stream:
            for latent, group in groupby(rows, key=lambda row: row.latent):
                answers = (list(same) for _, same in groupby(group, key=lambda row: row.request_key))
                cut = [same[i : i + per_request] for same in answers for i in range(0, len(same), per_request)]
                for number, part in enumerate(cut):
                    for slot, key, answer in answers_of(latent, number, part):
                        stream.write(_entry(slot, key, answer, usage))
                        usage = Usage()
        self._stream.close()
        whole.replace(self.path)
        self._stream = self.path.open("a+b")
        self._read_back()

    def costs(self) -> dict[str, int]:
        """What all answers so far have cost, for the manifest; a request that was sent again counts again."""
        tokens = {"prompt_tokens": self.usage.prompt_tokens, "completion_tokens": self.usage.completion_tokens}
        return {"requests": self.n_answers, **tokens}

    def _read_back(self) -> None:
        self._stream.seek(0)
        end = 0
        for raw in self._stream:
            try:
                entry = json.loads(raw) if raw.endswith(b"\n") else None
            except ValueError:
                entry = None
            if entry is None:
                break
            self._note(entry, end)
            end += len(raw)
        self._stream.truncate(end)

    def _note(self, entry: Mapping[str, Any], place: int) -> None:
        latent, number = entry["slot"]
        failed = any(row["status"] == "error" for row in entry["rows"])
        self._places[latent, number] = (entry["key"], failed, place)
        prompt, completion = entry["usage"]
        self.usage = Usage(self.usage.prompt_tokens + prompt, self.usage.completion_tokens + completion)
        self.n_answers += 1


def _entry(slot: tuple[int, int], key: str, rows: Sequence[Any], usage: Usage) -> bytes:
    used = [usage.prompt_tokens, usage.completion_tokens]
    return line({"slot": list(slot), "key": key, "usage": used, "rows": [plain_row(row) for row in rows]}).encode()


def usage_of(manifest: Manifest) -> Usage:
    """What a complete artifact has cost."""
    return Usage(manifest.counts["prompt_tokens"], manifest.counts["completion_tokens"])


def line(row: Any) -> str:
    """A row as one line of JSON."""
    return json.dumps(plain_row(row), ensure_ascii=False) + "\n"


def plain_row(row: Any) -> Row:
    """A row (a dataclass, or as it is) as it is written."""
    if isinstance(row, dict):
        return row
    spare = (*SPARE, "reason") if isinstance(row, Judgement) else SPARE
    return {name: value for name, value in vars(row).items() if value or name not in spare}


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write rows (dataclasses or dicts) as lines of JSON."""
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(line(row) for row in rows)


def write_scores(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write scores.csv; a number that is undefined stays empty."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(COLUMNS)
        for row in rows:
            table.writerow(["" if row[name] is None else row[name] for name in COLUMNS])


def read_judgements(folder: Path) -> Iterator[Judgement]:
    """The judgements of complete scores, in their order.

    Raises:
        InputError: the file is missing, or a line is no judgement.
    """
    path = folder / JUDGEMENTS
    try:
        with path.open(encoding="utf-8") as stream:
            for text in stream:
                yield Judgement(**json.loads(text))
    except (OSError, ValueError, TypeError) as error:
        mend = f"remove {folder} and make it again with python -m autointerp.score"
        raise InputError(f"{path} is damaged ({error}); {mend}") from None


def read_explanations(folder: Path, n_latents: int) -> list[Explanation]:
    """The explanations as they are on disk now, perhaps edited by hand.

    A row needs a latent and a text; a text that was typed in where the explainer had failed counts as an explanation.

    Raises:
        InputError: a line is no explanation, or a latent comes twice or does not exist.
    """
    path = folder / EXPLANATIONS
    found: dict[int, Explanation] = {}
    remake = f"remove {folder} and make it again with python -m autointerp.explain"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); {remake}") from None
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            explanation = _explanation(json.loads(text), n_latents)
            if explanation.latent in found:
                raise ValueError(f"latent {explanation.latent} comes twice")
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} line {number}: {error}; mend the line, or {remake}") from None
        found[explanation.latent] = explanation
    return list(found.values())


def _explanation(row: Any, n_latents: int) -> Explanation:
    known = {field.name for field in dataclasses.fields(Explanation)}
    if not isinstance(row, dict) or not {"latent", "text"} <= row.keys() <= known:
        raise ValueError(f"expected an object with latent, text and no fields but {', '.join(sorted(known))}")
    latent, text = row["latent"], row["text"]
    if type(latent) is not int or not 0 <= latent < n_latents:
        raise ValueError(f"latent must be a whole number from 0 to {n_latents - 1}, found {latent!r}")
    if not (text is None or isinstance(text, str)):
        raise ValueError(f"text must be a sentence or null, found {text!r}")
    for name, value in row.items():
        if re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)):
            raise ValueError(f"{name} holds half of a character pair, which cannot be sent or written")
    status = row.get("status", "ok")
    if status not in get_args(ExplanationStatus):
        raise ValueError(f"status must be one of {', '.join(get_args(ExplanationStatus))}, found {status!r}")
    if text and text.strip():
        status = status if status in ("too_rare", "too_dense", "repaired") else "ok"
    elif status in ANSWERED:
        raise ValueError("the text is missing; type a sentence, or remove the line")
    defaults = {"explainer": "", "model": "", "request_key": "", "density": 0.0, "reason": ""}
    return Explanation(**{**defaults, **row, "status": status})


def rows_digest(explanations: Iterable[Explanation]) -> str:
    """sha256 of what explanations say, whatever the spacing of the file."""
    return digest([plain_row(explanation) for explanation in explanations])
