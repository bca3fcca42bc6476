"""Lightning modules."""

from lightning_msda.reference.tasks.classification import Classification

__all__ = ["Classification"]
