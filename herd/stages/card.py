"""Card: a model card and a data card of a finished run, from its files alone, every figure with its file and key."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from herd.config import settings
from herd.log import say
from herd.run import atomic_write
from herd.safety.card import Energy, data_card, model_card, rendered

_MODEL = (
    "Written by `herd card` from run files. Each figure stands in the file and under the key beside it. What is not in "
    "these files is not in this card: what the model is good for, and what it must not be used for, is for its makers "
    "to add. No figure here says that it is safe."
)
_DATA = (
    "Written by `herd card` from run files. Each figure stands in the file and under the key beside it. Rights in the "
    "texts, consent, and who is missing in them are in no run file: add what you know."
)


@settings
class CardSettings:
    """Whose cards, and by what energy is estimated."""

    path: Path
    """Finished run folder; the run folders within it belong to it."""
    out: Path | None = None
    """Folder to write; the run's name with `-card` beside it when not given."""
    watts: float | None = None
    """Power of the whole machine in watts; 10 W for each core when not given."""
    grams_per_kwh: float = 480.0
    """Carbon dioxide of the electricity, in grams per kWh."""

    def __post_init__(self) -> None:
        if (self.watts is not None and self.watts <= 0) or self.grams_per_kwh < 0:
            raise ValueError("watts must be above 0, grams_per_kwh 0 or more")


def run(settings: CardSettings) -> Path:
    """Write `MODEL_CARD.md`, `DATA_CARD.md` and both as `card.json`.

    Raises:
        CheckpointError: it is no run folder, or it is not finished.
    """
    name = settings.path.resolve().name
    out = settings.out or settings.path.parent / f"{name}-card"
    model = model_card(settings.path, Energy(settings.watts, grams_per_kwh=settings.grams_per_kwh))
    data = data_card(settings.path)
    atomic_write(out / "MODEL_CARD.md", rendered(f"Model card: {name}", model, _MODEL))
    atomic_write(out / "DATA_CARD.md", rendered(f"Data card: {name}", data, _DATA))
    both = {"model": [asdict(part) for part in model], "data": [asdict(part) for part in data]}
    atomic_write(out / "card.json", json.dumps(both, indent=1, ensure_ascii=False) + "\n")
    count = sum(len(part.facts) for part in (*model, *data))
    say(f"{out}: MODEL_CARD.md and DATA_CARD.md, {count:,} figures, each with its file and key")
    return out
