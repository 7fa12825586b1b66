"""`run.json`: which subject, variant and corpus a run holds. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae.artifacts import is_locked, plain, read_json, write_json
from sae.errors import InputError

RUN_KEYS = {"subject", "variant", "corpus"}
PLACES = {"subject": "subject_fingerprint", "corpus": "corpus_fingerprint"}
"""What may lie elsewhere than when the run was made, as long as its fingerprint is the same."""


def claim_run(run: Path, identity: Mapping[str, Any]) -> None:
    """Note in `run.json` which subject, variant and corpus a run holds, or check that it holds these.

    A run without any complete artifact may be claimed anew: its first command may have had a mistake in it. Not while
    another process writes one: what it completes would then belong to a subject that it was not made from.

    Raises:
        InputError: the run holds another subject, variant or corpus.
    """
    path, wanted = run / "run.json", plain(identity)
    if run.exists() and not run.is_dir():
        raise InputError(f"--run {run} is a file; name a folder")
    if path.exists() and (_has_artifact(run)):
        found = read_run(run)
        for key in wanted:
            mark = PLACES.get(key, "")
            moved = wanted.get(mark) is not None and found.get(mark) == wanted[mark]
            if found.get(key) != wanted[key] and not moved:
                raise InputError(f"{run} holds {key} {found.get(key)!r}, asked was {wanted[key]!r}; use another --run")
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)
    except OSError as error:
        raise InputError(f"cannot write to --run {run}: {error.strerror}; name a folder that can be written") from None


def _has_artifact(run: Path) -> bool:
    """Whether a run holds a complete artifact, or one that another process is writing."""
    # The lens lies directly in the run, everything else one folder deeper.
    complete = any(any(run.glob(form)) for form in ("*/manifest.json", "*/*/manifest.json"))
    return complete or any(is_locked(lock) for form in (".*.lock", "*/.*.lock") for lock in run.glob(form))


def read_run(run: Path) -> dict[str, Any]:
    """What a run holds.

    Raises:
        InputError: the folder is no run.
    """
    if not (run / "run.json").exists():
        raise InputError(f"{run} is not a run (no run.json); make one with python -m sae.train --run {run} ...")
    found = read_json(run / "run.json", "use another --run")
    if not isinstance(found, dict) or not found.keys() >= RUN_KEYS:
        raise InputError(f"{run / 'run.json'} does not say what the run holds; use another --run")
    return found
