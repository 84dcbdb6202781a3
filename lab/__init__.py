"""Closer looks. Each runs from the root of the repository, for example `python -m lab.explain`.

explain    one query through one round, every value on the way
tabular    the learner's functions on a bandit whose optimum is known
probe      the gradient estimates of the settings, at a fixed policy
page       a run, or one round, as a page for the browser
report     many runs become a report with intervals
forest     the gains of many reports in one picture
bench      speed, as ratios against what one would use instead
exercises  runs the commands of course/exercises.md and writes down what they measured
"""

import infra  # noqa: F401 (first, because from here on Ctrl-C ends in a sentence)
