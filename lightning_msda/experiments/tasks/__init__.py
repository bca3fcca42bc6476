"""Lightning modules."""

from lightning_msda.experiments.tasks.classification import Classification
from lightning_msda.experiments.tasks.graphemes import Graphemes
from lightning_msda.experiments.tasks.label_noise import LabelNoise
from lightning_msda.experiments.tasks.multilabel import MultilabelClassification

__all__ = ["Classification", "Graphemes", "LabelNoise", "MultilabelClassification"]
