"""The exact top k of x W^T + b at the price of a product in bfloat16.

A product in low precision gives every pre-activation with a bounded error. The k-th largest of the groups' maxima, less
its error, is a number that at least k pre-activations reach; whatever cannot reach it, its error added, is none of the
k largest. The few that are left are computed in float32. No row is taken on trust: one where the bound leaves too many,
or that is not finite, is computed densely.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sae.arithmetic import float32_sums, screen_dtype
from sae.kernels import by_latent, pair_dots

GROUPS = (64, 32, 16, 8)
"""Latents whose maximum stands for all of them; larger is cheaper."""
UNIT_ROUNDOFF = 2.0**-8
"""Of bfloat16: rounding changes a number by at most this share of it."""
MANY = 128
"""Candidates of a token that are never too many; beyond, a dense row costs less than its candidates one by one."""
NOTHING = torch.iinfo(torch.int16).max
"""As the bits of a bfloat16, more than any number."""
BLOCK = 1024
"""Latents in a product on a CPU."""
CACHE_BYTES = 4 << 20
"""Size of what such a product writes, and of other things that should stay in a CPU's cache between two passes."""
LARGEST_BYTES = 1 << 28
"""Size of the pre-activations held at a time."""


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
        padded, width = _round_up(n, _block(n, group, w_enc.device)), _round_up(d + 2, 16)
        weights = w_enc.new_zeros(padded, width, dtype=torch.bfloat16)
        norms, residuals, biases = (w_enc.new_zeros(padded) for _ in range(3))
        for rows in slices(n, CACHE_BYTES // (32 * d) if w_enc.device.type == "cpu" else n):
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


def slices(n: int, rows: int) -> Iterator[slice]:
    """Slices of n rows, at most some at a time."""
    for start in range(0, n, max(1, rows)):
        yield slice(start, min(start + max(1, rows), n))


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
class Scores:
    """Pre-activations, block of latents by block: what a product writes is still in cache when its maxima are taken."""

    blocks: Tensor
    """[block, token, latents of a block]."""
    best: Tensor
    """Largest of each group, [token, group]."""
    group: int

    @classmethod
    def of(cls, x: Tensor, weights: Tensor, bias: Tensor | None, group: int) -> Scores:
        """Of inputs [token, d] and weights [n_latents, d]; of bfloat16, the bits."""
        n, in_block = len(weights), _block(len(weights), group, x.device)
        blocks = x.new_empty(-(-n // in_block), len(x), in_block)
        kind = torch.int16 if x.dtype == torch.bfloat16 else x.dtype
        best = torch.empty(len(blocks), len(x), in_block // group, dtype=kind, device=x.device)
        for block, largest, start in zip(blocks, best, range(0, n, in_block), strict=True):
            stop = min(start + in_block, n)
            torch.mm(x, weights[start:stop].T, out=block[:, : stop - start])
            if bias is not None:
                block[:, : stop - start] += bias[start:stop]
            block[:, stop - start :] = -torch.inf
            torch.amax(block.view(kind).view(len(x), -1, group), 2, out=largest)
        return cls(blocks.view(kind), best.transpose(0, 1).reshape(len(x), -1), group)

    def reaching(self, asked: Tensor) -> tuple[Tensor, ...]:
        """Where scores reach what their token and group ask; nothing of a token where too many do.

        Args:
            asked: [token, group] or [token, 1].

        Returns:
            Tokens and latents, int64 [pair] each; whether a token has few enough.
        """
        group, (n_tokens, count), in_block = self.group, self.best.shape, self.blocks.shape[2] // self.group
        chosen = (self.best >= asked).view(-1).nonzero().squeeze(1)
        tokens = chosen.div(count, rounding_mode="floor")
        columns = chosen - tokens * count
        # Groups lie by block, token and place in the block.
        stored = columns + in_block * (tokens + columns.div(in_block, rounding_mode="floor") * (n_tokens - 1))
        held = self.blocks.view(-1, group).index_select(0, stored)
        hits = held >= asked.expand_as(self.best).reshape(-1)[chosen][:, None]
        # Eight at a time, most of them without a hit.
        words = hits.view(torch.int64).view(-1)
        hit = words.nonzero().squeeze(1)
        entry = hit.div(group // 8, rounding_mode="floor")
        few = torch.bincount(tokens[entry], minlength=n_tokens) <= max(MANY, count * group // 16)
        if not few.all():
            kept = few[tokens[entry]]
            hit, entry = hit[kept], entry[kept]
        bits = words[hit].view(torch.bool).nonzero().squeeze(1)
        word = bits >> 3
        entry, inside = entry[word], (hit[word] * 8) % group + (bits & 7)
        return tokens[entry], columns[entry] * group + inside, few

    def at(self, tokens: Tensor, latents: Tensor) -> Tensor:
        """The scores of some pairs, [pair]."""
        _, n_tokens, width = self.blocks.shape
        block = latents.div(width, rounding_mode="floor")
        return self.blocks.view(-1)[latents + width * (tokens + block * (n_tokens - 1))]


def _block(n_latents: int, group: int, device: torch.device) -> int:
    return BLOCK if device.type == "cpu" and n_latents > BLOCK else _round_up(n_latents, group)


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
        if w_enc.dtype not in (torch.float32, torch.float64):
            group = None
        dtype = dtype or screen_dtype(w_enc.device)
        rounds = w_enc.dtype == torch.float32 and dtype == torch.bfloat16
        return cls(w_enc, b_enc, question, group, Screen.of(w_enc, b_enc, group) if rounds and group else None)

    @property
    def tokens(self) -> int:
        """How many to look at at a time."""
        size = 2 if self.screen else self.w_enc.element_size()
        most = LARGEST_BYTES // (size * len(self.w_enc))
        return max(1, min(most, CACHE_BYTES // (size * BLOCK)) if self.w_enc.device.type == "cpu" else most)

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
        with float32_sums():
            scores = Scores.of(rounded, screen.weights, None, screen.group)
        errors = screen.errors(x, rounded)
        least = self.question.least(scores.best.view(torch.bfloat16).float().mul_(1 - UNIT_ROUNDOFF).sub_(errors))
        asked = (least - errors).div_(1 + UNIT_ROUNDOFF)
        clear = (asked > 0).all(1)
        # The upper half of a positive float32 is the bfloat16 below it.
        bits = torch.where(clear[:, None], asked.view(torch.int32) >> 16, NOTHING).to(torch.int16)
        tokens, latents, few = scores.reaching(bits)
        # By latent, each row of the encoder is read once.
        order = by_latent(latents, len(self.w_enc))
        dots = torch.empty_like(latents, dtype=x.dtype)
        dots.scatter_(0, order, pair_dots(x, self.w_enc, tokens[order], latents[order])).add_(self.b_enc[latents])
        return Pairs(tokens, latents, dots, (~(clear & few)).nonzero().squeeze(1), least)

    def _unrounded(self, x: Tensor, group: int) -> Pairs:
        """The same from a product in the inputs' own precision."""
        scores = Scores.of(x, self.w_enc, self.b_enc, group)
        least = self.question.least(scores.best)
        clear = least > -torch.inf
        tokens, latents, few = scores.reaching(torch.where(clear, least, torch.nan))
        unscreened = (~(clear.squeeze(1) & few)).nonzero().squeeze(1)
        return Pairs(tokens, latents, scores.at(tokens, latents), unscreened, least)
