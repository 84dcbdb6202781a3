"""The tabular bandit. That exact_weight is the expected update is tested in test_estimators.py."""

import pytest
import torch

from bandit import ADVANTAGES
from lab import tabular


def test_success_rates_are_those_of_the_right_arm():
    bandit = tabular.TabularBandit(contexts=3, arms=4)
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.25] * 4]))
    assert torch.allclose(bandit.success_rates(logits), torch.tensor([0.1, 0.7, 0.25]))


def test_the_first_policy_has_easy_and_hard_contexts():
    bandit = tabular.TabularBandit()
    rates = bandit.success_rates(bandit.start)
    assert rates.min() < 0.05
    assert rates.max() > 0.9


def test_a_round_counts_its_wrong_pulls():
    bandit = tabular.TabularBandit(contexts=2, arms=3)
    certain = torch.tensor([[50.0, 0, 0], [0, 50.0, 0]])  # always right, always wrong
    generator = torch.Generator().manual_seed(0)
    _, wrong = bandit.play_round(certain.requires_grad_(), "reward", 5, generator, {})
    assert wrong == 5


def test_learning_has_less_regret_than_never_learning():
    bandit = tabular.TabularBandit()
    never = 60 * 8 * 8 * (1 - bandit.success_rates(bandit.start).mean())
    for name in ("reward", "group", "window"):
        assert tabular.regret(bandit, name, lr=16) < 0.5 * never


def test_the_table_has_a_line_for_each_advantage(monkeypatch, capsys):
    """By default for all, else for those that are named."""
    monkeypatch.setattr(tabular, "SEEDS", range(2))
    monkeypatch.setattr(tabular, "ROUNDS", 2)
    monkeypatch.setattr(tabular, "RATES", (0.25,))
    for words, names in (([], list(ADVANTAGES)), (["psr", "opo"], ["raft", "opo"])):
        tabular.main(words)
        lines = capsys.readouterr().out.splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("(never learning)"))
        assert [line.split()[0] for line in lines[start + 1 :]] == names
    assert max(map(len, tabular.INTRODUCTION.splitlines())) <= 100


def test_an_unknown_advantage_is_refused_in_a_sentence(capsys):
    with pytest.raises(SystemExit):
        tabular.main(["rlo"])
    assert "rlo is no advantage; there are: " in capsys.readouterr().err
