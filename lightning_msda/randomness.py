"""Every random number: a function of where training stands, drawn on the host.

A generator is made afresh for each batch from (seed, stream, ordinal, rank) and thrown away, so there
is no state to save, and none of the global generators is read or advanced. Draws are on the CPU, in
float64: lam, partners and boxes are the same on every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

__all__ = [
    "Step",
    "make_generator",
    "sample_beta",
    "sample_choice",
    "sample_dirichlet",
    "sample_integers",
    "sample_partners",
    "sample_uniform",
]


@dataclass(frozen=True)
class Step:
    """Where training stands at a batch, and the random numbers that belong there.

    Attributes:
        seed: The run's seed.
        ordinal: How many training batches have been completed before, over all epochs.
        epoch: The current epoch, from 0.
        max_epochs: How many epochs there will be; -1: nobody knows.
        rank: This process among all.
        partner: The samples' partners, if they have been decided by the labels; int64, shape ``(N,)``.
        gradient: Of the module's loss by the inputs, shape ``(N, C, h, w)``, for methods that ask for it; it
            may be that of smaller inputs.
    """

    seed: int
    ordinal: int
    epoch: int = 0
    max_epochs: int = -1
    rank: int = 0
    partner: Tensor | None = None
    gradient: Tensor | None = None

    def generator(self, stream: str = "mix") -> Generator:
        """Return a fresh generator of this process's draws: each time the same numbers.

        Args:
            stream: What they are for; streams are independent of each other.
        """
        return make_generator(self.seed, stream, self.ordinal, self.rank)

    def partners(self, n: int) -> Tensor:
        """Return the partner of each of the batch's ``n`` samples, int64, shape ``(n,)``."""
        return sample_partners(n, self.pairing()) if self.partner is None else self.partner

    def pairing(self) -> Generator:
        """Return a fresh generator of this process's draws of partners."""
        return self.generator("partners")

    def policy(self) -> Generator:
        """Return a fresh generator of the draws that all processes share."""
        return make_generator(self.seed, "policy", self.ordinal)


def make_generator(seed: int, stream: str, ordinal: int, rank: int | None = None) -> Generator:
    """Return the generator that belongs to a place in training.

    Args:
        seed: The run's seed.
        stream: What the draws are for; streams are independent of each other.
        ordinal: How many training batches came before this one.
        rank: The process, for draws that differ between processes; None for those that they share.
    """
    place = f"{seed}/{stream}/{ordinal}/{'shared' if rank is None else rank}"
    digest = hashlib.blake2b(place.encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "big"))


def sample_partners(n: int, generator: Generator | None = None) -> Tensor:
    """Draw a random permutation that pairs the samples of a batch; fixed points are allowed.

    Args:
        n: Number of samples ``N``.
        generator: Source of randomness; None: the global one.

    Returns:
        Index of each sample's partner, int64, shape ``(N,)``.
    """
    return torch.randperm(n, generator=generator)


def sample_beta(
    alpha: float, n: int, generator: Generator | None = None, beta: float | None = None
) -> Tensor:
    """Draw from ``Beta(alpha, beta)``.

    Args:
        alpha: First concentration, above 0.
        n: Number of draws.
        generator: Source of randomness; None: the global one.
        beta: Second concentration; None: the same as ``alpha``.

    Returns:
        Draws in [0, 1], float64, shape ``(n,)``.
    """
    shapes = torch.tensor([alpha, alpha if beta is None else beta], dtype=torch.float64).expand(n, 2)
    return torch.sub(*_log_gamma(shapes, generator).unbind(1)).sigmoid_()


def sample_dirichlet(alpha: float, k: int, n: int, generator: Generator | None = None) -> Tensor:
    """Draw from the symmetric Dirichlet law: shares of a whole.

    Args:
        alpha: Concentration of each share, above 0.
        k: Number of shares.
        n: Number of draws.
        generator: Source of randomness; None: the global one.

    Returns:
        Shares in [0, 1], float64, shape ``(n, k)``; rows sum to 1.
    """
    return _log_gamma(torch.full((n, k), alpha, dtype=torch.float64), generator).softmax(1)


def _log_gamma(shapes: Tensor, generator: Generator | None) -> Tensor:
    """Draw logarithms of Gamma variables: of small shapes the variables themselves underflow.

    A variable of shape a is one of shape a + 1 times U^(1/a). torch.distributions takes no generator, this
    does.
    """
    log_gamma = torch._standard_gamma(shapes + 1, generator=generator).log_()
    uniform = torch.rand(shapes.shape, dtype=torch.float64, generator=generator)
    return log_gamma.add_(uniform.neg_().log1p_().div_(shapes))


def sample_uniform(low: float, high: float, n: int, generator: Generator | None = None) -> Tensor:
    """Draw from the uniform law on [low, high).

    Args:
        low: Lower end.
        high: Upper end.
        n: Number of draws.
        generator: Source of randomness; None: the global one.

    Returns:
        Draws, float64, shape ``(n,)``.
    """
    return low + (high - low) * torch.rand(n, dtype=torch.float64, generator=generator)


def sample_integers(high: int, n: int, generator: Generator | None = None) -> Tensor:
    """Draw integers uniformly from 0 to ``high - 1``.

    Args:
        high: One more than the largest.
        n: Number of draws.
        generator: Source of randomness; None: the global one.

    Returns:
        Draws, int64, shape ``(n,)``.
    """
    return torch.randint(high, (n,), generator=generator)


def sample_choice(weights: Sequence[float], generator: Generator | None = None) -> int:
    """Draw an index with the given relative weights.

    Args:
        weights: One for each choice, at least one of them above 0.
        generator: Source of randomness; None: the global one.
    """
    return int(torch.multinomial(torch.tensor(weights, dtype=torch.float64), 1, generator=generator))
