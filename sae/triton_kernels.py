"""Kernels for GPUs, in Triton: what torch's own operations do in several passes over memory, or row by row.

Optional: `sae.arithmetic.gpu_kernels` imports this file where there is a GPU and Triton; elsewhere nothing needs it.
Sums are taken in a fixed order, so that a training gives the same bits every time. Each function has a plain way of
doing the same, named in its docstring, against which the tests hold it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

PIECE = 128
"""Entries of a latent that one program adds up; longer lists are added up in pieces, or a dense latent would hold up
all others."""
WIDEST = 8192
"""Numbers of a row that one program can hold."""
TILE = 4096
"""Numbers looked at at once in a row of scores."""
HALF_ROUNDOFF = 2.0**-11
"""Of float16."""


@triton.jit
def _round_rows(rows, halves, norms, rests, d, width: tl.constexpr):
    """A row in float16, its norm, and the norm of what rounding took off."""
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, width)
    inside = columns < d
    exact = tl.load(rows + row * d + columns, mask=inside, other=0.0)
    half = exact.to(tl.float16)
    rest = exact - half.to(tl.float32)
    tl.store(halves + row * d + columns, half, mask=inside)
    tl.store(norms + row, tl.sqrt(tl.sum(exact * exact, 0)))
    tl.store(rests + row, tl.sqrt(tl.sum(rest * rest, 0)))


def round_rows(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [row, d] in float16, their norms [row], and the norms of what rounding took off [row]; d up to `WIDEST`.

    Plainly: `rows.half()`, `rows.norm(dim=1)` and `(rows - rows.half().float()).norm(dim=1)`.
    """
    n, d = rows.shape
    halves = torch.empty_like(rows, dtype=torch.float16)
    norms, rests = rows.new_empty(n), rows.new_empty(n)
    if n:
        _round_rows[(n,)](rows.contiguous(), halves, norms, rests, d, triton.next_power_of_2(d))
    return halves, norms, rests


@triton.jit
def _group_maxima(scores, maxima, kth, n, n_groups, k, group: tl.constexpr, tile: tl.constexpr, width: tl.constexpr):
    """Bits of each group's largest score in a row, and of the k-th largest of these, 0 where that is not positive."""
    row = tl.program_id(0).to(tl.int64)
    for start in range(0, n_groups, tile):
        groups = start + tl.arange(0, tile)
        places = groups[:, None] * group + tl.arange(0, group)[None, :]
        found = tl.load(scores + row * n + places, mask=places < n, other=float("-inf"))
        # Positive floats are ordered as the integers that their bits are, and nothing else is asked for.
        largest = tl.max(found.to(tl.int16, bitcast=True).to(tl.int32), 1)
        tl.store(maxima + row * n_groups + groups, largest.to(tl.int16), mask=groups < n_groups)
    tl.debug_barrier()
    groups = tl.arange(0, width)
    largest = tl.load(maxima + row * n_groups + groups, mask=groups < n_groups, other=-32768).to(tl.int32)
    found_bits = tl.full((), 0, tl.int32)
    for bit in tl.static_range(15):
        more = found_bits | (1 << (14 - bit))
        found_bits = tl.where(tl.sum((largest >= more).to(tl.int32), 0) >= k, more, found_bits)
    tl.store(kth + row, found_bits.to(tl.int16))


