"""Where the teacher's outputs of an epoch come from: the tape, recorded by whoever needs it first, or the live network.

A segment of the tape is one view of one epoch of all training samples. Its name holds all that decides its content: teacher
(weights, structure, eval mode), data, view policy and its version, seed, precision, device and torch version. What is found under
that name is trusted after its checksum, and a few of its rows against the live teacher, agree.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autokd.augment.jda import CHAINS
from autokd.augment.views import VERSION, Made, augmented_views, make_view
from autokd.core.data import Rows, to_float
from autokd.core.fingerprint import fingerprint
from autokd.core.live import BLOCK, Live, LiveTeacher, agree
from autokd.core.payload import TapePlan
from autokd.core.replay import Replay, to_record
from autokd.core.tape_file import Field, Segment
from autokd.core.tape_store import FORMAT, Place, Tape
from autokd.protocols import Shapes, TeacherSignal
from autokd.recipe import AugmentSpec

REPEATED = 64  # rows that are run twice before anything is recorded
CHECKED = 4  # rows of a segment that are compared with the live teacher before it is trusted
PATIENCE = 300.0  # seconds to wait for another process in all; one that was stopped holds its claim for ever
WAIT = 5.0  # seconds between looks at a segment that another lane records
KEPT_ON_GPU = 2 << 30  # bytes of segments
STILL = ("none", "turned")  # policies whose views do not change from epoch to epoch
ROWS_SHARE = 8  # augmented rows are recorded while this many more such segments fit

log = logging.getLogger("autokd.tape")


class Teaching:
    """The teacher of one device. `epoch` gives the signal of an epoch; `notes` collects, once each, why something is live."""

    def __init__(self, live: LiveTeacher, rows: Rows, plan: TapePlan | None) -> None:
        self.live, self.rows, self.plan = live, rows, plan
        self.notes: list[str] = []
        self._own: set[Place] = set()  # recorded or checked by this process
        self._stuck: set[Place] = set()  # others have been recording these for too long
        self._described: dict[str, dict[str, Any]] = {}  # source -> what it is
        self._on_gpu: dict[Place, Mapping[str, Tensor]] = {}
        self._moving = Lock()
        self._tape = None if plan is None else self._opened(plan)

    @property
    def shapes(self) -> Shapes:
        return self.live.shapes

    def has_on_tape(self, needs: frozenset[str]) -> bool:
        """Whether what is recorded would do; if not, and there is a tape, a note says what is missing."""
        if self._tape is None or self.plan is None:
            return False
        missing = sorted(needs - self.plan.payload)
        if missing:
            self._note(f"{' and '.join(missing)} of the teacher are not on the tape: trials that read them run it live")
        return not missing

    def epoch(self, needs: frozenset[str], augment: AugmentSpec, seed: int, epoch: int, until: int) -> TeacherSignal:
        """The signal of an epoch, which is recorded first if it is missing. `until`: epochs this trial is sure to train."""
        if self._tape is None or not self.has_on_tape(needs):
            return Live(self.live, needs)
        views: dict[int, Mapping[str, Tensor]] = {}
        for view in range(1 + augmented_views(augment)):
            segment = self._segment(self._tape, augment, seed, view, epoch, until)
            self._take_notes(self._tape)
            if segment is None:
                return Live(self.live, needs)
            views[view] = self._on_device(self._place(augment, seed, view, epoch), segment)
        return Replay(views, needs, self.live.setting.device)

    def close(self) -> None:
        self.live.close()

    def _opened(self, plan: TapePlan) -> Tape | None:
        """The tape, unless what this teacher says of these data is not the same every time."""
        if not getattr(self.rows.data, "deterministic", True):
            self._note("the data set gives other rows each time it is read: the teacher is run live in every trial")
            return None
        rows = to_float(self._raw(self._samples(REPEATED)).to(self.live.setting.device))
        if not self.live.repeats_itself(rows):
            why = "dropout outside of nn.Dropout, or batch statistics?"
            self._note(f"the teacher gives other outputs for the same rows ({why}): it is run live in every trial")
            return None
        return Tape(Path(plan.folder), plan.limit, self._described)

    # ---- segments

    def _segment(
        self, tape: Tape, augment: AugmentSpec, seed: int, view: int, epoch: int, until: int
    ) -> Segment | None:
        """The segment, found or recorded; None if it cannot be kept. While another lane records it, later ones are recorded."""
        needs = frozenset(self._fields)
        place = self._place(augment, seed, view, epoch)
        patience = WAIT if place in self._stuck else PATIENCE
        waited_since = time.monotonic()
        while time.monotonic() - waited_since < patience:
            found = self._trusted(tape, tape.find(place, needs), place, augment, seed)
            if found is not None:
                return found
            with tape.claim(place) as mine:
                if mine:
                    found = self._trusted(tape, tape.find(place, needs), place, augment, seed)
                    return found or self._record(tape, place, augment, seed)
            if tape.closed:
                return None
            if not self._record_ahead(tape, augment, seed, view, epoch, until):
                tape.wait(place, needs, WAIT)
        self._stuck.add(place)
        self._note(
            "another process has been recording a segment for too long (is it stopped?): the teacher is run live"
        )
        return None

    def _record_ahead(self, tape: Tape, augment: AugmentSpec, seed: int, view: int, epoch: int, until: int) -> bool:
        """Record the next segment this trial will need that nobody has or records. False if there is none."""
        needs = frozenset(self._fields)
        for later in range(epoch + 1, until):
            place = self._place(augment, seed, view, later)
            if tape.has(place, needs):
                continue
            with tape.claim(place) as mine:
                if mine and not tape.has(place, needs):
                    return self._record(tape, place, augment, seed) is not None
        return False

    def _record(self, tape: Tape, place: Place, augment: AugmentSpec, seed: int) -> Segment | None:
        fields = {name: Field(torch.float16, shape) for name, shape in self._fields.items()}
        dear = place.view > 0 and augment.policy == "jda"  # rotations are made as fast as they are read
        with_rows = dear and self._rows_fit(tape, place.source)
        if with_rows:
            fields["rows"] = Field(torch.uint8, self.rows.data.input_shape)
            fields["fired"] = Field(torch.bool, (len(CHAINS[augment.chain]),))
        blocks = self._blocks(place, augment, seed, with_rows)
        segment = tape.record(place, len(self.rows), fields, self._about(seed), blocks)
        if segment is not None:
            self._own.add(place)
        return segment

    def _blocks(self, place: Place, augment: AugmentSpec, seed: int, with_rows: bool) -> Iterator[dict[str, Tensor]]:
        """The fields of all training samples, in the order of their indices, some rows at a time."""
        device, payload = self.live.setting.device, self.plan.payload if self.plan else frozenset()
        parts = torch.arange(len(self.rows), device=device).split(BLOCK[device.split(":")[0]])
        for index, (x, _) in zip(parts, self.rows.fetch(parts), strict=True):
            made = self._view(x, index, place, augment, seed)
            block = to_record(self.live.outputs(made.x, payload))
            if with_rows and made.fired is not None:
                block["rows"] = (made.x * 255).round().to(torch.uint8).cpu()
                block["fired"] = made.fired.cpu()
            yield block

    def _view(self, x: Tensor, index: Tensor, place: Place, augment: AugmentSpec, seed: int) -> Made:
        data = self.rows.data
        return make_view(x, index, place.view, augment, seed, place.epoch, data.pad, data.flip, data.value_range)

    def _trusted(
        self, tape: Tape, segment: Segment | None, place: Place, augment: AugmentSpec, seed: int
    ) -> Segment | None:
        """The segment, unless some of its rows are not what the live teacher says; then it is thrown away."""
        if segment is None or place in self._own:
            return segment
        index, device = self._samples(CHECKED), self.live.setting.device
        made = self._view(self._raw(index).to(device), index.to(device), place, augment, seed)
        told = to_record(self.live.outputs(made.x))["logits"]
        if agree(told.float(), segment.fields["logits"][index].float()):
            self._own.add(place)
            return segment
        tape.reject(place, "its outputs are not those of the teacher")
        return None

    def _rows_fit(self, tape: Tape, source: str) -> bool:
        """Whether augmented rows are kept, too: whole levels, and few enough not to crowd out the outputs of later epochs."""
        data = self.rows.data
        size = len(self.rows) * math.prod(data.input_shape)
        return data.train.x.dtype == np.uint8 and tape.room(source) > ROWS_SHARE * size

    def _samples(self, count: int) -> Tensor:
        return torch.linspace(0, len(self.rows) - 1, count).long().unique()

    def _raw(self, index: Tensor) -> Tensor:
        return torch.stack([torch.as_tensor(self.rows.data.train.x[int(i)]) for i in index])

    def _on_device(self, place: Place, segment: Segment) -> Mapping[str, Tensor]:
        """Where steps read it: the mapped file on a CPU; on a GPU a copy that all lanes share, of the last few and not too large ones."""
        device = self.live.setting.device
        size = _bytes(segment.fields)
        if device == "cpu" or size > KEPT_ON_GPU:
            return segment.fields
        with self._moving:
            if place not in self._on_gpu:
                while sum(map(_bytes, self._on_gpu.values())) + size > KEPT_ON_GPU:
                    self._on_gpu.pop(next(iter(self._on_gpu)))
                self._on_gpu[place] = {name: field.to(device) for name, field in segment.fields.items()}
            return self._on_gpu[place]

    # ---- what decides a segment's content

    def _place(self, augment: AugmentSpec, seed: int, view: int, epoch: int) -> Place:
        policy = self._policy(augment, view)
        return Place(self._source(seed), policy, view, 0 if policy in STILL else epoch)

    def _policy(self, augment: AugmentSpec, view: int) -> str:
        """The name of a view's policy; one of STILL where the view is the same in every epoch."""
        if view > 0 and augment.policy == "jda":
            return f"jda-{augment.chain}-p{augment.p!r}-m{augment.magnitude!r}"
        data = self.rows.data
        moves = augment.policy != "none" and len(data.input_shape) == 3 and (data.pad > 0 or data.flip)
        if view > 0:
            return f"turned-{augment.crops}" if moves else "turned"
        return "base" if moves else "none"

    def _source(self, seed: int) -> str:
        about = self._about(seed)
        source = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        data, label = self.rows.data, self.plan.label if self.plan else ""
        self._described[source] = {"teacher": label, "data": data.name, "seed": seed, "key": about}
        return source

    def _about(self, seed: int) -> dict[str, Any]:
        data, setting = self.rows.data, self.live.setting
        return {
            "format": FORMAT,
            "views": VERSION,
            "teacher": self._weights,
            "data": data.fingerprint,
            "pad": data.pad,
            "flip": data.flip,
            "range": list(data.value_range),
            "seed": seed,
            "precision": setting.teacher_precision,
            "device": setting.device.split(":")[0],
            "torch": torch.__version__.partition("+")[0],
        }

    @cached_property
    def _weights(self) -> str:
        return fingerprint(self.live.module)

    @cached_property
    def _fields(self) -> dict[str, tuple[int, ...]]:
        """Name in a segment -> shape of one row, as the teacher puts it out."""
        payload = self.plan.payload if self.plan else frozenset[str]()
        seen = to_record(self.live.outputs(to_float(self._raw(self._samples(2)).to(self.live.setting.device)), payload))
        return {name: tuple(each.shape[1:]) for name, each in seen.items()}

    # ---- notes

    def _take_notes(self, tape: Tape) -> None:
        for text in [*tape.notes, tape.closed]:
            if text:
                self._note(text)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            log.info(text)


def _bytes(fields: Mapping[str, Tensor]) -> int:
    return sum(field.nbytes for field in fields.values())
