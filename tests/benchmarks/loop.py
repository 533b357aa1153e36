"""Times the training loop: overlap of envs and learner, one action, and overall environment steps per second.

    python tests/benchmarks/loop.py [--rows configured balanced] [--seconds 60] [--SETTING VALUE ...]
    python tests/benchmarks/loop.py --long [AGENT_STEPS]

It drives the real `Trainer`. The first row is plain dmc_vision (other flags are settings of dreamer.py).
In the second row the two sides are about equally busy, through the number of updates per step, and on a CPU also
through a small model: only there does an overlap show, or its absence. On a CPU, learner and envs then each get their
own cores, the same ones alone and together, as "the larger of the two" means nothing if the two compete for cores.

learner   the updates of an iteration, the envs idle
envs      an iteration without its updates: the policy acts, all envs step, the results go into the replay
both      a whole iteration, as in `dreamer.train`

--long trains a tiny model on vectors through `dreamer.train`, with its logs, checkpoints and evaluations, and prints
speed, memory and files after each tenth. On a machine with other load, CPU time per step (of the learner's process) is
more informative than speed. The replay is full after three tenths: from then on, only the logs may grow.
"""

import argparse
import contextlib
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from run import process
from run.config import Config, load_config

process.tune_allocator()

import torch

import dreamer
from run import collect, runtime, trainer
from run.trainer import Schedule, Trainer

PREFILL = 256  # agent steps: batches need a few rows of each env
ROUNDS = 5
ROWS = ("configured", "balanced")
SMALL = """--encoder.cnn_depth 8 --dyn_hidden 64 --dyn_deter 64 --dyn_stoch 8 --dyn_discrete 8 --units 64
    --batch_size 8 --batch_length 16 --imag_horizon 5""".split()
TINY = """--configs dmc_proprio --task dmc_cartpole_balance --time_limit 200 --encoder.mlp_units 32 --dyn_hidden 32
    --dyn_deter 32 --dyn_stoch 4 --dyn_discrete 4 --units 32 --batch_size 8 --batch_length 8 --imag_horizon 5
    --train_ratio 6.4 --pretrain 1 --prefill 500 --eval_episode_num 1""".split()


# The machine


def work_time(pids: list[int]) -> float:
    """Seconds of CPU time that processes have used so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def machine_time() -> float:
    """Seconds for which the machine's cores have been busy, including time stolen by its host."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discards the run's own output."""
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        yield


def workers(run: Trainer) -> list[int]:
    """Process ids of the env workers."""
    return [host.process.pid for host in run.collector.envs.hosts if hasattr(host, "process")]


def split_cores(run: Trainer) -> str:
    """Gives one half of the cores to the learner and the other to the env workers; returns a description."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2 or not workers(run):
        return "learner and envs share the cores"
    learner, others = cores[: len(cores) // 2], cores[len(cores) // 2 :]
    for pid in workers(run):
        for task in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(task), others)
    os.sched_setaffinity(0, learner)
    torch.set_num_threads(min(len(learner), torch.get_num_threads()))
    return f"the learner on {len(learner)} core(s), the {len(workers(run))} env workers on {len(others)} other(s)"


def make_trainer(config: Config, folder: Path) -> Trainer:
    runtime.seed_everything(config.seed, config.deterministic_run)
    group = collect.make_train_envs(config)
    return Trainer(config, folder, dreamer.build(config, group), group)


# Pieces of the loop


