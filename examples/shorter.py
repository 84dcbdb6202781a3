"""A graded reward: a right answer pays the more, the shorter the completion is.

    python train.py --reward examples/shorter.py

A wrong answer pays nothing, so there is nothing to win by being short and wrong. docs/your_own.md
shows what was seen.
"""

import reward

LONGEST = 100  # characters; a right answer of this length or more pays half


def score(completion, query):
    """(paid, right): 1 for an empty completion, falling to 0.5; right is the verifier's verdict."""
    _, right = reward.score(completion, query)
    length = min(len(completion), LONGEST)
    return (1 - length / (2 * LONGEST) if right else 0.0), right
