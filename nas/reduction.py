"""Fewer tokens: before all layers the means of neighbours, after one of them those that the mean token attends to most, in order.

Shapes: B sequences, T tokens, N of them that are left, S neighbours, D width, R shares.

Coarse to fine: one query a head, that of the mean token, scores all tokens by the attention that it pays them, and the layers
behind see those with the largest scores alone. Like the class token of EViT (arXiv:2202.07800, eq. 3), which the mean stands for
in networks that answer by it; PoWER-BERT (arXiv:2001.08950) and LTP (arXiv:2107.00910) take the mean over all queries, which only
full attention computes. No token is merged, and nothing is learned for it.

A sequence of n tokens keeps ceil(share n) of them, whatever it is padded to.

A mean of neighbours counts as many as it has tokens, in attention (proportional attention, ToMe, arXiv:2210.09461, eq. 1) and in
the mean over all. So attention to means is attention to the tokens of which each has its mean, and the supernet is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from nas.attention_kinds import BLOCKED

ALL = 100  # percent
Number = TypeVar("Number", int, Tensor)
TINY = 1e-30  # as good as no probability, and with a logarithm whose gradient is a number


def num_kept(tokens: Number, percent: int) -> Number:
    """Of so many tokens; whole numbers."""
    return (tokens * percent + 99) // 100


def visible(bias_B11T: Tensor) -> Tensor:
    """[B, T, 1] with 1 for a token and 0 for padding; of a relaxed network P(the token is there)."""
    return bias_B11T.flatten(1)[:, :, None].exp()


def mean_token(x_BTD: Tensor, bias_B11T: Tensor) -> Tensor:
    """[B, D], over what is visible."""
    weights_BT1 = visible(bias_B11T)
    return (x_BTD * weights_BT1).sum(dim=1) / weights_BT1.sum(dim=1)


def merged(x_BTD: Tensor, bias_B11T: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The means of each `size` neighbours [B, N, D], N = ceil(T / size), without padding, and their bias [B, 1, 1, N]: the
    logarithm of the share of them that is no padding."""

    def means(x_BCT: Tensor) -> Tensor:
        return F.avg_pool1d(F.pad(x_BCT, (0, size - 1)), size)

    seen_B1T = bias_B11T.flatten(1)[:, None].exp()
    share_B1N = means(seen_B1T)
    means_BDN = means(x_BTD.transpose(1, 2) * seen_B1T) / share_B1N.clamp_min(1.0 / size)
    return means_BDN.transpose(1, 2), share_B1N.log().clamp_min(BLOCKED)[:, None]


def spread(x_BTD: Tensor, bias_B11T: Tensor, size: int) -> Tensor:
    """The same means in the place of each of their tokens, [B, T, D]."""
    if size == 1:
        return x_BTD
    return merged(x_BTD, bias_B11T, size)[0].repeat_interleave(size, dim=1)[:, : x_BTD.shape[1]]


def reduced(x_BTD: Tensor, bias_B11T: Tensor, scores_BT: Tensor, percent: int) -> tuple[Tensor, Tensor]:
    """The kept tokens [B, N, D] and their bias [B, 1, 1, N], N = ceil(share T); what a sequence is shorter lies at the end."""
    B, T, D = x_BTD.shape
    padding_BT = bias_B11T[:, 0, 0]
    best_BN = (scores_BT + padding_BT).topk(num_kept(T, percent), dim=-1)[1]
    too_many_BN = torch.arange(best_BN.shape[1], device=best_BN.device) >= _own(padding_BT, percent)
    place_BN, _ = torch.sort(best_BN + too_many_BN * T, dim=-1)
    too_many_BN = place_BN >= T
    row_BN = torch.arange(B, device=place_BN.device)[:, None] * T + place_BN - too_many_BN * T
    kept_BND = x_BTD.reshape(-1, D).index_select(0, row_BN.flatten()).reshape(B, -1, D)
    return kept_BND, too_many_BN[:, None, None].to(x_BTD.dtype) * BLOCKED


def keeps(bias_B11T: Tensor, scores_BT: Tensor, percents: Sequence[int]) -> Tensor:
    """[R, B, T] with 1 for what `reduced` keeps, of each share."""
    padding_BT = bias_B11T[:, 0, 0]
    rank_BT = (scores_BT + padding_BT).argsort(dim=-1, descending=True).argsort(dim=-1)
    return torch.stack([rank_BT < _own(padding_BT, percent) for percent in percents]).to(bias_B11T.dtype)


def hidden(bias_B11T: Tensor, keeps_RBT: Tensor, shares_R: Tensor) -> Tensor:
    """The bias of a mixture of shares: log P(token is there), which for fewer tokens are a prefix of all in their rank.

    Args:
        shares_R: probability of each; what is missing to one keeps all.
    """
    there_BT = 1.0 - (shares_R.to(keeps_RBT)[:, None, None] * (1.0 - keeps_RBT)).sum(dim=0)
    return bias_B11T + (there_BT.clamp_min(0.0) + TINY).log()[:, None, None]


def _own(padding_BT: Tensor, percent: int) -> Tensor:
    """[B, 1], kept tokens of each sequence."""
    return num_kept((padding_BT > BLOCKED / 2).sum(dim=-1, keepdim=True), percent)
