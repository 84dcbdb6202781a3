"""Everything that changes during a run, and how it is saved, resumed and finished.

A run that was killed and resumed equals one that was never stopped: seeds derive from the round
(seeding.py), and the log's lines after the last checkpoint are dropped and made again.
"""

import argparse
from collections.abc import Callable

import torch

from infra import checkpoint, curve, distributed, memory, models, optimizer
from infra.run_folder import (
    Clock,
    RunFolder,
    StopRequest,
    Timer,
    commit,
    how_to_resume,
    read_lines,
    write_json,
    write_lines,
    writing,
)

COUNTERS = ("round", "evaluated", "rollouts", "tokens", "regret", "seconds")


class TrainState:
    """The policy and its optimizer, the reward windows, the counters, and the run's folder.

    args: the flags of train.py.
    score: what evaluate.grade calls; that of a file has a hash, which becomes part of the flags.
    Raises ValueError, in one sentence, for flags that cannot be run.
    """

    def __init__(self, args: argparse.Namespace, score: Callable):
        self.args, self.score = args, score
        reward_hash = getattr(score, "hash", None)
        self.folder = RunFolder(args.out, vars(args) | {"reward_hash": reward_hash})
        self.timer, self.stop = Timer(), StopRequest()
        self.round = self.rollouts = self.tokens = self.regret = 0
        self.seconds = 0.0
        self.reward = 0.0  # mean of the last round, for the progress bar
        self.evaluated = self.saved = -1  # the last round that was; -1: not even round 0
        self.windows: dict[str, list[float]] = {}  # the last rewards of each prompt
        self.load_policy()
        self.optimizer.register_step_pre_hook(lambda *_: self.timer.enter("step"))

    def load_policy(self) -> None:
        """The policy, its master weights and optimizer; the reference if there is a KL term."""
        args = self.args
        self.model, self.tokenizer = models.load(args.model)
        models.set_threads(self.model, args.threads)
        if args.gradient_checkpointing:
            models.recompute_layers(self.model)
        self.dtype = getattr(torch, args.dtype) if args.dtype else models.compute_dtype()
        self.masters = optimizer.MasterWeights(self.model, self.dtype)
        self.optimizer = optimizer.adamw(self.masters, args.lr, args.weight_decay)
        self.reference = models.load(args.model, dtype=self.dtype)[0] if args.kl else None
        # What rollout.sample is told in every call.
        self.sampling = {
            "end_ids": models.end_ids(self.model, self.tokenizer),
            "max_new_tokens": args.max_new_tokens,
            "cache_tokens": args.cache_tokens or memory.gpu_cache_tokens(args.model, self.model),
            "compiled": args.compile,
        }

    def load_base_model(self) -> torch.nn.Module:
        """The base model: the reference if there is one, else loaded again.

        Keeping a second model would cost memory between evaluations.
        """
        return self.reference or models.load(self.args.model, dtype=self.dtype)[0]

    def start(self) -> None:
        """Start the clock, take the run's folder, and resume if asked to."""
        self.clock = Clock()
        self.folder.take()
        if self.args.resume:
            self.resume()
        self.folder.open()

    def save(self) -> None:
        """Write a checkpoint of this round, unless there is one. Every process must call it."""
        if self.saved == self.round:
            return
        self.seconds = self.clock.read()
        state = {
            "model": self.masters.state_dict(),
            "optimizer": optimizer.gather_state(self.optimizer),
            "windows": self.windows,
            **{name: getattr(self, name) for name in COUNTERS},
        }
        if distributed.is_main_process():
            state["logs"] = self.folder.log_marks()
            with writing(checkpoint.path_of(self.folder.path, self.round)):
                checkpoint.save(self.folder.path, self.round, state)
        self.saved = self.round
        distributed.all_gather(None)  # no process goes on before the checkpoint is written

    def resume(self) -> None:
        """Go on from the newest checkpoint; drop what the logs hold beyond it."""
        self.folder.check_flags()
        state = checkpoint.load_newest(self.folder.path) or {}
        try:
            if state:
                self.load(state)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"--resume: the checkpoint in {self.folder.path} is not of this run "
                f"({type(error).__name__}: {error})"
            ) from None
        self.folder.cut_logs(state.get("logs", {}))
        if self.round and self.args.rounds < self.round:
            raise ValueError(
                f"--rounds {self.args.rounds}: the run in {self.folder.path} is at round "
                f"{self.round} already"
            )

    def load(self, state: dict) -> None:
        """Take over what `save` wrote."""
        self.masters.load_state_dict(state["model"])
        optimizer.load_state(self.optimizer, state["optimizer"])
        self.windows = state["windows"]
        for name in COUNTERS:
            setattr(self, name, state[name])
        self.clock.total = self.seconds
        self.saved = self.round

    def check_resumed(self) -> None:
        """Raise ValueError if the processes found checkpoints of different rounds."""
        found = distributed.all_gather(self.round)
        if len(set(found)) > 1:
            raise ValueError(
                f"--resume: the processes found checkpoints of different rounds ({found}): the "
                "run's folder must be on a disk that all of them see"
            )

    def draw_curve(self) -> None:
        """Draw curve.png from the logs so far. A process that is not the main one has no logs."""
        if distributed.is_main_process():
            curve.draw_curve(self.folder.path)

    def finish(self, samples: list[dict]) -> None:
        """Write samples.jsonl, the final model, summary.json and curve.png; print the account."""
        path = self.folder.path
        self.seconds = self.clock.read()
        write_lines(path / "samples.jsonl", samples)
        self.masters.move_into_model()
        with writing(path / "model"):
            self.model.save_pretrained(path / "model")
            self.tokenizer.save_pretrained(path / "model")
        summary = curve.before_and_after(read_lines(path / "evals.jsonl"))
        summary |= {
            "rounds": self.round,
            "rollouts": self.rollouts,
            "tokens": self.tokens,
            "regret": self.regret,
            "seconds": round(self.seconds, 1),
            "seed": self.args.seed,
            "commit": commit(),
        }
        write_json(path / "summary.json", summary)
        with writing(path / "curve.png"):
            self.draw_curve()
        print(curve.account(path))

    def reward_failed(self, error: ValueError) -> str:
        """A sentence on the error in the reward file. Saves the rounds so far.

        Neither a round nor an evaluation has changed anything before all rewards are there. With
        several processes it is unknown whether all are here, and saving needs all of them.
        """
        if distributed.world_size() == 1 and self.evaluated >= 0:
            self.save()
        self.folder.note_reward_error(self.round, str(error))
        return f"{error}; mend it, then {how_to_resume(self.folder.path)}"

    def out_of_memory(self, cached_tokens: int | None) -> str:
        """A sentence on what to lower. Saves the rounds so far, unless a step was half taken.

        cached_tokens: the size of the sampler's cache, which the caller has freed.
        """
        args = self.args
        advice = memory.what_to_lower(
            self.timer.part, args.max_prompt_tokens, args.max_new_tokens, args.micro_tokens,
            args.gradient_checkpointing, self.sampling["cache_tokens"] or cached_tokens,
        )  # fmt: skip
        for weight in self.masters.weights:
            weight.grad = None
        is_consistent = self.evaluated >= 0 and self.timer.part != "step"
        if distributed.world_size() == 1 and is_consistent:
            self.save()
        hint = f"; then {how_to_resume(self.folder.path)}" if self.saved >= 0 else ""
        return f"out of memory: {advice}{hint}"
