"""Grade the assignment, part by part; then train the main job with its functions.

    python -m course.assignment.check                # assignment.py, all of it (two minutes)
    python -m course.assignment.check 4              # part 4 alone (seconds)
    python -m course.assignment.check --file hand_in.py
"""

import importlib.util
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from course.assignment import main_job
from course.assignment.parts import PARTS, Wrong
from infra import flags

HERE = Path(__file__).parent
OPEN_PART = 7


def load(path: Path) -> ModuleType:
    """The student's file as a module; raises Wrong, in one sentence, if it cannot be run."""
    spec = importlib.util.spec_from_file_location("assignment_of_student", path)
    if not path.is_file() or spec is None:
        raise Wrong(f"there is no Python file {path}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise Wrong(f"{path.name}, line {error.lineno}: {error.msg}") from None
    except Exception as error:
        raise Wrong(f"{path.name} cannot be imported: {error}") from None
    return module


def check_function(mine: ModuleType, name: str, check: Callable) -> str | None:
    """Run one check; whatever goes wrong in the student's code becomes one sentence."""
    if not callable(getattr(mine, name, None)):
        raise Wrong(f"{name}: there is no such function in {Path(mine.__file__).name}")
    try:
        return check(mine)
    except Wrong:
        raise
    except NotImplementedError:
        raise Wrong(f"{name}: not written yet") from None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [frame.lineno for frame in frames if frame.filename == mine.__file__]
        where = f" in line {theirs[-1]} of {Path(mine.__file__).name}" if theirs else ""
        words = (str(error).strip() or "no message").splitlines()[0]
        raise Wrong(f"{name}: {type(error).__name__}{where}: {words}") from None


def check_part(mine: ModuleType, number: int) -> bool:
    """Print the verdict on a part, and return it."""
    title, functions = PARTS[number]
    problems, remarks = [], []
    for name, check in functions.items():
        try:
            remark = check_function(mine, name, check)
            remarks += [remark] if remark else []
        except Wrong as wrong:
            problems.append(str(wrong))
    print(f"part {number}, {title}: {'not yet' if problems else 'right'}", flush=True)
    for line in problems or remarks:
        print(f"    {line}", flush=True)
    return not problems


def main(argv: list[str] | None = None) -> None:
    parser = flags.FlagParser(description=__doc__, prog="check")
    parser.add_argument("part", nargs="?", type=int, choices=[*PARTS, OPEN_PART],
                        help="1 to 6: this part alone (default, and 7: all of it)")
    parser.add_argument("--file", type=Path, default=HERE / "assignment.py", help="the hand-in")
    parser.add_argument("--out", type=Path, default=Path("runs/assignment"),
                        help="the folder of curve.png and evals.json")
    parser.add_argument("--seed", type=flags.at_least(0), default=0, help="of the training")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        mine = load(args.file)
        if args.part in PARTS:
            sys.exit(0 if check_part(mine, args.part) else 1)
        are_right = [check_part(mine, number) for number in PARTS]
        if not all(are_right[number - 1] for number in (1, 2, 4, 6)):
            sys.exit("The main job is trained once parts 1, 2, 4 and 6 are right.")
        is_better = train_main_job(args)
    except Wrong as wrong:
        sys.exit(f"check: {wrong}")
    except KeyboardInterrupt:
        sys.exit("check: stopped")
    sys.exit(0 if all(are_right) and is_better else 1)


def train_main_job(args: Namespace) -> bool:
    """Train with one_round and better_round, draw the curves; whether part 7 is reached."""
    print("\nThe main job on your functions, 120 rounds of 32 completions ...", flush=True)
    results, problems = main_job.train_both(args.file, args.seed)
    picture = main_job.write(args.out, results, args.seed)
    print(main_job.in_words(results))
    for problem in problems:
        print(f"    {problem}")
    print(f"curve: {picture}")
    return main_job.gain(results) >= main_job.GOAL


if __name__ == "__main__":
    main()
