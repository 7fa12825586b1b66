"""The subject: a causal language model, as trained or as one of its random twins, with hooks on its residual stream."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from sae.artifacts import digest, read_json
from sae.config import SubjectConfig
from sae.errors import InputError
from sae.randomise import control_embeddings, describe_report, embedding_scale, rerandomise

log = logging.getLogger(__name__)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
MODEL_FILES = ("config.json", "tokenizer.json", "recipe.json")
# Stages draw their own progress bars.
disable_progress_bar()  # type: ignore[no-untyped-call]
LOAD_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


@dataclass(frozen=True)
class Subject:
    """A loaded model with everything that a run needs to know of it."""

    model: Any
    tokenizer: Any
    blocks: Sequence[nn.Module]
    config: SubjectConfig
    report: dict[str, Any]
    """How the variant was made."""

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def check_layer(self, layer: int) -> None:
        """Raise `InputError` unless the subject has this block."""
        if not 0 <= layer < len(self.blocks):
            found = f"{self.config.subject} has layers 0 to {len(self.blocks) - 1}"
            raise InputError(f"layer {layer} is out of range: {found}; ask for one of them")

    def check_context(self, context_length: int) -> None:
        """Raise `InputError` if contexts of this length do not fit the subject's positions."""
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or context_length
        if context_length > longest:
            found = f"{self.config.subject} reads at most {longest} tokens"
            raise InputError(f"--context-length {context_length} is too long: {found}; ask for fewer")


def subject_identity(config: SubjectConfig) -> dict[str, Any]:
    """What determines the subject's weights and arithmetic, without loading them.

    A local folder is known by its config and by the names, sizes and ends of its weight files; a hub id by its name and
    revision.

    Raises:
        InputError: a local folder that does not exist or is no model.
    """
    source, revision = _source(config)
    folder = Path(source)
    parts = []
    if folder.is_dir():
        source = str(folder.resolve())
        for path in sorted(
            p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin") or p.name in MODEL_FILES
        ):
            with path.open("rb") as stream:
                head = stream.read(1 << 20)
                stream.seek(max(0, path.stat().st_size - (1 << 20)))
                parts.append([path.name, path.stat().st_size, hashlib.sha256(head + stream.read()).hexdigest()])
    return {
        "subject": source,
        "revision": revision,
        "variant": config.variant,
        "variant_seed": config.variant_seed,
        "control_scale": config.control_scale if config.variant == "control" else None,
        "dtype": config.dtype,
        "subject_fingerprint": digest(parts),
    }


class _Stop(Exception):
    """Ends a forward pass after the last block that is needed."""


