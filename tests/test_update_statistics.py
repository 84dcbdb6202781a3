"""What the log shows of an update, summed over processes, against numbers worked by hand."""

import pytest
import torch

from infra import distributed
from infra.update_statistics import UpdateStatistics

NORMS = {"grad_norm": 3.0, "update_norm": 0.1}


def test_sums_of_two_processes(monkeypatch):
    """Ten completion tokens in the round, of which eight were run: five here and three there. The
    kl is per token of the round, the mismatch per token that was run."""
    here = UpdateStatistics(all_tokens=10, has_kl=True, loss=0.5, kl=0.03)
    here.add_mismatch(torch.tensor([0.1, -0.1]))
    here.add_mismatch(torch.tensor([0.0, 0.0, -0.4]))
    there = UpdateStatistics(all_tokens=10, has_kl=True, loss=-0.2, kl=0.01)
    there.add_mismatch(torch.tensor([0.2, 0.0, 0.0]))
    monkeypatch.setattr(distributed, "all_gather", lambda mine: [mine, there])
    assert here.over_all_processes(NORMS) == {
        "loss": pytest.approx(0.3),
        **NORMS,
        "kl": pytest.approx(0.004),
        "sampler_mismatch": pytest.approx(0.1),
        "largest_sampler_mismatch": pytest.approx(0.4),
    }


def test_what_was_not_measured_is_none():
    assert UpdateStatistics(all_tokens=10, has_kl=False).over_all_processes(NORMS) == {
        "loss": 0.0,
        **NORMS,
        "kl": None,
        "sampler_mismatch": None,
        "largest_sampler_mismatch": None,
    }
