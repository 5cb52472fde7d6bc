"""An executor whose workers are this process, and how what they come to is compared."""

import pickle
from concurrent.futures import Future

import numpy as np
import torch

from qtrack.executors import Job, WorkerLost, perform
from qtrack.executors.in_process import InProcess


class Stand:
    """Implements Executor in this process: arguments and results are pickled, the first tries may be lost."""

    aside = True

    def __init__(self, slots=2, lost=0):
        self.slots, self.lost = slots, lost
        self.jobs: list[Job] = []

    def at_once(self, threads):
        return self.slots

    def submit(self, job):
        self.jobs.append(job)
        future = Future()
        if len(self.jobs) <= self.lost:
            future.set_exception(WorkerLost("the worker was killed"))
            return future
        try:
            with torch.enable_grad(), torch.random.fork_rng(devices=[]):  # as in a process of its own
                done = perform(pickle.loads(pickle.dumps(job)))
            future.set_result(pickle.loads(pickle.dumps(done)))
        except Exception as error:
            future.set_exception(error)
        return future

    def placed(self, content):
        return InProcess().placed(content)

    def close(self):
        pass


def same(one, other):
    """Two outcomes, in all but what they cost."""
    assert one.recipe == other.recipe
    assert one.digests == other.digests
    assert one.layers == other.layers
    assert one.qparams == other.qparams
    assert np.array_equal(one.validation.scores, other.validation.scores)
    assert one.cost.forward_samples == other.cost.forward_samples
    state, other_state = one.model.state_dict(), other.model.state_dict()
    assert state.keys() == other_state.keys()
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other_state[name]), name


def named(plan, name, **own):
    """A task that claims to be this class of the plan's file."""
    base = type(plan.task)
    return type("Other", (base,), {"__module__": base.__module__, "__qualname__": name, **own})()
