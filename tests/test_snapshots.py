"""Interrupted training: what goes on from a snapshot, what does not, and that nothing shows in the result."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sae.artifacts import dictionary_folder
from sae.config import TrainConfig
from sae.errors import InputError
from sae.snapshots import SnapshotClock, SnapshotStore, environment
from sae.train import main
from sae.trainer import Trainer

CLOCK = ("seconds", "tokens_per_second")
HARD = ["--layers", "0", "1", "--seeds", "0", "3", "--skip-embed", "--dead-after", "0.05", "--clip", "0.5"]


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def _flags(run: Path, subject: Path, corpus: Path) -> list[str]:
    flags = f"--run {run} --subject {subject} --corpus {corpus} --tokens 6000 --k 4 --expansion 2 --context-length 64"
    sizes = "--batch-tokens 256 --buffer-tokens 1024 --eval-tokens 500"
    return [*flags.split(), *sizes.split(), "--snapshot-steps", "1"]


@contextmanager
def _stopped(patch: pytest.MonkeyPatch, owner: Any, name: str, calls: int) -> Iterator[None]:
    """Die in a function's call of this number."""
    original: Callable[..., Any] = getattr(owner, name)
    left = [calls]

    def counted(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return original(*args, **kwargs)

    with patch.context() as inner, pytest.raises(Killed):
        inner.setattr(owner, name, counted)
        yield


def _result(run: Path) -> dict[str, Any]:
    """Every file of every dictionary, by its name, without what a clock has measured."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in (run / "sae").glob("[!.]*/*") if p.parent.suffix != ".partial"):
        name = str(path.relative_to(run))
        if path.name == "manifest.json":
            found[name] = json.loads(path.read_text())["fingerprint"]
        elif path.name == "train_log.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]
        else:
            found[name] = path.read_bytes()
    return found


def _folders(run: Path) -> list[Path]:
    return sorted((run / "sae").glob(".training-*"))


@pytest.mark.parametrize(
    ("state", "stops"), [("float32", (2, 9, 16, 23, 37)), ("bfloat16", (9, 42)), ("8bit", (38, 30))]
)
def test_a_training_stopped_at_many_steps_gives_the_files_of_one_that_was_not(
    state: str, stops: tuple[int, ...], tmp_path: Path, neox_folder: Path, corpus_file: Path
) -> None:
    monkeypatch = pytest.MonkeyPatch()
    extra = [*HARD, "--optimiser-state", state, "--snapshot-steps", "2"]
    main([*_flags(tmp_path / "whole", neox_folder, corpus_file), *extra, "--snapshot-minutes", "0"])
    flags = [*_flags(tmp_path / "stopped", neox_folder, corpus_file), *extra]
    # Four dictionaries: in the middle of a step, and right after one; each process goes on from the last.
    for calls in stops:
        with _stopped(monkeypatch, Trainer, "step", calls):
            main(flags)
    main(flags)
    whole, stopped = _result(tmp_path / "whole"), _result(tmp_path / "stopped")
    assert whole == stopped
    (rows, *_) = [value for name, value in whole.items() if name.endswith("train_log.jsonl")]
    assert [row["step"] for row in rows] == [0, 20, 23] and rows[1]["dead_share"] > 0
    assert not _folders(tmp_path / "stopped")


def test_a_process_that_dies_while_it_writes_a_snapshot_leaves_the_one_before(
    tmp_path: Path,
    neox_folder: Path,
    corpus_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    extra = ["--layers", "0", "1", "--skip-embed"]
    main([*_flags(tmp_path / "whole", neox_folder, corpus_file), *extra])
    flags = [*_flags(tmp_path / "stopped", neox_folder, corpus_file), *extra]
    # A snapshot is flushed 10 times here, the means 5 times: inside the means, a first, a second, between two.
    for flushes in (2, 9, 27, 15, 34):
        with _stopped(monkeypatch, os, "fsync", flushes):
            main(flags)
    caplog.clear()
    main(flags)
    assert "going on at step" in caplog.text
    assert _result(tmp_path / "whole") == _result(tmp_path / "stopped")


def _stop_after(steps: int, flags: list[str], patch: pytest.MonkeyPatch) -> None:
    """Train one dictionary for so many steps."""
    with _stopped(patch, Trainer, "step", steps):
        main(flags)


def test_going_on_is_said_in_one_line_and_the_subject_does_not_read_again(
    tmp_path: Path,
    neox_folder: Path,
    corpus_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    flags = [*_flags(tmp_path / "run", neox_folder, corpus_file), "--layers", "0"]
    _stop_after(20, flags, monkeypatch)
    assert "going on" not in caplog.text
    seen = []
    original = torch.nn.Embedding.forward
    monkeypatch.setattr(
        torch.nn.Embedding, "forward", lambda self, ids: seen.append(ids.numel()) or original(self, ids)
    )
    main(flags)
    assert caplog.text.count("going on at step 20 of 24") == 1
    # 6,000 for the training, 500 for the evaluation and the probes, were it to begin anew.
    assert sum(seen) < 3500


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "damaged",
    [
        ("dictionary.layers.0.k4.x2.safetensors", _flip),
        ("vectors.layers.0.safetensors", _cut),
        ("baselines.layers.0.safetensors", Path.unlink),
        ("snapshot.json", _cut),
        ("snapshot.json", lambda path: path.write_text("[]")),
        ("snapshot.json", Path.unlink),
    ],
)
def test_a_damaged_snapshot_is_one_line_and_the_training_starts_anew(
    damaged: tuple[str, Callable[[Path], None]],
    tmp_path: Path,
    neox_folder: Path,
    corpus_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    flags = [*_flags(tmp_path / "run", neox_folder, corpus_file), "--layers", "0"]
    _stop_after(5, flags, monkeypatch)
    (folder,) = _folders(tmp_path / "run")
    assert [path.name for path in folder.iterdir()] == ["step-5"]
    file, damage = damaged
    damage(folder / "step-5" / file)
    with _stopped(monkeypatch, Trainer, "step", 2):
        main(flags)
    assert [r.message for r in caplog.records if "is not used: it is damaged" in r.message]
    assert "going on" not in caplog.text
    assert [path.name for path in folder.iterdir()] == ["step-2"]


def test_a_snapshot_of_other_settings_is_not_used(
    tmp_path: Path,
    neox_folder: Path,
    corpus_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    flags = [*_flags(tmp_path / "run", neox_folder, corpus_file), "--layers", "0"]
    _stop_after(5, flags, monkeypatch)
    _stop_after(3, [*flags, "--learning-rate", "1e-4"], monkeypatch)
    assert caplog.text.count("is not used: it was made with other settings") == 1
    assert "going on" not in caplog.text
    caplog.clear()
    main([*flags, "--layers", "0", "1"])
    assert caplog.text.count("is not used: layers.1.k4.x2 was not trained with it") == 1


def test_dictionaries_go_on_without_the_ones_that_were_trained_beside_them(
    tmp_path: Path,
    neox_folder: Path,
    corpus_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    main([*_flags(tmp_path / "alone", neox_folder, corpus_file), "--layers", "1", "--skip-embed"])
    flags = _flags(tmp_path / "run", neox_folder, corpus_file)
    with _stopped(monkeypatch, Trainer, "step", 30):
        main([*flags, "--layers", "0", "1", "2", "--skip-embed"])
    main([*flags, "--layers", "1", "--skip-embed"])
    assert "going on at step 10 of 24" in caplog.text
    assert _result(tmp_path / "alone") == _result(tmp_path / "run")


def test_a_training_killed_between_its_dictionaries_does_not_train_the_rest_anew(
    tmp_path: Path,
    neox_folder: Path,
    corpus_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from sae import train

    caplog.set_level(logging.INFO)
    flags = [*_flags(tmp_path / "run", neox_folder, corpus_file), "--layers", "0", "1"]
    with _stopped(monkeypatch, train, "save_dictionary", 1):
        main(flags)
    assert dictionary_folder(tmp_path / "run", "layers.0.k4.x2").exists()
    main(flags)
    assert "going on at step 23 of 24" in caplog.text
    main([*_flags(tmp_path / "whole", neox_folder, corpus_file), "--layers", "0", "1"])
    assert _result(tmp_path / "whole") == _result(tmp_path / "run")


def test_snapshots_that_are_off_are_neither_written_nor_used(
    tmp_path: Path,
    neox_folder: Path,
    corpus_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    flags = [*_flags(tmp_path / "run", neox_folder, corpus_file), "--layers", "0"]
    off = [*flags[:-4], *flags[-2:], "--snapshot-minutes", "0"]
    _stop_after(5, off, monkeypatch)
    assert not _folders(tmp_path / "run")
    _stop_after(5, flags, monkeypatch)
    main(off)
    assert "going on" not in caplog.text
    assert not _folders(tmp_path / "run")


def test_a_disk_that_is_full_is_one_warning_and_the_training_goes_on(
    tmp_path: Path, neox_folder: Path, corpus_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main([*_flags(tmp_path / "whole", neox_folder, corpus_file), "--layers", "0"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # More than the weights take and less than the baselines: the system itself refuses to write on.
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        main([*_flags(tmp_path / "full", neox_folder, corpus_file), "--layers", "0"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert (
        len(warnings) == 1 and "no snapshot could be written" in warnings[0] and os.strerror(errno.EFBIG) in warnings[0]
    )
    assert _result(tmp_path / "whole") == _result(tmp_path / "full")


def test_a_place_that_cannot_be_written_is_one_warning_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SnapshotStore(tmp_path, ("a",), {"a": "1"}, {})
    store.folder.write_text("in the way")
    parts = [("x", {"y": torch.ones(3)})]
    store.save("step-1", {}, parts)
    store.save("step-2", {}, parts)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert store.newest("step") is None
    store.folder.unlink()
    store.save("step-3", {"step": 3}, parts)
    snapshot = store.newest("step")
    assert snapshot is not None and snapshot.facts["step"] == 3
    assert snapshot.part("x")["y"].tolist() == [1, 1, 1]


def test_another_device_or_another_pytorch_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    SnapshotStore(tmp_path, ("a",), {"a": "1"}, {"torch": "2.8"}).save("step-1", {}, [])
    assert SnapshotStore(tmp_path, ("a",), {"a": "1"}, {"torch": "2.8"}).newest("step")
    assert SnapshotStore(tmp_path, ("a",), {"a": "1"}, {"torch": "2.9"}).newest("step") is None
    assert "on another device or by other packages (torch 2.8 there, 2.9 here)" in caplog.text


def test_a_training_goes_on_with_the_threads_that_it_began_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = torch.get_num_threads()
    store = SnapshotStore(tmp_path, ("a",), {"a": "1"}, {"device": "cpu"})
    try:
        torch.set_num_threads(2)
        store.save("step-1", {}, [])
        torch.set_num_threads(1)
        assert store.newest("step")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert "taking 2 threads instead of 1" in caplog.text


def test_a_machine_that_screens_in_another_arithmetic_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for dtype in (torch.bfloat16, torch.float32):
        monkeypatch.setattr("sae.snapshots.screen_dtype", lambda _, dtype=dtype: dtype)
        store = SnapshotStore(tmp_path, ("a",), {"a": "1"}, environment(torch.device("cpu")))
        assert store.newest("step") is None
        store.save("step-1", {}, [])
        assert store.newest("step")
    assert "(screen bfloat16 there, float32 here)" in caplog.text


def test_the_newest_of_two_snapshots_counts_as_a_number(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, ("a",), {"a": "1"}, {})
    store.save("step-9", {"step": 9}, [])
    kept = (store.folder / "step-9").rename(tmp_path / "kept")
    store.save("step-10", {"step": 10}, [])
    kept.rename(store.folder / "step-9")
    snapshot = store.newest("step")
    assert snapshot is not None and snapshot.facts["step"] == 10


def test_a_snapshot_is_due_every_so_many_steps_or_minutes_but_not_after_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    config = TrainConfig(Path("r"), (0,), tokens=100, batch_tokens=10, snapshot_steps=5)
    assert [step for step in range(1, 11) if SnapshotClock(config).is_due(step)] == [5]
    clock = SnapshotClock(TrainConfig(Path("r"), (0,), tokens=100, batch_tokens=10, snapshot_minutes=0.5))
    due = []
    for step in range(1, 11):
        now[0] = 10.0 * step
        if clock.is_due(step):
            due.append(step)
            clock.restart()
    assert due == [3, 6, 9]
    off = TrainConfig(Path("r"), (0,), tokens=100, batch_tokens=10, snapshot_minutes=0)
    assert not SnapshotClock(off).is_due(5) and not off.snapshots


def test_an_exploding_loss_stops_names_the_state_before_and_the_others_can_go_on(
    tmp_path: Path,
    neox_folder: Path,
    corpus_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    original = Trainer.step

    def poisoned(self: Trainer, x: torch.Tensor, *rest: Any) -> Any:
        bad = self.model.k == 3 and self.tokens >= 15 * 256
        return original(self, x * math.nan if bad else x, *rest)

    flags = [*_flags(tmp_path / "run", neox_folder, corpus_file), "--layers", "0"]
    message = (
        r"^training of layers\.0\.k3\.x2 diverged at step 15 \(FVU nan, learning rate [\d.e-]+\); pass a lower "
        r"--learning-rate .* starts anew; the state before that is kept in .*/step-15, from where the others go on"
    )
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", poisoned)
        with pytest.raises(InputError, match=message):
            main([*flags, "--ks", "3", "5"])
        assert not list((tmp_path / "run").rglob("manifest.json"))
        # The same again: not silently, and with the same end.
        with pytest.raises(InputError, match=message):
            main([*flags, "--ks", "3", "5"])
        assert "going on at step 15 of 24" in caplog.text
    main([*flags, "--ks", "5"])
    assert caplog.text.count("going on at step 15 of 24") == 2
    main([*_flags(tmp_path / "alone", neox_folder, corpus_file), "--layers", "0", "--k", "5"])
    assert _result(tmp_path / "alone") == _result(tmp_path / "run")