class Pieces:
    """A run past its prefill, and the parts of its iterations."""

    def __init__(self, run: Trainer):
        self.run, self.interrupt = run, process.Interrupt()
        run.resume()
        run.collector.act(run.agent)
        while not self.run.updates_due():
            self.step()

    def step(self) -> None:
        self.run.collector.receive(self.interrupt)
        self.run.collector.act(self.run.agent)

    @property
    def updates(self) -> float:
        """Updates of an iteration."""
        c = self.run.config
        return c.envs * c.train_ratio / (c.batch_size * c.batch_length)

    def set_updates(self, count: int) -> None:
        """Sets the updates of an iteration."""
        c = self.run.config
        self.run.config = c.replace(train_ratio=count * c.batch_size * c.batch_length / c.envs)
        self.run.schedule = Schedule.of(self.run.config)

    def learner(self, iterations: int) -> None:
        self.run.updates = self.run.updates_due() - max(1, round(iterations * self.updates))
        dreamer.update_agent(self.run, self.interrupt)

    def envs(self, iterations: int) -> None:
        for _ in range(iterations):
            self.step()

    def both(self, iterations: int) -> None:
        for _ in range(iterations):
            dreamer.update_agent(self.run, self.interrupt)
            self.step()

    def act(self, iterations: int) -> None:
        agent, collector = self.run.agent, self.run.collector
        for _ in range(iterations):
            obs = collect.stack_obs(collector.obs, collector.keys, agent.device)
            action, _ = agent.act(obs, collector.policy_state, training=True)
            action.cpu()

    def seconds(self, part: str, iterations: int) -> float:
        """Seconds per iteration of `learner`, `envs`, `both` or `act`."""
        run = self.run
        run.updates = self.run.updates_due()
        self.step()  # a step has just begun and its updates are due, as within the loop
        if part in ("learner", "act"):
            for host in run.collector.envs.hosts:
                if hasattr(host, "pipe"):
                    host.pipe.poll(None)  # the envs are done
        return timed(getattr(self, part), run.device, iterations) / iterations


