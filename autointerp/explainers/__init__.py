"""Explainers: what to show of a latent, and how to read the answer."""

from __future__ import annotations

from autointerp.config import OFFLINE
from autointerp.explainers.lexical import LexicalExplainer
from autointerp.explainers.max_activating import MaxActivatingExplainer
from autointerp.prompting import Prompts
from autointerp.records import Explainer
from sae.errors import InputError

EXPLAINERS: dict[str, type[Explainer]] = {"lexical": LexicalExplainer, "max_activating": MaxActivatingExplainer}
WITHOUT_LLM = ("lexical",)


def make_explainer(name: str | None, client: str, prompts: Prompts) -> Explainer:
    """The explainer of this name; without one, the natural one for the client.

    Raises:
        InputError: there is none of this name, or it does not go with the client.
    """
    name = name or ("lexical" if client == OFFLINE else "max_activating")
    if name not in EXPLAINERS:
        raise InputError(f"no explainer {name!r}; there are {', '.join(EXPLAINERS)}")
    if name in WITHOUT_LLM and client != OFFLINE:
        raise InputError(f"--explainer {name} asks no LLM; use --client offline, or --explainer max_activating")
    if name not in WITHOUT_LLM and client == OFFLINE:
        raise InputError(f"--explainer {name} asks an LLM; use --client openai --model M, or --explainer lexical")
    return LexicalExplainer() if name == "lexical" else MaxActivatingExplainer(prompts)
