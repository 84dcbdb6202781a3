"""The assignment: write reinforcement fine-tuning yourself, in some sixty lines.

Replace each `raise NotImplementedError`. Equation numbers are those of course/lecture.md. Then ask:

    python -m course.assignment.check 1      # is part 1 right, and if not, what is wrong with it?
    python -m course.assignment.check        # all parts, and your functions train the main job

Parts 1 to 6 need torch, math and the lecture only. Shapes stand in brackets: B queries, n rollouts
of each, N completions.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# --- Part 1: the log-probability of a completion --------------------------------------------------


def completion_logprobs(
    model: torch.nn.Module, prompts: list[list[int]], completions: list[list[int]],
    temperature: float = 1.0,
) -> Tensor:  # fmt: skip
    """The terms of equation (3): one number for each token of each completion, with gradient.

    model: `model(ids).logits` is [N, length, vocabulary] for ids [N, length] of token ids. The
        logits at a place are those of the next token. No token sees what stands to its right.
    prompts, completions: N lists of token ids each. Lengths differ, so a batch has to be padded:
        on the right, with any id. (Or run one completion after the other. This is slower.)
    temperature: the logits are divided by it before the softmax.
    Returns [tokens]: all of the first completion, then all of the second, and so on. The tokens of
        the prompt are not among them. The end-of-sequence token of a completion is.
    """
    raise NotImplementedError


# --- Part 2: drawing a token ----------------------------------------------------------------------


def draw(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a token in each row from softmax(logits / temperature); (token, logprob), both [rows].

    logits: [rows, vocabulary]. uniform: [rows], a random number in [0, 1) for each row, float64.
        The token is the first one at which the running sum of the probabilities is above it. Sum
        in float64. Rounding can leave the whole sum a little below 1, and then below the number.
    temperature: 0 means the likeliest token, with its log-probability at temperature 1.
    logprob: of the token, under the distribution that it was drawn from.
    """
    raise NotImplementedError


# --- Part 3: advantages ---------------------------------------------------------------------------


def group_advantages(rewards: Tensor) -> Tensor:
    """GRPO (arXiv:2402.03300), equation (6): (R - mean) / (std + epsilon) of each row, [B, n].

    rewards: [B, n], each row a group. The standard deviation divides by n - 1. Epsilon is 1e-6. A
    group whose rewards are all equal gets 0.
    """
    raise NotImplementedError


def rloo_advantages(rewards: Tensor) -> Tensor:
    """RLOO (arXiv:2402.14740), equation (5), right: R minus the mean of the others in its row.

    rewards and result: [B, n].
    """
    raise NotImplementedError


def own_advantages(rewards: Tensor) -> Tensor:
    """One of your own choice, read or invented, that is neither of the two above nor the reward.

    rewards, 0 or 1, and result: [B, n]. The check enumerates all outcomes of a round. It asks that
    E[A | right] is above E[A | wrong] at p = 0.1, 0.5 and 0.9, and prints the difference, w(p) of
    equation (6): how much a query of success rate p weighs. Predict it first.
    """
    raise NotImplementedError


# --- Part 4: the loss -----------------------------------------------------------------------------


def loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, weights: Tensor,
    clip_low: float = 0.2, clip_high: float = 0.2, kl: float = 0.0,
    reference_logprobs: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Equation (7), a scalar to descend (PPO's clip, arXiv:1707.06347, and the KL term with k3).

    All tensors are [tokens]; each token has the advantage and the weight of its completion.
    old_logprobs: of the policy that sampled, a constant. Callers may pass `logprobs` itself.
    kl: beta. If it is above 0, reference_logprobs are those of the base model: equation (9), k3.
    """
    raise NotImplementedError


# --- Part 5: pass@k -------------------------------------------------------------------------------


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Equation (10), the unbiased estimate of pass@k (arXiv:2107.03374).

    samples: how many completions of a query there are; right: how many of them are right. There
    may be thousands. Raises ValueError if k is above samples.
    """
    raise NotImplementedError


# --- Part 6: one round ----------------------------------------------------------------------------

Sample = Callable[[list[list[int]]], list[list[int]]]
Grade = Callable[[list[list[int]], list[list[int]]], list[float]]


def one_round(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, prompts: list[list[int]],
    sample: Sample, grade: Grade,
) -> Tensor:  # fmt: skip
    """One round of the baseline: sample, grade, one step of the optimizer. Returns the rewards [B].

    sample(prompts): one completion of each prompt, a list of B lists of token ids.
    grade(prompts, completions): their rewards, a list of B numbers.
    The advantage is the reward. Each token weighs 1 / (all tokens of the B completions): equation
    (8), left. Clip the gradient to norm 1 (torch.nn.utils.clip_grad_norm_). Use your functions.
    """
    raise NotImplementedError


# --- Part 7, open: a better round -----------------------------------------------------------------


def better_round(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, prompts: list[list[int]],
    sample: Sample, grade: Grade,
) -> Tensor:  # fmt: skip
    """Make 120 rounds of the main job better, at equal rollouts. Returns the rewards it saw.

    As one_round, but all is yours: the advantage, the loss, how many steps, the learning rate
    (`optimizer.param_groups[0]["lr"]`, at first 1e-4), which of the prompts are sampled and how
    often (a prompt may be repeated). A round samples at most 32 completions. What has to last from
    one round to the next may be kept in a variable of this file. The check asks for a gain in test
    pass@1 of 0.04 over your own one_round: runs of different seeds lie about 0.02 apart. Look first
    at what results/README.md and the exercises found.
    """
    raise NotImplementedError