def group_maxima(scores: Tensor, group: int, k: int) -> tuple[Tensor, Tensor]:
    """The largest score of each group of neighbours, and the k-th largest of those.

    Args:
        scores: float16 [token, n_latents].
        group: a power of two.
        k: at most the number of groups.

    Returns:
        Float16 [token, group], right where it is positive, and [token], 0 where it is not. Plainly: `scores.view(token,
        -1, group).amax(2)` and the k-th of `topk`.
    """
    n_tokens, n = scores.shape
    n_groups = triton.cdiv(n, group)
    maxima = torch.empty(n_tokens, n_groups, dtype=torch.int16, device=scores.device)
    kth = torch.empty(n_tokens, dtype=torch.int16, device=scores.device)
    tile, width = max(1, TILE // group), triton.next_power_of_2(n_groups)
    if n_tokens:
        _group_maxima[(n_tokens,)](scores, maxima, kth, n, n_groups, k, group, tile, width)
    return maxima.view(torch.float16), kth.view(torch.float16)


@triton.jit
def _collect(
    scores, maxima, asked, hits, candidates, counts, n, n_groups,
    group: tl.constexpr, tile: tl.constexpr, width: tl.constexpr, most: tl.constexpr,
):  # fmt: skip
    """The latents of a row whose scores reach what is asked, ascending; only groups whose maximum does are read."""
    row = tl.program_id(0).to(tl.int64)
    least = tl.load(asked + row)
    groups = tl.arange(0, width)
    largest = tl.load(maxima + row * n_groups + groups, mask=groups < n_groups, other=float("-inf")).to(tl.float32)
    hit = ((largest >= least) & (groups < n_groups)).to(tl.int32)
    place = tl.cumsum(hit, 0) - 1
    tl.store(hits + row * most + place, groups, mask=(hit > 0) & (place < most))
    n_hits = tl.sum(hit, 0)
    tl.debug_barrier()
    count = 0
    for start in range(0, tl.minimum(n_hits, most), tile):
        numbers = start + tl.arange(0, tile)
        some = numbers < tl.minimum(n_hits, most)
        chosen = tl.load(hits + row * most + numbers, mask=some, other=0)
        latents = chosen[:, None] * group + tl.arange(0, group)[None, :]
        found = tl.load(scores + row * n + latents, mask=some[:, None] & (latents < n), other=float("-inf"))
        reached = tl.reshape((found.to(tl.float32) >= least).to(tl.int32), [tile * group])
        position = count + tl.cumsum(reached, 0) - 1
        named = tl.reshape(latents, [tile * group])
        tl.store(candidates + row * most + position, named, mask=(reached > 0) & (position < most))
        count += tl.sum(reached, 0)
    tl.store(counts + row, tl.where(n_hits > most, most + 1, count))


def collect(scores: Tensor, maxima: Tensor, asked: Tensor, group: int, most: int) -> tuple[Tensor, Tensor]:
    """The latents of each token whose scores reach what is asked of it.

    Args:
        scores: float16 [token, n_latents].
        maxima: of `group_maxima`.
        asked: float32 [token], positive; nothing reaches nan.
        group: as for `group_maxima`.
        most: how many of a token are kept, a power of two.

    Returns:
        Latents int32 [token, most], ascending, and how many there are, int32 [token]; more than `most` means that not
        all were kept. Plainly: `(scores >= asked[:, None]).nonzero()`.
    """
    (n_tokens, n), n_groups = scores.shape, maxima.shape[1]
    candidates = torch.empty(n_tokens, most, dtype=torch.int32, device=scores.device)
    counts = torch.empty(n_tokens, dtype=torch.int32, device=scores.device)
    hits = torch.empty_like(candidates)
    tile, width = max(1, TILE // 4 // group), triton.next_power_of_2(n_groups)
    if n_tokens:
        _collect[(n_tokens,)](
            scores, maxima, asked, hits, candidates, counts, n, n_groups, group, tile, width, most
        )  # fmt: skip
    return candidates, counts


@triton.jit
def _candidate_scores(
    x, w_enc, b_enc, candidates, counts, scores, d,
    most: tl.constexpr, some: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Pre-activations of a token's candidates in float32; minus infinity beyond the last."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.minimum(tl.load(counts + row), most)
    for start in range(0, count, some):
        numbers = start + tl.arange(0, some)
        there = numbers < count
        latents = tl.load(candidates + row * most + numbers, mask=there, other=0).to(tl.int64)
        sums = tl.zeros([some, width], tl.float32)
        for first in range(0, d, width):
            columns = first + tl.arange(0, width)
            inside = columns < d
            mine = tl.load(x + row * d + columns, mask=inside, other=0.0)
            places = latents[:, None] * d + columns[None, :]
            sums += tl.load(w_enc + places, mask=there[:, None] & inside[None, :], other=0.0) * mine[None, :]
        bias = tl.load(b_enc + latents, mask=there, other=0.0)
        tl.store(scores + row * most + numbers, tl.sum(sums, 1) + bias, mask=there)
    beyond = tl.arange(0, most)
    tl.store(scores + row * most + beyond, float("-inf"), mask=beyond >= count)


def candidate_scores(x: Tensor, w_enc: Tensor, b_enc: Tensor, candidates: Tensor, counts: Tensor) -> Tensor:
    """x[t] . w_enc[candidates[t, i]] + b_enc[candidates[t, i]] in float32, minus infinity where i is counts[t] or more.

    Args:
        x: float32 [token, d_in].
        w_enc: float32 [n_latents, d_in].
        b_enc: float32 [n_latents].
        candidates: int32 [token, most].
        counts: int32 [token].

    Returns:
        [token, most]. Plainly: a gather of the dense product.
    """
    (n_tokens, most), d = candidates.shape, x.shape[1]
    scores = x.new_empty(n_tokens, most)
    width = min(512, triton.next_power_of_2(d))
    if n_tokens:
        _candidate_scores[(n_tokens,)](x, w_enc, b_enc, candidates, counts, scores, d, most, 8, width)
    return scores


@triton.jit
def _bags(indices, weights, table, out, length, d, some: tl.constexpr, width: tl.constexpr):
    """A weighted sum of rows of a table."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    inside = columns < d
    total = tl.zeros([width], tl.float32)
    for start in range(0, length, some):
        numbers = start + tl.arange(0, some)
        there = numbers < length
        chosen = tl.load(indices + row * length + numbers, mask=there, other=0)
        weight = tl.load(weights + row * length + numbers, mask=there, other=0.0)
        places = chosen[:, None] * d + columns[None, :]
        found = tl.load(table + places, mask=(weight != 0)[:, None] & inside[None, :], other=0.0)
        total += tl.sum(found * weight[:, None], 0)
    tl.store(out + row * d + columns, total, mask=inside)


def bags(indices: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    """Weighted sums of rows of a table; rows of weight zero are not read. Plainly: `embedding_bag`.

    Args:
        indices: int64 [token, width].
        weights: float32 [token, width].
        table: float32 [row, d].

    Returns:
        [token, d].
    """
    (n_tokens, length), d = indices.shape, table.shape[1]
    out = table.new_empty(n_tokens, d)
    width = min(2048, triton.next_power_of_2(d))
    if n_tokens:
        grid = (n_tokens, triton.cdiv(d, width))
        _bags[grid](indices.contiguous(), weights.contiguous(), table, out, length, d, 4, width)
    return out


@dataclass(frozen=True)
class Pieces:
    """Lists of entries, one a latent, cut into pieces of at most `PIECE`."""

    owners: Tensor
    """The latent of each piece, int64 [piece]; n_latents for none."""
    offsets: Tensor
    """Where each latent's entries begin and the last one's end, int64 [n_latents + 1]."""
    firsts: Tensor
    """Number of each latent's first piece, int64 [n_latents]."""
    counts: Tensor
    """How many pieces a latent has, int64 [n_latents], at least 1."""
    slots: Tensor
    """Where the partial sums of each latent with several pieces lie, int64 [n_latents]."""
    n_slots: int

    @classmethod
    def of(cls, offsets: Tensor, n_entries: int) -> Pieces:
        """Of the offsets int64 [n_latents] of lists one after the other."""
        offsets = torch.cat([offsets, offsets.new_full((1,), n_entries)])
        counts = ((offsets.diff() + (PIECE - 1)) // PIECE).clamp_min(1)
        ends = counts.cumsum(0)
        # As many as there can be, so that the device need not be asked how many there are.
        most = len(counts) + n_entries // PIECE
        owners = torch.searchsorted(ends, torch.arange(most, device=offsets.device), right=True)
        several = counts * (counts > 1)
        return cls(owners, offsets, ends - counts, counts, several.cumsum(0) - several, 2 * (n_entries // PIECE))


@triton.jit
def _scatter_pieces(
    owners, offsets, firsts, counts, slots, tokens, order, weights, rows, table, out, sums, partial, partial_sums, dots,
    n, d, piece: tl.constexpr, some: tl.constexpr, width: tl.constexpr, has_dots: tl.constexpr,
):  # fmt: skip
    """One piece of a latent's list: the weighted sum of its tokens' rows, and their products with its own row."""
    number = tl.program_id(0)
    latent = tl.load(owners + number)
    if latent < n:
        columns = tl.arange(0, width)
        inside = columns < d
        place = number - tl.load(firsts + latent)
        start = tl.load(offsets + latent) + place * piece
        end = tl.minimum(start + piece, tl.load(offsets + latent + 1))
        total = tl.zeros([width], tl.float32)
        weight_sum = tl.zeros([some], tl.float32)
        if has_dots:
            own = tl.load(table + latent * d + columns, mask=inside, other=0.0)
        for first in range(start, end, some):
            entries = first + tl.arange(0, some)
            there = entries < end
            token = tl.load(tokens + entries, mask=there, other=0)
            position = tl.load(order + entries, mask=there, other=0)
            weight = tl.load(weights + position, mask=there, other=0.0)
            places = token[:, None] * d + columns[None, :]
            found = tl.load(rows + places, mask=there[:, None] & inside[None, :], other=0.0)
            total += tl.sum(found * weight[:, None], 0)
            weight_sum += weight
            if has_dots:
                tl.store(dots + position, tl.sum(found * own[None, :], 1), mask=there)
        if tl.load(counts + latent) == 1:
            tl.store(out + latent * d + columns, total, mask=inside)
            tl.store(sums + latent, tl.sum(weight_sum, 0))
        else:
            slot = tl.load(slots + latent) + place
            tl.store(partial + slot * d + columns, total, mask=inside)
            tl.store(partial_sums + slot, tl.sum(weight_sum, 0))


@triton.jit
def _join_pieces(counts, slots, partial, partial_sums, out, sums, d, width: tl.constexpr):
    """Add up a latent's pieces, where it has several."""
    latent = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + latent)
    if count > 1:
        columns = tl.arange(0, width)
        inside = columns < d
        first = tl.load(slots + latent)
        total = tl.zeros([width], tl.float32)
        weight_sum = 0.0
        for slot in range(first, first + count):
            total += tl.load(partial + slot * d + columns, mask=inside, other=0.0)
            weight_sum += tl.load(partial_sums + slot)
        tl.store(out + latent * d + columns, total, mask=inside)
        tl.store(sums + latent, weight_sum)


@dataclass(frozen=True)
class Entries:
    """Entries of latents in the order of the latents, as `sae.kernels.Transpose` has them."""

    tokens: Tensor
    """int64 [entry]."""
    order: Tensor
    """Their positions in the rectangle that weights come in, int64 [entry]."""
    pieces: Pieces


def scatter(
    entries: Entries, weights: Tensor, rows: Tensor, table: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weighted sums of the rows of each latent's tokens, the sums of the weights, and the products with a table's row.

    Args:
        entries: who selected each latent.
        weights: float32 [token, width].
        rows: float32 [token, d]; d up to `WIDEST`.
        table: float32 [n_latents, d].

    Returns:
        [n_latents, d] and [n_latents]; with a table rows[t] . table[i] for every entry, [token, width]. Plainly:
        `Transpose.scatter`, `summed` and `Transpose.dots`.
    """
    pieces, d = entries.pieces, rows.shape[1]
    n, width = len(pieces.counts), triton.next_power_of_2(rows.shape[1])
    rows, weights = rows.contiguous(), weights.contiguous()
    out, sums = rows.new_empty(n, d), rows.new_empty(n)
    partial, partial_sums = rows.new_empty(pieces.n_slots, d), rows.new_empty(pieces.n_slots)
    dots = torch.empty_like(weights) if table is not None else None
    _scatter_pieces[(len(pieces.owners),)](
        pieces.owners, pieces.offsets, pieces.firsts, pieces.counts, pieces.slots, entries.tokens, entries.order,
        weights, rows, rows if table is None else table, out, sums, partial, partial_sums,
        sums if dots is None else dots, n, d, PIECE, 4, width, dots is not None, num_warps=8 if width > 1024 else 4,
    )  # fmt: skip
    _join_pieces[(n,)](pieces.counts, pieces.slots, partial, partial_sums, out, sums, d, width)
    return out, sums, dots


@triton.jit
def _remove_radial(gradient, rows, d, width: tl.constexpr):
    """g - (g . w) w."""
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, width)
    inside = columns < d
    g = tl.load(gradient + row * d + columns, mask=inside, other=0.0)
    w = tl.load(rows + row * d + columns, mask=inside, other=0.0)
    tl.store(gradient + row * d + columns, g - tl.sum(g * w, 0) * w, mask=inside)


def remove_radial(gradient: Tensor, rows: Tensor) -> None:
    """Take off a gradient [row, d], in place, its part along each row of norm 1; d up to `WIDEST`."""
    n, d = rows.shape
    _remove_radial[(n,)](gradient, rows, d, triton.next_power_of_2(d))


@triton.jit
def _normalise_rows(rows, d, least, width: tl.constexpr):
    """w / |w|."""
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, width)
    inside = columns < d
    w = tl.load(rows + row * d + columns, mask=inside, other=0.0)
    tl.store(rows + row * d + columns, w / tl.maximum(tl.sqrt(tl.sum(w * w, 0)), least), mask=inside)


def normalise_rows(rows: Tensor, least: float) -> None:
    """Give every row of [row, d] norm 1, in place, or less if it is shorter than `least`; d up to `WIDEST`."""
    n, d = rows.shape
    _normalise_rows[(n,)](rows, d, least, triton.next_power_of_2(d))
