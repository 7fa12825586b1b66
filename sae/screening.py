"""The exact top k of x W^T + b at the price of a product in bfloat16.

A product in low precision gives every pre-activation with a bounded error. The k-th largest of the groups' maxima, less
its error, is a number that at least k pre-activations reach; whatever cannot reach it, its error added, is none of the
k largest. The few that are left are computed in float32. No row is taken on trust: one where the bound leaves too many,
or that is not finite, is computed densely.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from sae.kernels import by_latent, pair_dots

GROUPS = (64, 32, 16, 8)
"""Latents whose maximum stands for all of them; larger is cheaper."""
UNIT_ROUNDOFF = 2.0**-8
"""Of bfloat16: rounding changes a number by at most this share of it."""
MANY = 128
"""Candidates of a token that are never too many; beyond, a dense row costs less than its candidates one by one."""
NOTHING = torch.iinfo(torch.int16).max
"""As the bits of a bfloat16, more than any number."""
CPU_BYTES, DEVICE_BYTES = 32 << 20, 1 << 30
"""Size of the pre-activations held at a time: on a CPU what stays in cache between product and selection."""


@dataclass(frozen=True)
class Screen:
    """An encoder made ready for the cheap product.

    The bias is two more columns, its bfloat16 and the rest of it, against ones in the inputs: a product costs the same
    with them, and an addition would be a pass over everything.
    """

    weights: Tensor
    """[n_latents rounded up to whole groups, d_in and a little more]."""
    group: int
    norms: Tensor
    """Largest norm in each group, float32 [group]."""
    residuals: Tensor
    """Largest norm in each group of what rounding took from a row, float32 [group]."""
    biases: Tensor
    """Largest absolute bias in each group, float32 [group]."""

    @classmethod
    def of(cls, w_enc: Tensor, b_enc: Tensor, group: int) -> Screen:
        """Of a float32 encoder [n_latents, d_in] and its bias [n_latents]."""
        n, d = w_enc.shape
        padded, width = _round_up(n, group), _round_up(d + 2, 16)
        weights = w_enc.new_zeros(padded, width, dtype=torch.bfloat16)
        norms, residuals, biases = (w_enc.new_zeros(padded) for _ in range(3))
        for rows in slices(n, 4 * d, w_enc.device, CPU_BYTES >> 6):
            exact, rounded = w_enc[rows], weights[rows, :d]
            rounded.copy_(exact)
            torch.linalg.vector_norm(exact, dim=1, out=norms[rows])
            torch.linalg.vector_norm(exact - rounded, dim=1, out=residuals[rows])
        weights[:n, d] = b_enc
        weights[:n, d + 1] = b_enc - weights[:n, d]
        weights[n:, d] = torch.finfo(torch.bfloat16).min
        biases[:n] = b_enc.abs()
        largest = [each.view(-1, group).amax(1) for each in (norms, residuals, biases)]
        return cls(weights, group, *largest)

    def inputs(self, x: Tensor) -> Tensor:
        """x [token, d_in] as the cheap product takes it."""
        d = x.shape[1]
        wide = x.new_zeros(len(x), self.weights.shape[1], dtype=torch.bfloat16)
        wide[:, :d] = x
        wide[:, d : d + 2] = 1
        return wide

    def errors(self, x: Tensor, rounded: Tensor) -> Tensor:
        """How far a pre-activation may be off before its own rounding, at most, [token, group].

        |x w - x' w'| <= |x - x'| |w| + |x'| |w - w'|, and either product in float32 adds at most d_in 2^-23 |x| |w|.
        """
        d = x.shape[1]
        rest = torch.linalg.vector_norm(x - rounded[:, :d], dim=1)
        norm = torch.linalg.vector_norm(x, dim=1)
        arithmetic = (d + 2) * 2.0**-22
        by_norm = torch.outer(rest + arithmetic * norm, self.norms)
        # The bias' own rest after two roundings, and the addition of the two.
        by_bias = self.biases * (2 * UNIT_ROUNDOFF**2 + arithmetic)
        return by_norm.addr_(norm + rest, self.residuals).add_(by_bias)


@dataclass(frozen=True)
class Pairs:
    """Pairs of a token and a latent that may be among the largest, and the tokens that the screen leaves out."""

    tokens: Tensor
    """int64 [pair], ascending."""
    latents: Tensor
    """int64 [pair]."""
    scores: Tensor
    """Their pre-activations, [pair]."""
    unscreened: Tensor
    """Tokens whose latents the screen does not narrow down, int64; no pair is of one of them."""
    least: Tensor
    """What the smallest of those that are wanted reaches, [token, 1]; nan where that is unknown."""


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def slices(n: int, row_bytes: int, device: torch.device, cpu_bytes: int = CPU_BYTES) -> Iterator[slice]:
    """Consecutive slices of n rows that are processed at a time."""
    rows = max(1, (cpu_bytes if device.type == "cpu" else DEVICE_BYTES) // max(row_bytes, 1))
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


@cache
def screen_dtype(device: torch.device) -> torch.dtype:
    """The arithmetic of the cheap product on a device: bfloat16 where that is the faster one, else float32.

    Not every processor that has instructions for bfloat16 gains by them; a small product of each tells. The result of
    the selection is the same.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type != "cpu":
        return torch.float32
    return torch.bfloat16 if 1.2 * _product_seconds(torch.bfloat16) < _product_seconds(torch.float32) else torch.float32


