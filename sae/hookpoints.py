"""Names of the places in a subject that a dictionary reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Hookpoint:
    """A place in a block."""

    layer: int
    site: Literal["residual", "mlp", "attention", "mlp.in"] = "residual"

    def __str__(self) -> str:
        return f"layers.{self.layer}" + ("" if self.site == "residual" else f".{self.site}")
