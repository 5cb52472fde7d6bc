"""What an executor costs: overhead of a job, throughput of 64 on one and two workers, memory of the driver.

    python benchmarks/scale.py --markdown

A job executes a recipe on the digits network, one torch thread; an empty job does nothing. The ideal for two
workers is two processes that do the same jobs with no executor at all, started at the same moment. Memory is
the driver's own resident size while 100 and then 10,000 simulated jobs wait, in fresh processes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

from qtrack.executors import Job, finished, open_executor, perform

EXECUTORS = ("in-process", "processes", "ray")
HERE = str(Path(__file__).resolve().parent)
JOBS, EMPTY = 64, 100


def empty(number=0):
    """A job without work."""
    return number


def recipe(number=0):
    """One execution of a recipe: calibrated, converted, evaluated; with no comparison of layers."""
    from networks import digits_task

    from qtrack import Recipe
    from qtrack.engine import execute

    return execute(digits_task(), Recipe(seed=number), thorough=False).value


def jobs(count, function):
    return (Job(f"{function} {n}", f"scale:{function}", {"number": n}) for n in range(count))


def timed(executor, count, function):
    began = time.perf_counter()
    found = list(finished(executor, jobs(count, function)))
    took = time.perf_counter() - began
    assert len(found) == count
    assert not any(one.error for one in found), found[0].error
    return took


def overhead_ms(name, rounds):
    """Of a job that does nothing, on one worker that is warm."""
    with open_executor(name, workers=1) as executor:
        timed(executor, 4, "empty")
        return statistics.median(timed(executor, EMPTY, "empty") / EMPTY * 1000 for _ in range(rounds))


def bare(count, barrier, answer):
    """The same jobs in one process, with nothing between them."""
    perform(Job("warm", "scale:recipe"))
    barrier.wait()
    began = time.perf_counter()
    for job in jobs(count, "recipe"):
        perform(job)
    answer.put(time.perf_counter() - began)


def ideal_s(workers):
    """What the machine gives: as many bare processes at a time, each with its share of the jobs."""
    context = get_context("spawn")
    barrier, answer = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(target=bare, args=(JOBS // workers, barrier, answer)) for _ in range(workers)
    ]
    for process in processes:
        process.start()
    took = max(answer.get() for _ in processes)
    for process in processes:
        process.join()
    return took


def throughput(name, workers, rounds):
    """Jobs per second, and the ideal's, in turns."""
    ours, ideal = [], []
    with open_executor(name, workers=workers) as executor:
        timed(executor, 4 * workers, "recipe")
        for _ in range(rounds):
            ideal.append(ideal_s(workers))
            ours.append(timed(executor, JOBS, "recipe"))
    return JOBS / statistics.median(ours), JOBS / statistics.median(ideal)


def resident_mb(count):
    """Of a fresh driver at its peak, with so many jobs that wait for two simulated workers."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import scale\n"
        "scale.simulate(int(sys.argv[2]))\n"
        "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"  # ru_maxrss is inherited
    )
    done = subprocess.run(
        [sys.executable, "-c", program, HERE, str(count)], check=True, capture_output=True, text=True
    )
    return int(done.stdout) / 1024


def simulate(count):
    """Jobs whose results are of a record's size, and come back at once from two workers."""
    from concurrent.futures import ThreadPoolExecutor

    class Simulated:
        slots = 4

        def __init__(self):
            self.pool = ThreadPoolExecutor(2)

        def submit(self, job):
            return self.pool.submit(lambda: os.urandom(1_000_000))

    held = sum(len(one.result) for one in finished(Simulated(), jobs(count, "empty")))
    assert held == count * 1_000_000


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    os.environ["PYTHONPATH"] = HERE
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print("| executor | empty job, ms | 1 worker, jobs/s (of ideal) | 2 workers, jobs/s (of ideal) |")
    print("|---|---|---|---|")
    for name in EXECUTORS:
        cells = [f"{overhead_ms(name, asked.rounds):.1f}"]
        for workers in (1, 2) if name != "in-process" else (1,):
            ours, ideal = throughput(name, workers, asked.rounds)
            cells.append(f"{ours:.1f} ({100 * ours / ideal:.0f}% of {ideal:.1f})")
        print(f"| {name} | {' | '.join([*cells, '-'][:3])} |", flush=True)
    few, many = (resident_mb(count) for count in (100, 10_000))
    print(f"\ndriver, peak resident: {few:.0f} MB with 100 jobs, {many:.0f} MB with 10,000")


if __name__ == "__main__":
    main()
