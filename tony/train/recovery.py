"""Loss spikes: seen, gone back from, and gone around (PaLM, section 5.1).

PaLM's loss spiked some twenty times, at steps that no batch alone explains. What helped was to start again from a
checkpoint about 100 steps before, and to skip the 200 to 500 batches that came there. Here such a detour is a fact of
the training, kept in detours.json: the batch of a step stays a pure function of (recipe, seed, step, detours).

A loss is high that lies far above the median of the last ones, measured by how much they differ from one to the next:
so a loss that climbs slowly is seen too, and one that falls is not taken for noise.
"""

import itertools
import json
import math
import statistics
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tony.errors import TonyError
from tony.files import write_json

WINDOW = 64  # losses that say what is usual
DEVIATIONS = 8.0  # of the usual spread above the usual loss, for a loss to be high
PATIENCE = 3  # high losses, among twice as many, that are a spike; one alone is a hard batch
LEAST_SPREAD = 0.01  # of the usual loss
MOST_DETOURS = 5  # from one step


class SpikeDetector:
    """Tells the first step of a spike, `PATIENCE` steps after it began."""

    def __init__(self) -> None:
        self._usual: deque[float] = deque(maxlen=WINDOW)
        self._recent: deque[tuple[int, bool]] = deque(maxlen=2 * PATIENCE)

    def observe(self, step: int, loss: float) -> int | None:
        """Take the loss of a step; the step at which a spike began if there is one now."""
        high = len(self._usual) >= WINDOW // 2 and self._is_high(loss)
        self._recent.append((step, high))
        if not high and math.isfinite(loss):
            self._usual.append(loss)
        return self.spiked

    @property
    def spiked(self) -> int | None:
        """Where the spike began that the last losses are."""
        high = [step for step, is_high in self._recent if is_high]
        return high[0] if len(high) >= PATIENCE else None

    def _is_high(self, loss: float) -> bool:
        middle = statistics.median(self._usual)
        steps = statistics.median(abs(later - earlier) for earlier, later in itertools.pairwise(self._usual))
        spread = 1.4826 * steps / math.sqrt(2)  # of noise that differs from step to step
        return not loss <= middle + DEVIATIONS * max(spread, LEAST_SPREAD * abs(middle))


class Detours:
    """Where batches were left out: from step `at` on, every step has the batch `count` further on."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.taken = [(int(at), int(count)) for at, count in json.loads(path.read_text())]
        except FileNotFoundError:
            self.taken = []
        except (ValueError, TypeError) as error:
            raise TonyError(f"{path} is damaged ({error}); remove the training's folder to begin again") from None

    def skipped(self, step: int) -> int:
        """How many batches were left out before the one of a step."""
        return sum(count for at, count in self.taken if at <= step)

    def take(self, at: int, count: int) -> None:
        """Skip `count` batches from step `at` on; TonyError if that was tried too often."""
        if [step for step, _ in self.taken].count(at) >= MOST_DETOURS:
            raise TonyError(
                f"the loss spikes again and again after step {at}, {MOST_DETOURS} detours did not help; lower the "
                "learning rate or clip more"
            )
        self.taken.append((at, count))
        write_json(self.path, [list(detour) for detour in self.taken])


def replayed(rows: Iterable[dict[str, Any]]) -> SpikeDetector:
    """A detector that has seen the logged steps of a training that goes on."""
    detector = SpikeDetector()
    for row in rows:
        if "loss" in row or row.get("skipped"):
            detector.observe(row["step"] - 1, row.get("loss", math.nan))
    return detector