def _product_seconds(dtype: torch.dtype) -> float:
    """The shortest of some products of a few hundred rows."""
    left, right = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(left, right.T)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@dataclass(frozen=True)
class Question:
    """What the screen looks for."""

    k: int
    """How many are wanted: of each token, or per token on average."""
    whole_batch: bool = False
    """Whether the largest of the whole batch are wanted, not those of each token."""

    def least(self, certain: Tensor) -> Tensor:
        """What the k-th largest reaches, given what each group's maximum reaches, [token, group]: [token, 1]."""
        if not self.whole_batch:
            return certain.topk(self.k, dim=1, sorted=False).values.amin(1, keepdim=True)
        return certain.flatten().topk(self.k * len(certain), sorted=False).values.amin().expand(len(certain), 1)


@dataclass(frozen=True)
class Encoder:
    """An encoder, and how its largest pre-activations are looked for."""

    w_enc: Tensor
    b_enc: Tensor
    question: Question
    group: int | None
    screen: Screen | None

    @classmethod
    def of(cls, w_enc: Tensor, b_enc: Tensor, question: Question, dtype: torch.dtype | None) -> Encoder:
        """With the arithmetic asked for, or the faster one on the device."""
        # Twice as many groups as are wanted: the k-th largest of their maxima is then close to the k-th largest of all.
        group = next((size for size in GROUPS if len(w_enc) >= 2 * question.k * size), None)
        if w_enc.dtype != torch.float32 or group is None:
            dtype = w_enc.dtype
        dtype = dtype or screen_dtype(w_enc.device)
        rounds = dtype == torch.bfloat16 and group is not None
        return cls(w_enc, b_enc, question, group, Screen.of(w_enc, b_enc, group) if rounds and group else None)

    @property
    def row_bytes(self) -> int:
        """Size of one token's pre-activations."""
        return len(self.w_enc) * (2 if self.screen else self.w_enc.element_size())

    def dense(self, x: Tensor) -> Tensor:
        """All pre-activations of x [token, d_in]."""
        return functional.linear(x, self.w_enc, self.b_enc)

    def pairs(self, x: Tensor) -> Pairs:
        """The pairs of x [token, d_in] that may be among the largest."""
        if self.screen:
            return self._screened(x, self.screen)
        if self.group:
            return self._unrounded(x, self.group)
        everyone = torch.arange(len(x), device=x.device)
        return Pairs(everyone[:0], everyone[:0], x.new_empty(0), everyone, x.new_full((len(x), 1), torch.nan))

    def _screened(self, x: Tensor, screen: Screen) -> Pairs:
        """Those that a product in bfloat16 cannot exclude."""
        rounded = screen.inputs(x)
        # Positive floats are ordered as the integers that their bits are, and no other score is asked for.
        scores = torch.mm(rounded, screen.weights.T).view(torch.int16)
        best = scores.view(len(x), -1, screen.group).amax(2)
        errors = screen.errors(x, rounded)
        least = self.question.least(best.view(torch.bfloat16).float().mul_(1 - UNIT_ROUNDOFF).sub_(errors))
        asked = (least - errors).div_(1 + UNIT_ROUNDOFF)
        clear = (asked > 0).all(1)
        # The upper half of a positive float32 is the bfloat16 below it.
        bits = torch.where(clear[:, None], asked.view(torch.int32) >> 16, NOTHING).to(torch.int16)
        tokens, latents, _, few = _reaching(scores, best, bits, screen.group)
        # By latent, each row of the encoder is read once.
        order = by_latent(latents, len(self.w_enc))
        dots = torch.empty_like(latents, dtype=x.dtype)
        dots.scatter_(0, order, pair_dots(x, self.w_enc, tokens[order], latents[order])).add_(self.b_enc[latents])
        return Pairs(tokens, latents, dots, (~(clear & few)).nonzero().squeeze(1), least)

    def _unrounded(self, x: Tensor, group: int) -> Pairs:
        """The same from a product in the inputs' own precision."""
        n = len(self.w_enc)
        scores = x.new_empty(len(x), _round_up(n, group))
        scores[:, n:] = -torch.inf
        torch.mm(x, self.w_enc.T, out=scores[:, :n])
        scores[:, :n] += self.b_enc
        best = scores.view(len(x), -1, group).amax(2)
        least = self.question.least(best)
        clear = least > -torch.inf
        tokens, latents, places, few = _reaching(scores, best, torch.where(clear, least, torch.nan), group)
        unscreened = (~(clear.squeeze(1) & few)).nonzero().squeeze(1)
        return Pairs(tokens, latents, scores.view(-1)[places], unscreened, least)


