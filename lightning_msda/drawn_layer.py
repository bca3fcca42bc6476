"""Methods that mix at another layer for every batch: the input, or one of the module's stages."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Generator, nn
from typing_extensions import Unpack, override

from lightning_msda.callback import MSDA, CommonArgs
from lightning_msda.randomness import Step, sample_integers

__all__ = ["INPUT", "AtDrawnLayer", "find_stages"]

INPUT = "input"  # in a list of layers
_NUMBERED = re.compile(
    r"(?P<stem>(?:.*\.)?(?:layer|stage|block|denseblock)_?|(?:.*\.)?(?:stages|blocks|layers)\.)\d+"
)


class AtDrawnLayer(MSDA):
    """Mixes each batch at one of several layers, each as likely, the same on every process.

    Args:
        layers: Names of the layers whose outputs may be mixed; ``input`` stands for the inputs. Default: the
            input and the outputs of the first two stages that are found (`find_stages`).
        common: What every method takes, see `CommonArgs`, but for ``at``.

    Raises:
        ValueError: If ``layers`` is empty, or ``at`` is given.
    """

    def __init__(self, layers: Sequence[str] | None = None, **common: Unpack[CommonArgs]) -> None:
        super().__init__(**common)
        if self.at is not None:
            raise ValueError(
                f"at={self.at!r} names one layer, and {type(self).__name__} draws one for each batch: name it"
                f" by layers=[{self.at!r}]."
            )
        if layers is not None and (isinstance(layers, str) or len(layers) == 0):
            raise ValueError(
                f"layers={layers!r} must be a list of at least one name, such as ['input', 'layer1']."
            )
        self.layers = layers
        self._places: list[MSDA] = []
        if layers is not None:
            self._settle(layers)

    @override
    def prepare(self, module: nn.Module) -> None:
        if self.layers is None:
            self._settle([INPUT, *find_stages(module)[:2]])

    @override
    def members(self) -> list[MSDA]:
        return [self, *self._places]

    @override
    def choose(self, step: Step, draws: Generator) -> MSDA | None:
        if super().choose(step, draws) is None:
            return None
        return self._places[int(sample_integers(len(self._places), 1, draws))]

    def at_input(self) -> MSDA:
        """Return the method that mixes the inputs; by default this one, as it mixes features."""
        return copy.copy(self)

    def _settle(self, layers: Sequence[str]) -> None:
        """Make a method for each of the layers."""
        self._places = []
        for name in layers:
            place: Any = self.at_input() if name == INPUT else copy.copy(self)
            place.at = None if name == INPUT else name
            place.layers, place._places = [name], []
            self._places.append(place)


def find_stages(module: nn.Module) -> list[str]:
    """Return the names of a network's stages in order, such as ``backbone.layer1`` to ``backbone.layer4``.

    They are the outermost sub-modules that are called alike and numbered: ``layer``, ``stage``, ``block`` or
    ``denseblock`` and a number, or the members of ``stages``, ``blocks`` or ``layers``.

    Args:
        module: The module to look in.

    Raises:
        ValueError: If there are none.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name, _ in module.named_modules():
        if (found := _NUMBERED.fullmatch(name)) is not None:
            groups[found["stem"]].append(name)
    numbered = [names for names in groups.values() if len(names) > 1]
    if not numbered:
        raise ValueError(
            f"{type(module).__name__} has no sub-modules that are numbered as stages (layer1, layer2; or"
            " stages.0, stages.1). Name those whose outputs may be mixed: layers=['input', 'backbone.conv2']."
        )
    return min(numbered, key=lambda names: (names[0].count("."), -len(names)))
