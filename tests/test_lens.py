"""The tuned lens: the subject's head, training against dense computations and planted truth, dictionaries behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sae.tuned_lens
from sae.activations import SUBJECT_BATCH_TOKENS, stream
from sae.architecture import Architecture
from sae.cache import main as cache
from sae.config import CorpusConfig, SAEConfig, SubjectConfig, TrainConfig
from sae.contexts import ContextStore, prepare_contexts
from sae.corpus import open_corpus
from sae.dictionaries import Dictionary, read_dictionary
from sae.errors import InputError
from sae.evaluate import evaluate_layers, placed_at
from sae.head import Head, find_head
from sae.hookpoints import residual_streams
from sae.latents import LatentCache
from sae.layer_dictionaries import added
from sae.layer_maps import LayerMaps
from sae.lens import main as lens
from sae.model import SparseAutoencoder
from sae.specs import asked, kind_of
from sae.subject import Subject, load_subject
from sae.train import main as train
from sae.trainer import Trainer
from sae.tuned_lens import LensTrainer, condition_numbers, find_lens, lens_divergences

TRAINING = "--tokens 3000 --k 4 --expansion 2 --batch-tokens 256 --buffer-tokens 1024 --eval-tokens 500"
NAME = "all.k4.x2.lens"


def _flags(run: Path, subject: Path, corpus: Path, *more: str) -> list[str]:
    return f"--run {run} --subject {subject} --corpus {corpus} --context-length 64 {' '.join(more)}".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, neox_folder: Path, corpus_file: Path) -> Path:
    """A run with a lens, and dictionaries of all layers and of each behind it."""
    folder = tmp_path_factory.mktemp("lens") / "run"
    lens(_flags(folder, neox_folder, corpus_file, "--tokens 8000 --batch-tokens 512 --eval-tokens 500"))
    train(_flags(folder, neox_folder, corpus_file, TRAINING, "--multi-layer --single-layers --lens"))
    return folder


@pytest.fixture(scope="module")
def subject(neox_folder: Path) -> Subject:
    return load_subject(SubjectConfig(str(neox_folder)))


@pytest.fixture(scope="module")
def held_out(subject: Subject, corpus_file: Path) -> ContextStore:
    corpus = open_corpus(CorpusConfig(str(corpus_file), context_length=64))
    return prepare_contexts(corpus, subject.tokenizer, "score", 500, 64, True)


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _identity(layers: tuple[int, ...], d: int) -> LayerMaps:
    return LayerMaps(layers, matrix=torch.eye(d).repeat(len(layers), 1, 1), bias=torch.zeros(len(layers), d))


# --- the head ---


@pytest.mark.parametrize("family", ["neox_folder", "llama_folder"])
def test_the_head_gives_the_subjects_logits_from_its_last_residual_stream(
    family: str, request: pytest.FixtureRequest
) -> None:
    subject = load_subject(SubjectConfig(str(request.getfixturevalue(family))))
    ids = torch.randint(0, 400, (2, 17), generator=torch.Generator().manual_seed(0))
    passed: list[Tensor] = []
    with subject.tap(residual_streams([len(subject.blocks) - 1])[0]).hook(passed.append):
        logits = subject.model(input_ids=ids).logits
    found = find_head(subject)(passed[0].flatten(0, 1))
    torch.testing.assert_close(found, logits.flatten(0, 1), rtol=1e-4, atol=1e-5)


def test_a_soft_cap_of_the_logits_is_part_of_the_head(neox_folder: Path) -> None:
    subject = load_subject(SubjectConfig(str(neox_folder)))
    subject.model.config.final_logit_softcapping = 0.5

    def capped(_module: nn.Module, _args: Any, output: Any) -> Any:
        output.logits = (output.logits / 0.5).tanh() * 0.5
        return output

    subject.model.register_forward_hook(capped)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    bare = subject.model.get_output_embeddings()(subject.model.gpt_neox.final_layer_norm(x))
    torch.testing.assert_close(find_head(subject)(x), (2 * bare).tanh() / 2)


def test_a_head_that_is_not_the_subjects_is_refused(neox_folder: Path) -> None:
    subject = load_subject(SubjectConfig(str(neox_folder)))

    def mixed(_module: nn.Module, _args: Any, output: Any) -> Any:
        output.logits = output.logits.cumsum(-1)
        return output

    subject.model.register_forward_hook(mixed)
    with pytest.raises(InputError, match="cannot find the final norm and the unembedding"):
        find_head(subject)


# --- training ---


def _toy(d: int = 6, vocabulary: int = 40) -> tuple[Head, Tensor]:
    draw = torch.Generator().manual_seed(3)
    unembedding = nn.Linear(d, vocabulary, bias=False).requires_grad_(False)
    unembedding.weight.copy_(torch.randn(vocabulary, d, generator=draw) / 2)
    # More rows than one piece of logits.
    return Head((unembedding,), lambda logits: logits, torch.float32), torch.randn(300, d, generator=draw)


def _dense_kl(head: Head, y: Tensor, final: Tensor) -> Tensor:
    p, q = head(final).softmax(-1), head(y).softmax(-1)
    return (p * (p.log() - q.log())).sum(1).mean()


def test_a_step_is_that_of_the_dense_loss() -> None:
    head, final = _toy()
    layers = [0.1 * final.roll(1, 0) + 2, 5 * final.flip(0)]
    trainer = LensTrainer(head, layers, peak=0.01)
    found = trainer.step(layers, final, share=0.5)
    matrices, biases = trainer.maps()
    for place, x in enumerate(layers):
        unit = x.square().mean().sqrt()
        a, c = torch.zeros(6, 6, requires_grad=True), torch.zeros(6, requires_grad=True)
        optimiser = torch.optim.Adam([a, c], lr=0.005)
        loss = _dense_kl(head, x + x @ a.T + unit * c, final)
        loss.backward()
        optimiser.step()
        torch.testing.assert_close(found[place], loss.detach())
        torch.testing.assert_close(matrices[place], torch.eye(6) + a.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(biases[place], unit * c.detach(), rtol=1e-4, atol=1e-4)


def test_a_planted_map_between_layers_is_found() -> None:
    head, final = _toy()
    draw = torch.Generator().manual_seed(5)
    true, shift = torch.eye(6) + 0.15 * torch.randn(6, 6, generator=draw), torch.randn(6, generator=draw)
    x = (final - shift) @ torch.linalg.inv(true).T
    trainer = LensTrainer(head, [x], peak=0.03)
    kl = [float(trainer.step([x], final, 1 - step / 1200)[0]) for step in range(1200)]
    matrices, biases = trainer.maps()
    assert kl[0] > 0.5 and kl[-1] < 1e-5
    torch.testing.assert_close(matrices[0], true, rtol=0, atol=0.01)
    torch.testing.assert_close(biases[0], shift, rtol=0, atol=0.01)


def test_without_a_map_it_is_the_logit_lens(subject: Subject, held_out: ContextStore) -> None:
    places = [*residual_streams(range(3)), *residual_streams([2])]
    batches = list(held_out.batches(SUBJECT_BATCH_TOKENS, np.random.default_rng(0)))
    found = lens_divergences(find_head(subject), _identity((0, 1, 2), 32), stream(subject, held_out, places, batches))
    sums, n = torch.zeros(3, dtype=torch.float64), 0
    for batch in batches:
        for ids, length in zip(batch.ids, batch.lengths, strict=True):
            output = subject.model(input_ids=torch.from_numpy(ids[None, :length]), output_hidden_states=True)
            log_p = output.logits[0, 1:].double().log_softmax(-1)
            for layer in range(3):
                # The last of these already has the final norm behind it.
                x = output.hidden_states[layer + 1][0, 1:]
                x = x if layer == 2 else subject.model.gpt_neox.final_layer_norm(x)
                log_q = subject.model.get_output_embeddings()(x).double().log_softmax(-1)
                sums[layer] += (log_p.exp() * (log_p - log_q)).sum().detach()
            n += length - 1
    assert found.n_tokens == n and found.tuned_lens == pytest.approx(found.logit_lens)
    assert found.logit_lens == pytest.approx((sums / n).tolist(), rel=1e-3, abs=1e-6)


# --- the stage ---


def test_the_lens_beats_the_logit_lens_at_every_layer_but_the_last(run: Path) -> None:
    metrics = _read(run / "lens" / "metrics.json")
    rows = metrics["by_layer"]
    assert [row["layer"] for row in rows] == [0, 1, 2]
    for row in rows[:2]:
        assert row["kl_tuned_lens"] < 0.7 * row["kl_logit_lens"] and 1 < row["condition"] < 100
    assert rows[2]["kl_logit_lens"] == pytest.approx(0, abs=1e-6) and rows[2]["condition"] == 1
    log = [json.loads(line) for line in (run / "lens" / "train_log.jsonl").read_text().splitlines()]
    assert len(log[0]["kl"]) == 2 and log[-1]["tokens"] >= 8000 == _read(run / "lens/manifest.json")["config"]["tokens"]
    maps = find_lens(run, _read(run / "lens/manifest.json")["parents"]["subject"], ()).maps
    assert maps.matrix is not None and torch.equal(maps.matrix[2], torch.eye(32)) and len(maps.layers) == 3


def test_the_same_command_gives_the_same_lens_and_says_when_it_is_there(
    tmp_path: Path, run: Path, neox_folder: Path, corpus_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = "--tokens 8000 --batch-tokens 512 --eval-tokens 500"
    lens(_flags(tmp_path / "again", neox_folder, corpus_file, sizes))
    assert "complete already" not in capsys.readouterr().out
    for name in ("layer_maps.safetensors", "metrics.json", "train_log.jsonl"):
        assert (tmp_path / "again" / "lens" / name).read_bytes() == (run / "lens" / name).read_bytes()
    lens(_flags(tmp_path / "again", neox_folder, corpus_file, sizes))
    out = capsys.readouterr().out
    assert "lens: complete already" in out and "layer  logit lens  tuned lens" in out
    with pytest.raises(InputError, match=r"other settings \(seed=0 there, 1 asked\)"):
        lens(_flags(tmp_path / "again", neox_folder, corpus_file, sizes, "--seed 1"))


def test_a_run_with_a_lens_is_not_given_to_another_subject(
    tmp_path: Path, neox_folder: Path, llama_folder: Path, corpus_file: Path
) -> None:
    sizes = "--tokens 300 --eval-tokens 200"
    lens(_flags(tmp_path, neox_folder, corpus_file, sizes))
    with pytest.raises(InputError, match="use another --run"):
        lens(_flags(tmp_path, llama_folder, corpus_file, sizes))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--layers 0 3", r"layer 3 is out of range.*has layers 0 to 2"),
        ("--layers 2", r"layer 2 is the last, whose map is the identity"),
        ("--layers 1 1", r"--layers names something twice"),
        ("--tokens 0", r"--tokens must be at least 1"),
        ("--learning-rate -1", r"--learning-rate must be positive"),
        ("--learning-rate 1e30 --tokens 2000", r"the loss of layer 0 is nan; ask for a lower --learning-rate"),
        ("--tokens 100000000", r"tokens, 100,000,000 were asked"),
    ],
)
def test_a_lens_that_makes_no_sense_is_one_line(
    extra: str, message: str, tmp_path: Path, neox_folder: Path, corpus_file: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        lens(_flags(tmp_path, neox_folder, corpus_file, "--eval-tokens 200", extra))
    assert "\n" not in str(caught.value) and not (tmp_path / "lens").exists()


# --- dictionaries behind a lens ---


def _dictionary(run: Path, name: str = NAME) -> Dictionary:
    return read_dictionary(run / "sae" / name, run)


def test_dictionaries_keep_the_maps_they_were_trained_behind(run: Path) -> None:
    whole, manifest = _dictionary(run), _read(run / "lens/manifest.json")
    written = find_lens(run, manifest["parents"]["subject"], ()).maps
    assert whole.maps is not None and whole.maps.kind == "lens" and whole.facts["layer_maps"] == "lens"
    for name, tensor in written.tensors.items():
        assert torch.equal(whole.maps.tensors[name], tensor)
    one = _dictionary(run, "layers.1.k4.x2.standardise.lens")
    assert one.maps is not None and one.maps.layers == (1,) and torch.equal(one.maps.matrix[0], written.matrix[1])  # type: ignore[index]
    for name in (NAME, one.name):
        assert _read(run / "sae" / name / "manifest.json")["parents"]["lens"] == manifest["fingerprint"]


def test_metrics_say_the_error_before_and_behind_the_lens(run: Path, subject: Subject, held_out: ContextStore) -> None:
    metrics, whole = _read(run / "sae" / NAME / "metrics.json"), _dictionary(run)
    assert whole.maps is not None
    batches = held_out.batches(SUBJECT_BATCH_TOKENS, np.random.default_rng(0))
    vectors = [batch.vectors for batch in stream(subject, held_out, whole.hookpoints, batches)]
    for place, x in enumerate(torch.cat(parts) for parts in zip(*vectors, strict=True)):
        seen = whole.maps.apply(x, place)
        given = whole.model(seen).reconstruction.detach()
        row = metrics["by_layer"][place]
        for name, a, b in (("fvu_lens", seen, given), ("fvu", x, whole.maps.invert(given, place))):
            fvu = float((a - b).square().sum() / (a - a.mean(0)).square().sum())
            assert row[name] == pytest.approx(fvu, rel=1e-3), name
        # Only the last layer's lens is the identity.
        assert (abs(row["fvu"] - row["fvu_lens"]) < 1e-5) == (place == 2)
    assert metrics["fvu_lens"] == pytest.approx(np.mean([row["fvu_lens"] for row in metrics["by_layer"]]))


def test_what_is_perfect_behind_the_lens_is_perfect_before_it(
    run: Path, subject: Subject, held_out: ContextStore
) -> None:
    maps = _dictionary(run).maps
    model = SparseAutoencoder(Architecture("topk", 32, 64, 32))
    both = torch.cat([torch.eye(32), -torch.eye(32)])
    with torch.no_grad():
        model.initialise(torch.randn(10, 32), torch.Generator().manual_seed(0))
        for weights in (model.w_enc, model.w_dec):
            weights.copy_(both)
        model.b_dec.zero_()
        model.b_enc.zero_()
    (found,) = evaluate_layers(subject, held_out, [placed_at(model, residual_streams(range(3)), maps=maps)])
    assert 0 <= found["fvu"] < 1e-8 and 0 <= found["fvu_lens"] < 1e-8
    assert found["kl"] == pytest.approx(0, abs=1e-5)


def test_caches_hold_what_fires_behind_the_lens(run: Path, subject: Subject, corpus_file: Path) -> None:
    cache(["--run", str(run), "--tokens", "600", "--per-layer"])
    whole = _dictionary(run)
    assert whole.maps is not None
    corpus = open_corpus(CorpusConfig(str(corpus_file), context_length=64))
    counts, bare = torch.zeros(64, dtype=torch.int64), torch.zeros(64, dtype=torch.int64)
    for split in ("explain", "score"):
        store = prepare_contexts(corpus, subject.tokenizer, split, 300, 64)
        batches = store.batches(SUBJECT_BATCH_TOKENS, np.random.default_rng(0))
        for batch in stream(subject, store, whole.hookpoints[:1], batches):
            for total, x in ((counts, whole.maps.apply(batch.vectors[0], 0)), (bare, batch.vectors[0])):
                values, indices = whole.model.encode(x)
                total.add_(torch.bincount(indices[values > 0], minlength=64))
    found = np.diff(np.asarray(LatentCache.open(run / "latents" / f"{NAME}.at0").offsets))
    assert found.tolist() == counts.tolist() != bare.tolist()


def test_steering_goes_back_through_the_lens(run: Path) -> None:
    whole = _dictionary(run)
    assert whole.maps is not None and whole.maps.inverse is not None
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    _, units = whole.model.prepared(whole.maps.apply(x, 0))
    expected = (2.0 * whole.model.w_dec[5] * units.factor) @ whole.maps.inverse[0].T
    torch.testing.assert_close(added(x, whole, 0, 5, 2.0), expected.expand_as(x), rtol=1e-3, atol=1e-5)


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_killed_training_behind_a_lens_gives_the_same_files(
    tmp_path: Path, run: Path, neox_folder: Path, corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lens(_flags(tmp_path, neox_folder, corpus_file, "--tokens 8000 --batch-tokens 512 --eval-tokens 500"))
    flags = _flags(tmp_path, neox_folder, corpus_file, TRAINING, "--multi-layer --lens --snapshot-steps 3")
    step, left = Trainer.step, [7]

    def counted(self: Trainer, *args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return step(self, *args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "step", counted)
        train(flags)
    assert list((tmp_path / "sae").glob(".training-*/step-*"))
    train(flags)
    for name in ("weights.safetensors", "layer_maps.safetensors", "metrics.json", "config.json"):
        assert (tmp_path / "sae" / NAME / name).read_bytes() == (run / "sae" / NAME / name).read_bytes(), name


def test_another_lens_is_another_dictionary(tmp_path: Path, neox_folder: Path, corpus_file: Path) -> None:
    flags = _flags(tmp_path, neox_folder, corpus_file, TRAINING, "--tokens 600 --multi-layer --lens")
    sizes = "--tokens 600 --eval-tokens 200"
    lens(_flags(tmp_path, neox_folder, corpus_file, sizes))
    train(flags)
    lens(_flags(tmp_path, neox_folder, corpus_file, sizes, "--seed 1 --overwrite"))
    with pytest.raises(InputError, match="made from artifacts that have changed since"):
        train(flags)


def test_a_map_that_cannot_be_undone_is_refused_with_its_layer_and_number(
    run: Path, neox_folder: Path, corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrices = torch.stack([torch.diag(torch.tensor([4.0, -0.5])), torch.eye(2)])
    assert condition_numbers(matrices) == pytest.approx([8, 1])
    condition = _read(run / "lens/metrics.json")["by_layer"][1]["condition"]
    flags = _flags(run, neox_folder, corpus_file, TRAINING, "--multi-layer --lens --seed 4 --layers")
    monkeypatch.setattr(sae.tuned_lens, "LARGEST_CONDITION", 1.0)
    with pytest.raises(InputError, match=rf"map of layer 1 in .* cannot be undone.* number is {condition:.3g}, at"):
        train([*flags, "2", "1"])
    train([*flags, "2"])


def test_a_lens_is_read_only_where_it_fits(run: Path, tmp_path: Path, neox_folder: Path, corpus_file: Path) -> None:
    subject_mark = _read(run / "lens/manifest.json")["parents"]["subject"]
    with pytest.raises(InputError, match=r"was trained on another subject; train it again with python -m sae\.lens"):
        find_lens(run, "another", ())
    with pytest.raises(InputError, match=r"has maps for layers 0, 1, 2, none for layer 3; name some"):
        find_lens(run, subject_mark, (0, 3))
    assert find_lens(run, subject_mark, (2, 0)).maps.layers == (0, 2)
    lens(_flags(tmp_path, neox_folder, corpus_file, "--layers 1 --tokens 300 --eval-tokens 200"))
    path = tmp_path / "lens" / "layer_maps.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="is damaged"):
        find_lens(tmp_path, subject_mark, ())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--multi-layer --lens", r"lens does not exist; train one with python -m sae\.lens --run"),
        ("--lens --layers 0", r"--lens goes with --multi-layer"),
        ("--multi-layer --lens --normalise layer-scale", r"--lens and --normalise layer-scale do not go together"),
    ],
)
def test_a_dictionary_that_cannot_have_a_lens_is_one_line(
    extra: str, message: str, tmp_path: Path, neox_folder: Path, corpus_file: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        train(_flags(tmp_path, neox_folder, corpus_file, TRAINING, extra))
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob("manifest.json"))


def test_names_and_settings_say_that_there_is_a_lens() -> None:
    config = TrainConfig(Path("r"), (0, 2), multi_layer=True)
    for behind, name in ((SAEConfig(lens=True), "layers.0-2.lens"), (SAEConfig(), "layers.0-2")):
        (spec,) = asked(config, behind, 4)
        settings = spec.settings(config, {"subject": "s", "subject_fingerprint": None}, {})
        assert (spec.name, settings.get("lens")) == (name, behind.lens or None)
    facts = {"layers": [0, 2], "layer_maps": "lens"}
    assert kind_of(facts | {"normalise": "standardise"}) == "multi-layer lens"
    assert kind_of(facts | {"normalise": "none"}) == "multi-layer unnormalised lens"