def timed(function: Callable, device: torch.device, *args) -> float:
    """Seconds of a call, including the GPU's work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function(*args)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(name: str, flags: list[str], balanced: bool, budget: float) -> str:
    """Measures a run with these settings for about `budget` seconds; prints a row of the table, returns remarks."""
    config = load_config(flags)
    remarks = []
    with tempfile.TemporaryDirectory() as folder:
        with quiet():
            run = make_trainer(config, Path(folder))
        with contextlib.closing(run), quiet():
            if balanced and run.device.type == "cpu":
                remarks.append(split_cores(run))
            pieces = Pieces(run)
            for part in ("envs", "both", "act"):  # warm up
                pieces.seconds(part, 2)
            if balanced:
                one = pieces.seconds("learner", 4) / pieces.updates
                pieces.set_updates(max(1, round(pieces.seconds("envs", 20) / one)))
            iteration = pieces.seconds("both", 1)
            count = max(1, round(budget / ROUNDS / 3 / iteration))
            rounds = ROUNDS if count > 1 else 3
            times = {part: [] for part in ("learner", "envs", "both", "act")}
            pids = [os.getpid(), *workers(run)]
            began, busy, own = time.perf_counter(), machine_time(), work_time(pids)
            for _ in range(rounds):
                for part, results in times.items():
                    results.append(pieces.seconds(part, 20 if part == "act" else count))
            took, busy, own = time.perf_counter() - began, machine_time() - busy, work_time(pids) - own
            save = timed(run.save, run.device)
        updates, envs, repeat = pieces.updates, config.envs, config.action_repeat
    learner, stepping, both, act = (statistics.median(times[part]) for part in ("learner", "envs", "both", "act"))
    rounds_of_all = zip(*(times[part] for part in ("learner", "envs", "both")), strict=True)
    over = statistics.median(b / max(a, e) for a, e, b in rounds_of_all)
    rate = envs * repeat / both
    hours = 1e6 / rate / 3600
    row = [name, f"{updates:g}", *(f"{1e3 * x:.1f}" for x in (learner, stepping, act, both)), f"{over - 1:+.0%}"]
    print(f"| {' | '.join(row)} | {rate:.2f} | {hours:.2f} |", flush=True)
    remarks.append(f"{rounds} rounds of {count} iterations, medians; others had {(busy - own) / took:.2f} cores")
    if not balanced:
        played = config.eval_episode_num / envs * config.time_limit / repeat * stepping
        evaluations = played * 1e6 / config.eval_every / 3600 if config.eval_every else 0
        checkpoints = save * 1e6 / config.checkpoint_every / 3600
        remarks.append(
            f"1M steps take {hours:.2f} h, + {evaluations:.2f} h of evaluations ({config.eval_episode_num} episodes "
            f"every {config.eval_every} steps, at the envs' steps a second), + {checkpoints:.3f} h of checkpoints"
        )
    return f"{name}: {'; '.join(remarks)}"


def table(settings: list[str], rows: list[str], budget: float) -> None:
    flags = ["--configs", "dmc_vision", "--task", "dmc_walker_walk", *settings]
    flags += ["--prefill", str(PREFILL), "--pretrain", "0"]
    config = load_config(flags)
    device = runtime.pick_device(config.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {device} ({where}), {len(os.sched_getaffinity(0))} cores, {config.envs} envs")
    with quiet():
        runtime.tune_matmul(device)
    print("| settings | updates | learner ms | envs ms | act ms | both ms | over the larger | steps/s | h per 1M |")
    print("|---|---|---|---|---|---|---|---|---|")
    small = SMALL if device.type == "cpu" else []
    remarks = []
    if "configured" in rows:
        remarks.append(measure("as configured", flags, False, budget))
    if "balanced" in rows:
        remarks.append(measure("balanced" + ", small" * bool(small), flags + small, True, budget))
    print(*remarks, sep="\n")


# A long run


def held(run: Trainer, folder: Path) -> tuple[float, float, int, int, float, float]:
    """MiB of this process and of the env workers, open files, files in the folder, their MiB, MiB of the logs."""
    page = resource.getpagesize() / 2**20
    memory = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for pid in (os.getpid(), *workers(run))]
    files = [path for path in folder.rglob("*") if path.is_file()]
    logs = [path for path in files if path.name == "metrics.jsonl" or path.name.startswith("events.")]
    sizes = [sum(path.stat().st_size for path in group) / 2**20 for group in (files, logs)]
    return memory[0], sum(memory[1:]), len(os.listdir("/proc/self/fd")), len(files), *sizes


def long(agent_steps: int, settings: list[str]) -> None:
    flags = [*TINY, "--dataset_size", str(3 * agent_steps // 10), "--replay_dir_limit", str(3 * agent_steps // 10)]
    config = load_config([*flags, *settings])
    tenth = agent_steps // 10 * config.action_repeat
    config = config.replace(eval_every=tenth, checkpoint_every=max(1, tenth // 2), log_every=max(1, tenth // 20))
    head = "agent steps | steps/s | CPU ms a step | updates/s | episodes | MiB | MiB of envs | open files | files"
    head += " | MiB of folder | of which logs"
    print(f"{config.task}, {config.envs} envs, {runtime.pick_device(config.device)}, {torch.get_num_threads()} threads")
    print(f"| {head} |\n|{'---|' * (head.count('|') + 1)}", flush=True)
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        with quiet():
            run = make_trainer(config, Path(folder))
        stop = process.Interrupt()
        trainer.Interrupt = lambda: contextlib.nullcontext(stop)  # one for all tenths: a signal ends all of them
        with contextlib.closing(run), stop:
            with quiet():
                run.resume()
            for part in range(1, 11):
                # resumed with a larger --steps, in the same process
                run.config = config.replace(steps=part * tenth)
                start, cpu, steps, updates = time.perf_counter(), time.process_time(), run.collector.step, run.updates
                with quiet():
                    dreamer.train(run)
                if stop.requested:
                    sys.exit("stopped")
                took = time.perf_counter() - start
                costs.append((time.process_time() - cpu) / (run.collector.step - steps))
                memory, theirs, fds, files, size, logs = held(run, Path(folder))
                row = [f"{run.collector.step}", f"{(run.collector.step - steps) / took:.0f}", f"{1e3 * costs[-1]:.1f}"]
                row += [f"{(run.updates - updates) / took:.1f}", f"{run.collector.replay.total_episodes}"]
                row += [f"{memory:.0f}", f"{theirs:.0f}", f"{fds}", f"{files}", f"{size:.2f}", f"{logs:.2f}"]
                print(f"| {' | '.join(row)} |", flush=True)
    slower = sum(costs[-3:]) / sum(costs[-6:-3]) - 1
    print(f"CPU time per step, the last three tenths relative to the three before: {slower:+.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="about how long each row is measured")
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS, help="which of the two to measure")
    parser.add_argument("--long", type=int, nargs="?", const=40_000, metavar="AGENT_STEPS", help="the long run instead")
    args, settings = parser.parse_known_args()
    if args.long:
        long(args.long, settings)
    else:
        table(settings, args.rows, args.seconds)


if __name__ == "__main__":
    main()
