"""What safety and scale need. A first reading of the repository skips this folder.

train_state.py         everything that changes during a run: saved, resumed, finished
run_folder.py          a run's folder: its flags, its logs, its clock, the request to stop
queue.py               the queue of ablate.sh: runs, skips, resumes and reports
checkpoint.py          checkpoints that survive a kill at any moment
curve.py               the figure of one run and its account in words
intervals.py           95 % intervals, and the correction for several comparisons
forecast.py            what is ahead of a run: completions, then hours
seeding.py             one seed for each purpose and round
flags.py               types of flags, and combinations of flags that are refused
reward_file.py         a reward of one's own: --reward FILE.py
rows.py                rows of a problem set: tiny/, the hub, or files
math_equality.py       when two mathematical answers are the same
models.py              loading a model, its number format, its threads, its end-of-sequence ids
optimizer.py           AdamW on float32 master weights
update_statistics.py   what the log shows of an update, over all processes
distributed.py         many processes that behave like one
kv_cache.py            the sampler's cache of keys and values, and the attention that reads it
cuda_graphs.py         the sampler's step on a GPU: recorded once, replayed from then on
memory.py              how much memory there is, and what to lower when it runs out

Nothing here imports a script of the root or of lab/.
"""

import os
import sys


def say_stopped(kind: type, error: BaseException, traceback: object) -> None:
    """What Python calls when a script ends in an error: Ctrl-C is answered by a sentence."""
    if issubclass(kind, KeyboardInterrupt):
        print(f"{sys.argv[0]}: stopped", file=sys.stderr)
    elif issubclass(kind, BrokenPipeError):
        # Who read our output, such as head, has enough. What is still unwritten goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = say_stopped
