"""Times the evaluations of a run on its own task and on others, in several versions of the code in turn.

    python tests/benchmarks/evaluation.py [--code FOLDER ...] [--episodes 3] [--time_limit 40] [--assets FOLDER]

The agent is results/agent, in front of clouds; the others are its clean task and the four sets of DMC-GS. A row for
each version: seconds of an evaluation, but for the first one, which starts the workers, and of all; CPU seconds of all
processes, starts and ends included; each with its ratio to the first version; and the memory that evaluations add
(PSS), between them and at most.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SETS = ("", "_color_easy", "_color_hard", "_video_easy", "_video_hard")


def memory() -> float:
    """MiB of this process and its children, shared pages divided among those that share them."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    total = 0
    for pid in ("self", *children):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def measure(args: argparse.Namespace) -> dict:
    """Evaluations in this process, by the code of the current folder."""
    sys.path.insert(0, os.getcwd())
    from dreamer import make_agent
    from run import checkpoint, collect, evaluate, runtime

    tasks = [f"dmc_walker_stand{name}" for name in SETS]
    flags = ["--parallel", "True", "--device", "cpu", "--eval_envs", args.envs, "--eval_tasks", *tasks]
    flags += ["--eval_episode_num", args.episodes, "--time_limit", args.time_limit, "--assets", args.assets]
    run = ROOT / "results" / "agent"
    config = evaluate.run_config(list(map(str, flags)), run)
    runtime.set_up(config)
    with collect.make_envs(config, "eval", 1, True) as group:
        agent = make_agent(config, group)
        checkpoint.load_weights(run, agent)
    alone, seen, done = memory(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            seen.append(memory() - alone)

    watcher = threading.Thread(target=watch)
    watcher.start()
    evaluator, seconds, between, returns = evaluate.Evaluator(config), [], 0.0, []
    start = sum(os.times()[:4])
    for number in range(args.evaluations):
        begin = time.perf_counter()
        results = evaluator.play(agent, number)
        seconds.append(time.perf_counter() - begin)
        between = memory() - alone
        returns += [score for result in results.values() for score in result[0]["return"]]
    done.set()
    watcher.join()
    evaluator.close()
    cpu = sum(os.times()[:4]) - start
    return {"seconds": seconds, "cpu": cpu, "between": between, "most": max(seen), "returns": returns}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", nargs="+", default=[str(ROOT)], metavar="FOLDER", help="versions of this repository")
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--envs", type=int, default=10, help="workers, if there are as many episodes")
    parser.add_argument("--time_limit", type=int, default=40, help="environment steps of an episode, four a step")
    parser.add_argument("--evaluations", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--assets", default=str(ROOT / "assets"))
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.assets = os.path.abspath(args.assets)
    if args.measure:
        print(json.dumps(measure(args)))
        return
    flags = [f"--{name}={getattr(args, name)}" for name in ("episodes", "envs", "time_limit", "evaluations", "assets")]
    found: dict[str, list[dict]] = {code: [] for code in args.code}
    for _ in range(args.rounds):
        for code in args.code:
            command = [sys.executable, __file__, "--measure", *flags]
            done = subprocess.run(command, cwd=code, stdout=subprocess.PIPE, text=True, check=True)
            found[code].append(json.loads(done.stdout.splitlines()[-1]))
    print("| version | evaluation s | of all | CPU s | MiB between | MiB at most |\n|---|---|---|---|---|---|")
    first = None
    for code, rounds in found.items():
        later = statistics.median(second for one in rounds for second in one["seconds"][1:] or one["seconds"])
        every = statistics.median(statistics.mean(one["seconds"]) for one in rounds)
        cpu = statistics.median(one["cpu"] / args.evaluations for one in rounds)
        first = first or (later, every, cpu)
        pairs = zip((later, every, cpu), first, strict=True)
        ratios = [f"{value:.2f} ({value / before:.2f})" for value, before in pairs]
        cells = [Path(code).name, *ratios, *(f"{max(one[name] for one in rounds):.0f}" for name in ("between", "most"))]
        print(f"| {' | '.join(cells)} |")
    print(f"returns equal: {len({tuple(one['returns']) for rounds in found.values() for one in rounds}) == 1}")


if __name__ == "__main__":
    main()