def _reaching(scores: Tensor, best: Tensor, asked: Tensor, group: int) -> tuple[Tensor, ...]:
    """Where scores reach what their token and group ask; nothing of a token where too many do.

    Args:
        scores: [token, group count * group], contiguous.
        best: largest score of each group, [token, group count].
        asked: [token, group count] or [token, 1].
        group: a multiple of eight.

    Returns:
        Tokens, latents and places in the flattened scores, int64 [pair] each; and whether a token has few enough.
    """
    count = best.shape[1]
    groups = (best >= asked).view(-1).nonzero().squeeze(1)
    hits = scores.view(-1, group).index_select(0, groups) >= asked.expand_as(best).reshape(-1)[groups][:, None]
    # Eight at a time, most of them without a hit.
    words = hits.view(torch.int64).view(-1)
    held = words.nonzero().squeeze(1)
    of_word = groups[held.div(group // 8, rounding_mode="floor")]
    tokens = of_word.div(count, rounding_mode="floor")
    few = torch.bincount(tokens, minlength=len(scores)) <= max(MANY, count * group // 16)
    if not few.all():
        kept = few[tokens]
        held, of_word, tokens = held[kept], of_word[kept], tokens[kept]
    bytes_ = words[held].view(torch.bool).nonzero().squeeze(1)
    word = bytes_ >> 3
    places = of_word[word] * group + (held[word] * 8) % group + (bytes_ & 7)
    tokens = tokens[word]
    return tokens, places - tokens * (count * group), places, few


def rectangle(tokens: Tensor, n_tokens: int, least: int, *columns: tuple[Tensor, float]) -> list[Tensor]:
    """Ragged columns as rectangles [token, width], `width` the largest number of a token, filled up with a number.

    Args:
        tokens: int64 [pair], ascending.
        n_tokens: rows of the result.
        least: smallest width.
        columns: each [pair], with what it is filled up with.
    """
    counts = torch.bincount(tokens, minlength=n_tokens)
    width = max(least, int(counts.max())) if len(counts) else least
    first = counts.cumsum(0) - counts
    place = torch.arange(len(tokens), device=tokens.device) + (tokens * width - first[tokens])
    filled = [column.new_full((n_tokens * width,), fill) for column, fill in columns]
    return [
        out.scatter_(0, place, column).view(n_tokens, width) for out, (column, _) in zip(filled, columns, strict=True)
    ]
