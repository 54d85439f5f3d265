"""The head stage: the fully connected layers are trained alone, on cached output bits of the frozen convolutions.

In a net like the paper's (arXiv 1808.00209) the convolutions take 95 % of the time of a training step, and the fully
connected layers hold 98 % of the weights. With the convolutions frozen, their output bits are computed once for several
augmented epochs; an epoch of the fully connected layers then costs a small part of one of the whole net.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnn_perception.training.batches import Example

#: Augmented epochs whose bits are cached; epoch ``n`` of the stage takes number ``n`` modulo this.
COPIES = 8


def split(net: nn.Sequential) -> tuple[nn.Sequential, nn.Sequential]:
    """The trunk, up to the signs that the first fully connected layer takes, and the head, of ``net``'s own modules."""
    modules = list(net.named_children())
    first = [name for name, _ in modules].index("flatten") + 1
    return nn.Sequential(OrderedDict(modules[:first])), nn.Sequential(OrderedDict(modules[first:]))


class CachedBits:
    """Cached output bits of the frozen convolutions, for several augmented epochs.

    Args:
        trunk: the convolutions; they end in signs.
        epoch: gives the examples of an augmented epoch, by its number.
    """

    def __init__(self, trunk: nn.Sequential, epoch: Callable[[int], Iterator[Example]]) -> None:
        self._trunk, self._epoch = trunk, epoch
        self._copies: dict[int, _Copy] = {}

    def examples(self, epoch: int, steps: int, rng: np.random.Generator) -> Iterator[Example]:
        """One epoch of signs, in ``steps`` batches of nearly the same size, in an order drawn from ``rng``."""
        number = epoch % COPIES
        if number not in self._copies:  # not all at once: a resumed run may need few of them
            self._copies[number] = self._compute(number)
        bits, features, labels, teacher_logits = self._copies[number]
        for part in np.array_split(rng.permutation(len(bits)), steps):
            chosen = torch.from_numpy(part)
            signs = np.unpackbits(bits[part], axis=1, count=features).astype(np.float32) * 2 - 1
            yield Example(
                torch.from_numpy(signs).to(labels.device),
                labels[chosen],
                1.0,  # of several processes none has more than one image more than another
                None if teacher_logits is None else teacher_logits[chosen],
            )

    @torch.no_grad()
    def _compute(self, number: int) -> _Copy:
        self._trunk.eval()  # its batch norm is that of the finished net
        bits, labels, logits = [], [], []
        features = 0
        for images, truth, _, teacher_logits in self._epoch(number):
            signs = self._trunk(images)
            features = signs.shape[1]
            bits.append(np.packbits(signs.cpu().numpy() > 0, axis=1))
            labels.append(truth)
            logits.append(teacher_logits)
        taught = [each for each in logits if each is not None]
        return _Copy(np.concatenate(bits), features, torch.cat(labels), torch.cat(taught) if taught else None)


class _Copy(NamedTuple):
    """The cached examples of one augmented epoch."""

    bits: NDArray[np.uint8]
    features: int
    labels: Tensor
    teacher_logits: Tensor | None
