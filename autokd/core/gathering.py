"""Orders that arrive at one core at the same time, trained as cohorts: trials that can share a batch share the live teacher, too.

Each caller of `advance` waits for its own answer. One of them leads: it waits a moment for orders that fit its own, trains them all
and hands out the answers. So a cohort forms wherever several lanes use one core, in threads, without anybody planning it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from threading import Condition
from typing import Protocol

from autokd.errors import CheckpointError, TrialFailure
from autokd.orders import Order, Report

PATIENCE = 0.3  # seconds a leader waits for others; orders of one search come some 30 ms apart
FIRST_PATIENCE = 10.0  # seconds the first one waits: the processes that bring the first orders are still starting
Answer = Report | TrialFailure | CheckpointError


class Together(Protocol):
    """A core that can train several trials in step."""

    def advance_together(self, orders: Sequence[Order]) -> Sequence[Answer]: ...

    def close(self) -> None: ...


class Gathering:
    """Wraps a core: cohorts of up to `most` orders, up to `lanes` cohorts at a time; other callers wait for their turn."""

    def __init__(
        self,
        core: Together,
        most: int,
        lanes: int = 1,
        patience: float = PATIENCE,
        first_patience: float | None = None,
    ) -> None:
        self.core, self.most, self.lanes = core, most, lanes
        self._later, self._patience = patience, patience if first_patience is None else first_patience
        self._changed = Condition()
        self._waiting: list[Order] = []
        self._answers: dict[str, Answer | BaseException] = {}
        self._leading = self._training = 0  # cohorts, orders

    def advance(self, order: Order) -> Report:
        """As TrainingCore.advance. Raises TrialFailure, CheckpointError, or whatever ended the whole cohort."""
        with self._changed:
            self._waiting.append(order)
            self._changed.notify_all()
            try:
                while order.trial not in self._answers:
                    if self._leading < self.lanes and self._waiting and self._waiting[0] is order:
                        self._lead(order)
                    else:
                        self._changed.wait()
                answer = self._answers.pop(order.trial)
            except BaseException:  # this thread was interrupted: nobody may wait for it
                self._waiting = [each for each in self._waiting if each is not order]
                self._changed.notify_all()
                raise
        if isinstance(answer, Report):
            return answer
        raise answer

    def close(self) -> None:
        self.core.close()

    def _lead(self, order: Order) -> None:
        """Gather, train, answer. The condition is held on entry and on return, and given up while training."""
        self._leading += 1
        try:
            cohort = self._gather(order)
            self._changed.notify_all()  # whoever did not fit may lead the next one, if there is a lane for it
            answers = self._trained(cohort)
            self._answers |= {each.trial: answer for each, answer in zip(cohort, answers, strict=True)}
        finally:
            self._leading -= 1
            self._changed.notify_all()

    def _trained(self, cohort: list[Order]) -> Sequence[Answer | BaseException]:
        """Their answers, in their order. The condition is given up meanwhile."""
        self._training += len(cohort)
        self._changed.release()
        try:
            answers = self.core.advance_together(cohort)
            if len(answers) != len(cohort):
                raise RuntimeError(f"{len(cohort)} orders were answered by {len(answers)} reports")
            return answers
        except BaseException as error:  # every caller must hear of it, or it would wait forever
            return [error] * len(cohort)
        finally:
            self._changed.acquire()
            self._training -= len(cohort)

    def _gather(self, order: Order) -> list[Order]:
        """The order and those that fit it, as they come in within the patience."""
        latest = time.monotonic() + self._patience
        while (left := latest - time.monotonic()) > 0 and len(self._fitting(order)) < self.most and self._more_may_come:
            self._changed.wait(left)
        self._patience = self._later
        cohort = self._fitting(order)[: self.most]
        self._waiting = [each for each in self._waiting if each not in cohort]
        return cohort

    @property
    def _more_may_come(self) -> bool:
        """Unless every place is taken: by orders that wait, and by those that are being trained."""
        return len(self._waiting) + self._training < self.most * self.lanes

    def _fitting(self, order: Order) -> list[Order]:
        return [each for each in self._waiting if step_of(each) == step_of(order)]


def step_of(order: Order) -> tuple[object, ...]:
    """What trials must agree in to be fed the same batches: seed, teacher, views, batch size, where they stand and where they go."""
    recipe = order.recipe
    weights = {name for name in type(recipe.augment).model_fields if name.startswith("ccd")}  # of rows: a trial's own
    views = recipe.augment.model_dump(exclude=weights)
    return order.seed, recipe.stage0, views, recipe.optim.batch, order.start, order.to, order.total
