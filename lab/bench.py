"""How fast this code is: ratios against what one would use instead, measured in turn with it.

    python -m lab.bench              # the table; about two minutes on two cores
    python -m lab.bench tricks       # what each trick of rollout.py brings (bench_sampler.py)
    python -m lab.bench verifier     # time and accuracy of reward.py (bench_verifier.py)
    python -m lab.bench dtype        # whether bfloat16 pays on this CPU (bench_dtype.py)
    python -m lab.bench gpu          # the sampler and a round on a GPU (bench_gpu.py)
    python -m lab.bench needs        # calculated: memory and time of the paper's models on an H100
    python -m lab.bench needs --card 24   # which flags they need to fit into 24 GB

Absolute times of a shared machine mean little. So each repeat times the two sides in turn and takes
the ratio; the table shows the median and the range over the repeats. bench_peers.py has the peers.
TRL and Math-Verify are optional: pip install trl math-verify
"""

import os
import sys
from argparse import Namespace
from pathlib import Path
from statistics import median

import torch

from infra.flags import FlagParser, above, at_least, path, within
from infra.run_folder import write_json
from lab.bench_dtype import dtype
from lab.bench_gpu import gpu
from lab.bench_needs import needs
from lab.bench_peers import against_generate, against_math_verify, against_trl
from lab.bench_sampler import tricks
from lab.bench_timing import CAP, WORKLOADS, time_ratio
from lab.bench_verifier import verifier

PEERS = {
    "generate": against_generate,
    "trl_round": against_trl,
    "verifier": against_math_verify,
}


def table(flags: Namespace) -> None:
    """Print a line for each comparison, then the GPU's section; write the ratios to --json."""
    ratios = {}
    print(f"{'':14}{'ours':>12}{'theirs':>12}   {'ratio':>6}  (range)")
    for name, compare in PEERS.items():
        try:
            for line in compare(flags):
                ratios[line.name] = time_ratio(line.ours, line.theirs)
                ours = line.units / median(line.ours)
                theirs = line.units / median(line.theirs)
                print(f"{line.name:14}{ours:12,.1f}{theirs:12,.1f}   {ratios[line.name]}")
        except ImportError as error:
            print(f"{name:14}left out: {error.name} is not installed (pip install trl math-verify)")
    print(
        f"\ngenerate: tokens a second against model.generate, {flags.model} on {flags.data}, at "
        f"most {CAP} tokens;\nset: {WORKLOADS['set'].queries:,} queries. trl_round: rounds of 32 x "
        "8 a second against GRPOTrainer. verifier: verdicts\na second against Math-Verify. A ratio "
        "above 1 is in our favour; its range is over the repeats.\n"
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}."
    )
    if torch.cuda.is_available():
        gpu(flags)
    else:
        print("There is no GPU here, so `python -m lab.bench gpu` is left out.")
    if flags.json:
        figures = {name: ratio._asdict() for name, ratio in ratios.items()}
        write_json(Path(flags.json), figures)


SECTIONS = {
    "table": table, "tricks": tricks, "verifier": verifier, "dtype": dtype, "gpu": gpu,
    "needs": needs,
}  # fmt: skip
READS = {  # the flags of each
    "table": ("model", "data", "repeats", "threads", "json", "rows"),
    "tricks": ("model", "data", "repeats", "threads"),
    "verifier": ("rows",),
    "dtype": ("model", "data", "repeats", "threads"),
    "gpu": ("repeats",),
    "needs": ("card",),
}


def main() -> None:
    parser = FlagParser(description=__doc__)
    flag = parser.add_argument
    flag("section", nargs="?", default="table", choices=SECTIONS, help="what to measure")
    flag("--model", default="tiny-qwen2", help="of the sections table, tricks and dtype")
    flag("--data", default="tiny-gsm", help="of the sections table, tricks and dtype")
    flag("--repeats", type=at_least(1), default=5, help="of each measurement")
    flag("--threads", type=within(1, os.cpu_count()),
         help="CPU threads (default: by the size of the model)")
    flag("--json", type=path, help="a file for the ratios of the table")
    flag("--card", type=above(0.0), help="GB of a GPU's memory, for needs")
    flag("--rows", type=at_least(1), default=500, help="MATH answers that Math-Verify judges")
    flags = parser.parse_args()
    for name, value in vars(flags).items():
        is_changed = name != "section" and value != parser.get_default(name)
        if is_changed and name not in READS[flags.section]:
            parser.error(f"--{name} is of no use to `python -m lab.bench {flags.section}`")
    try:
        SECTIONS[flags.section](flags)
    except (ValueError, OSError) as error:
        sys.exit(f"bench.py: {error}")


if __name__ == "__main__":
    main()
