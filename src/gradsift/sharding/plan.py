"""A plan: steps of tasks, each of which reads outputs of earlier steps and writes one of its own.

A task is done if its output is whole and was made from the inputs that are there now. So running a
plan again does what is missing, damaged or out of date, whoever did the rest, in whatever order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from gradsift.errors import GradsiftError
from gradsift.sharding.places import Place

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """Tasks that do the same, each with a number of its own.

    Attributes:
        name: Of the step; its outputs are called NAME-00000 and so on.
        count: Tasks.
        needs: Steps whose outputs it reads, all of them; or with "=" before the name only the one
            of its own number.
        run: Writes the output of one task.
        made_from: What else the output of a task depends on, by its number: settings, and digests
            of what is no output. What was made from something else is made anew.
        where: Folder of its outputs, within the plan's.
        threads: What a task computes with. How sums are cut into threads shows in their last bits:
            with one, outputs are the same wherever it is done. None for as many as there are.
    """

    name: str
    count: int
    needs: tuple[str, ...]
    run: Callable[[Task], None]
    made_from: Callable[[int], Mapping[str, str]] = lambda index: {}
    where: str = ""
    threads: int | None = 1

    def output(self, index: int) -> str:
        """Return what the output of a task is called."""
        name = f"{self.name}-{index:05d}"
        return f"{self.where}/{name}" if self.where else name


@dataclass(frozen=True)
class Task:
    """One task at work: where it writes, and what it may read.

    Attributes:
        plan: What it is part of.
        step: Its step.
        index: Its number in the step.
        folder: Where it writes.
    """

    plan: Plan
    step: Step
    index: int
    folder: Path

    def inputs(self, step: str) -> list[Output]:
        """Return all outputs of an earlier step, in the order of their numbers."""
        return [self.input(step, index) for index in range(self.plan.step(step).count)]

    def input(self, step: str, index: int | None = None) -> Output:
        """Return an output of an earlier step; None for the one of this task's own number."""
        index = self.index if index is None else index
        assert any(need.lstrip("=") == step for need in self.step.needs), (self.step.name, step)
        return Output(self.plan.place.folder(self.plan.step(step).output(index)))

    def write(self, **arrays: np.ndarray) -> None:
        """Write arrays, each to a file of its name."""
        for name, array in arrays.items():
            np.save(self.folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)

    def create(self, name: str, shape: tuple[int, ...], dtype: object) -> np.ndarray:
        """Return an array on the disk, to be filled."""
        return open_memmap(self.folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)


@dataclass(frozen=True)
class Output:
    """What a task wrote."""

    folder: Path

    def __getitem__(self, name: str) -> np.ndarray:
        """Return an array, which stays on the disk."""
        array = np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return np.asarray(array)


@dataclass(frozen=True)
class Plan:
    """Steps in an order in which they can be done, and where their outputs lie.

    Attributes:
        place: Where outputs lie.
        steps: In an order in which they can be done.
    """

    place: Place
    steps: list[Step]

    def step(self, name: str) -> Step:
        """Return a step by name."""
        return next(step for step in self.steps if step.name == name)

    def inputs_of(self, step: Step, index: int) -> dict[str, str] | None:
        """Return the digests of what a task reads, None where something is not there."""
        found = {f"from: {key}": value for key, value in step.made_from(index).items()}
        for need in step.needs:
            name = need.lstrip("=")
            needed = self.step(name)
            for number in [index] if need.startswith("=") else range(needed.count):
                digest = self.place.digest(needed.output(number))
                if digest is None:
                    return None
                found[needed.output(number)] = digest
        return found

    def is_done(self, step: Step, index: int, *, verify: bool = True) -> bool:
        """Say whether a task's output is whole and made from what is there now.

        Without `verify` its files are not compared with their digests: whoever reads them does.
        """
        name = step.output(index)
        if self.place.digest(name) is None:
            return False
        inputs = self.inputs_of(step, index)
        try:
            if self.place.inputs(name) != inputs:
                return False
            if verify:
                self.place.folder(name)
        except GradsiftError as error:
            logger.warning(f"{error} It is made anew")
            return False
        return True

    def missing(self, step: Step) -> list[int]:
        """Return the numbers of the tasks of a step that are to be done."""
        return [index for index in range(step.count) if not self.is_done(step, index)]

    def do(self, step: Step, index: int) -> None:
        """Do one task, unless it is done.

        Raises:
            GradsiftError: If what it reads is not there yet.
        """
        if self.is_done(step, index):
            return
        name, inputs = step.output(index), self.inputs_of(step, index)
        if inputs is None:
            raise GradsiftError(
                f"{self.place.root}: task {name} cannot begin: {', '.join(step.needs)} is missing; "
                "these steps come first."
            )
        with self.place.writing(name, inputs) as folder, _limited(step.threads):
            step.run(Task(self, step, index, folder))


def _limited(threads: int | None) -> AbstractContextManager[object]:
    if threads is None:
        return nullcontext()
    import faiss
    from threadpoolctl import threadpool_limits

    faiss.omp_set_num_threads(threads)
    return threadpool_limits(threads)
