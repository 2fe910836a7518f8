"""Do a plan's tasks with processes on this machine."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from gradsift.errors import GradsiftError
from gradsift.sharding.plan import Plan, Step
from gradsift.sharding.plans import PlanSpec

# A task whose process dies so often will not be done.
MOST_TRIES = 3

logger = logging.getLogger(__name__)
_built: dict[str, Plan] = {}


def do_task(spec: str, step: str, index: int) -> None:
    """Do one task of a plan, in whatever process."""
    if spec not in _built:
        _built.clear()
        _built[spec] = PlanSpec.from_json(spec).build()
    plan = _built[spec]
    plan.do(plan.step(step), index)


def do_here(plan: Plan) -> None:
    """Do all that is missing, one task after the other."""
    for step in plan.steps:
        for index in plan.missing(step):
            plan.do(step, index)


def do_with_processes(spec: PlanSpec, workers: int, until: str | None = None) -> None:
    """Do all that is missing with so many processes at a time, up to the end of a step.

    A task whose process dies is done again by another one.

    Raises:
        GradsiftError: If a task fails, or its process dies again and again.
    """
    plan = spec.build()
    for step in plan.steps:
        missing = plan.missing(step)
        for tries in range(MOST_TRIES):
            if not missing:
                break
            if tries:
                names = ", ".join(map(step.output, missing[:5]))
                logger.warning(f"a process died at work; done again: {names}")
            missing = _done_with(spec, plan, step, missing, workers)
        if missing:
            raise GradsiftError(
                f"{spec.root}: task {step.output(missing[0])} was begun {MOST_TRIES} times, and "
                "its process died each time: is there memory enough? Fewer workers take less."
            )
        if step.name == until:
            return


def _done_with(
    spec: PlanSpec, plan: Plan, step: Step, indices: Sequence[int], workers: int
) -> list[int]:
    """Do tasks of a step; return those that are still to be done because a process died."""
    context = multiprocessing.get_context("spawn")
    n = min(workers, len(indices))
    with ProcessPoolExecutor(n, context, initializer=_end_with_parent) as processes:
        text = spec.to_json()
        futures = [processes.submit(do_task, text, step.name, index) for index in indices]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failed = [one.exception() for one in done if one.exception() is not None]
        if not failed:
            return []
        if not isinstance(failed[0], BrokenProcessPool):
            processes.shutdown(cancel_futures=True)
            raise failed[0]
    return plan.missing(step)


def _end_with_parent() -> None:
    """End this process when the one that began it is killed: nobody else would tell it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_for_it() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_it, daemon=True).start()


def do_own_share(spec: PlanSpec, share: int, n_shares: int) -> str | None:
    """Do every n-th task, step by step, as far as what they read is there.

    Returns:
        The step that others have to finish; None if nothing is left to do.
    """
    plan = spec.build()
    for step in plan.steps:
        for index in range(share, step.count, n_shares):
            plan.do(step, index)
        if not all(plan.is_done(step, index, verify=False) for index in range(step.count)):
            return step.name
    return None
