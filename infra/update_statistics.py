"""What the log shows of an update, summed over micro-batches and processes."""

from dataclasses import dataclass

import torch

from infra import distributed


@dataclass
class UpdateStatistics:
    """Sums of one process.

    all_tokens: completion tokens of the whole round. has_kl: whether the loss has a KL term.
    """

    all_tokens: int
    has_kl: bool
    loss: float = 0.0
    kl: float = 0.0
    mismatch: float = 0.0
    largest_mismatch: float = 0.0
    compared_tokens: int = 0

    def add_mismatch(self, mismatch: torch.Tensor) -> None:
        """Add differences between the trainer's and the sampler's log-probabilities, [tokens]."""
        self.mismatch += mismatch.abs().sum().item()
        self.largest_mismatch = max(self.largest_mismatch, mismatch.abs().max().item())
        self.compared_tokens += len(mismatch)

    def over_all_processes(self, norms: dict[str, float]) -> dict[str, float | None]:
        """The figures of the round; `norms` are those of the last step, the same in every process.

        All are over the rollouts that are trained on; extra ones for statistics are not in them.
        loss: the mean over the optimizer steps of the round.
        kl: the mean k3 per token before the first step; None without a KL term.
        sampler_mismatch, largest_sampler_mismatch: mean and largest absolute difference between
            the log-probabilities, over the tokens that were run; None if there was none.
        """
        everyone = distributed.all_gather(self)
        compared = sum(each.compared_tokens for each in everyone)
        kl = sum(each.kl for each in everyone) / self.all_tokens
        mismatch = sum(each.mismatch for each in everyone) / max(1, compared)
        largest = max(each.largest_mismatch for each in everyone)
        return {
            "loss": sum(each.loss for each in everyone),
            **norms,
            "kl": kl if self.has_kl else None,
            "sampler_mismatch": mismatch if compared else None,
            "largest_sampler_mismatch": largest if compared else None,
        }
