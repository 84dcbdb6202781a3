"""Settings that cannot mean what they say get one sentence instead of a run: what train.py and explain.py refuse."""

from bandit import ADVANTAGES


def check(name, batch, n, extra=0, window=0, right=1.0, wrong=0.0):
    """Raise ValueError, in one sentence, for a row of ADVANTAGES that these numbers give nothing to work with.

    batch: queries a round; n: trained rollouts of each; extra: more, for the statistics only; window: rewards
    remembered of a query; right, wrong: the rewards.
    """
    needs = ADVANTAGES[name].needs
    if needs == "group" and n + extra < 2 or needs == "batch" and batch * n < 2:
        whose = "one query" if needs == "group" else "a batch"
        raise ValueError(f"--advantage {name} compares the rollouts of {whose} and there is only one: give more, or "
                         "write --advantage reward")
    if extra and needs != "group":
        raise ValueError(f"--baseline-rollouts {extra} would be sampled for nothing: --advantage {name} has no "
                         "statistics of the group")
    if needs == "window" and window < 2:
        raise ValueError(f"--advantage {name} needs --window of at least 2 rewards, the paper's is 8")
    if needs == "window" and n > window:
        raise ValueError(f"--window {window} cannot hold the {n} rewards that --rollouts {n} brings at once")
    if needs != "window" and window:
        raise ValueError(f"--window {window} is of no use to --advantage {name}: write --advantage window")
    if right <= wrong:
        raise ValueError(f"--right-reward {right:g} must be above --wrong-reward {wrong:g}")
    if needs == "signs" and not wrong < 0 < right:
        meant = "there is nothing to learn from" if name == "nsr" else "it is --advantage reward, up to a factor"
        raise ValueError(f"--advantage {name} needs a positive --right-reward and a negative --wrong-reward (1 and -1 "
                         f"in the literature): with {right:g} and {wrong:g} {meant}")
