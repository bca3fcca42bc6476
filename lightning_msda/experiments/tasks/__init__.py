"""Lightning modules."""

from lightning_msda.experiments.tasks.classification import Classification

__all__ = ["Classification"]