@torch.no_grad()
def residuals(subject: Subject, ids: Tensor, documents: Tensor, starts: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """The residual stream after some blocks; the pass ends after the last of them.

    Contexts are padded on the right, which a causal model cannot see from the left, so no attention mask is needed.

    Args:
        subject: the model.
        ids: token ids, int64 [batch, token].
        documents: keys of the documents, int64 [batch]; the control variant draws its embeddings from them.
        starts: place of each context's first token in its document, int64 [batch].
        layers: block indices.

    Returns:
        One tensor [batch, token, d_model] per layer, in the order of `layers`.
    """
    caught: dict[int, Tensor] = {}
    last = max(layers)

    def hook(layer: int) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            # GPT-NeoX blocks return a tensor, others a tuple that begins with it.
            caught[layer] = output if isinstance(output, Tensor) else output[0]
            if layer == last:
                raise _Stop

        return keep

    handles = [subject.blocks[layer].register_forward_hook(hook(layer)) for layer in set(layers)]
    try:
        ids = ids.to(subject.device)
        if subject.config.variant == "control":
            embeddings = _control_inputs(subject, ids, documents, starts)
            subject.model(inputs_embeds=embeddings, use_cache=False)
        else:
            subject.model(input_ids=ids, use_cache=False)
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return [caught[layer] for layer in layers]


def _control_inputs(subject: Subject, ids: Tensor, documents: Tensor, starts: Tensor) -> Tensor:
    noise = control_embeddings(subject.config.variant_seed, documents, starts, ids.shape[1], subject.d_model)
    dtype = next(subject.model.parameters()).dtype
    return (noise * float(subject.report["embedding_scale"])).to(ids.device, dtype)


def load_subject(config: SubjectConfig) -> Subject:
    """Load a subject and make its variant.

    Raises:
        InputError: no such model, not a causal language model, weights that do not fit it, or no fast tokenizer.
    """
    source, revision = _source(config)
    device = _device(config.device)
    dtype = _dtype(config.dtype, device)
    try:
        architecture = AutoConfig.from_pretrained(source, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    except LOAD_ERRORS as error:
        raise InputError(_cannot_load(config.subject, error)) from None
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(f"{config.subject} has no fast tokenizer (tokenizer.json); convert it with transformers first")
    report: dict[str, Any] = {}
    if config.variant == "step0":
        model, report = _step0(config, source, architecture, dtype)
    else:
        model = _pretrained(config.subject, source, revision, dtype)
    if config.variant in ("rerandomised", "rerandomised-keep-embeddings"):
        keep = _embeddings(model) if config.variant == "rerandomised-keep-embeddings" else []
        report = rerandomise(model, config.variant_seed, keep).as_dict()
    elif config.variant == "control":
        matched = config.control_scale == "matched"
        scale = embedding_scale(model.get_input_embeddings().weight) if matched else 1.0
        report = {"embedding_scale": scale}
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise InputError(
            f"the tokenizer of {config.subject} has {len(tokenizer)} tokens, its model {rows}; they do not fit"
        )
    model.eval().requires_grad_(False).to(device)
    log.info("%s, %s: %s", config.subject, config.variant, describe_report(report))
    return Subject(model, tokenizer, _blocks(model), config, report)


def _source(config: SubjectConfig) -> tuple[str, str | None]:
    path = Path(config.subject).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise InputError(f"--subject {config.subject} has no config.json; name a folder written by save_pretrained")
        if not any((path / name).exists() for name in TOKENIZER_FILES):
            # transformers would make up an empty tokenizer and go on.
            raise InputError(f"--subject {config.subject} has no tokenizer.json; save its tokenizer into the folder")
        return str(path), None
    looks_local = config.subject.startswith((".", "/", "~")) or config.subject.count("/") > 1 or path.exists()
    if looks_local:
        raise InputError(f"--subject {config.subject}: no such folder; name a local model folder or a Hugging Face id")
    return config.subject, config.revision


def _cannot_load(name: str, error: BaseException) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    mend = "name a local model folder, or a causal language model on the hub with the network up"
    return f"cannot load --subject {name} ({reason}); {mend}"


def _pretrained(name: str, source: str, revision: str | None, dtype: torch.dtype) -> Any:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, revision=revision, dtype=dtype, output_loading_info=True
        )
    except LOAD_ERRORS as error:
        raise InputError(_cannot_load(name, error)) from None
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        # transformers would initialise them at random and go on: the worst thing that can happen to this comparison.
        found = f"lack {len(missing)} tensors of the model, e.g. {missing[0]}"
        raise InputError(f"the weights of {name} {found}; check that the download is whole")
    return model


def _step0(config: SubjectConfig, source: str, architecture: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """The weights before training: hub revision `step0`, a recipe's seed, else the architecture's initialisation."""
    recipe = Path(source) / "recipe.json"
    if not Path(source).is_dir():
        try:
            return _pretrained(config.subject, source, "step0", dtype), {"step0_source": "hub revision step0"}
        except InputError:
            log.info("%s has no revision step0: the architecture's own initialisation is used", config.subject)
    seed, expected = config.variant_seed, None
    if recipe.exists():
        facts = read_json(recipe, f"mend or remove {recipe}")
        if not isinstance(facts, dict) or not isinstance(facts.get("init_seed"), int):
            raise InputError(f"{recipe} has no whole number init_seed; mend or remove it")
        seed, expected = facts["init_seed"], facts.get("initial_weights_sha256")
    model = initial_model(architecture, seed)
    origin = f"architecture initialisation, seed {seed}"
    if expected is not None:
        same = weights_digest(model) == expected
        origin = f"recipe seed {seed}, weights {'equal' if same else 'differ from'} the recipe's"
    return model.to(dtype), {"step0_source": origin}


def initial_model(architecture: Any, seed: int) -> Any:
    """A freshly initialised model in float32; the process's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM
        return model.from_config(architecture, dtype=torch.float32)


def weights_digest(model: nn.Module) -> str:
    """sha256 over the float32 bytes of `named_parameters`, in their order."""
    total = hashlib.sha256()
    for parameter in model.parameters():
        total.update(parameter.detach().cpu().float().contiguous().numpy().tobytes())
    return total.hexdigest()


def _embeddings(model: Any) -> list[Tensor]:
    found = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [module.weight for module in found if module is not None]


def _blocks(model: Any) -> Sequence[nn.Module]:
    """The list of transformer blocks: the one module list as long as the config says there are layers."""
    n_layers = model.config.get_text_config().num_hidden_layers
    for _, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return list(module)
    raise InputError(f"cannot find the {n_layers} blocks of {type(model).__name__}; this architecture is not supported")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError(f"--device {name} cannot be used ({reason}); try --device cpu") from None
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
