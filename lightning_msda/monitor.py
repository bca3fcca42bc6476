"""What was mixed, to any Lightning logger."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_msda.blending import blend
from lightning_msda.callback import find_method
from lightning_msda.fields import first_labels
from lightning_msda.mixture import Mixture
from lightning_msda.pictures import Display, draw_grid, mixed_cells

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MixMonitor"]


class MixMonitor(Callback):
    """Logs how batches are mixed: scalars at the trainer's logging interval, and a grid of mixed images.

    Scalars are ``msda/lam`` (the batch's mean weight of the own label) and ``msda/host_ms`` (how long the
    host was mixing, in milliseconds) by step, ``msda/prob_mixed`` and ``msda/share/<method>`` (shares of the
    epoch's batches) by epoch. Where a grid is due, W&B and TensorBoard get the distribution of the epoch's
    lams too, as ``msda/lams``. The grid ``msda/mix`` shows the first mixed batch
    of an epoch, with lam and both labels in the captions: in W&B, TensorBoard or MLflow, and with any other
    logger as a file in the run's folder.

    Of labels that are partly learned (LaMix) it logs the five largest targets, sorted by sample and averaged,
    as ``msda/target/1`` to ``5``; and beside each grid, in W&B and TensorBoard, the distributions of the
    targets, ``msda/target``, and of the learned part, ``msda/learned``.

    Args:
        every_n_epochs: Interval between grids in epochs; 0: none.
        images: How many samples a grid shows, at most.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> callbacks = [MixMonitor(every_n_epochs=5)]  # beside RandomMix(...)
    """

    def __init__(self, every_n_epochs: int = 10, images: int = 8) -> None:
        if every_n_epochs < 0 or images < 1:
            raise ValueError(
                f"every_n_epochs={every_n_epochs} must be a whole number from 0, images={images} one from 1."
            )
        self.every_n_epochs = every_n_epochs
        self.images = images
        self._drawn_in: int | None = None
        self._lams: list[Tensor] = []
        self._counts: Counter[str | None] = Counter()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn_in = None
        if find_method(trainer) is None:
            rank_zero_warn(
                "MixMonitor has nothing to watch: give the Trainer a method too, such as RandomMix()."
            )

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._counts.clear()
        self._lams.clear()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        method = find_method(trainer)
        if method is None:
            return
        mixture = method.last_mix
        self._counts[method.last_method] += 1
        lam = 1.0 if mixture is None else mixture.lam.float().mean()
        values = {"msda/lam": lam, "msda/host_ms": 1000 * method.last_seconds}
        pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
        due = self._is_due(trainer)
        if due and mixture is not None:
            self._lams.append(mixture.lam.detach())
        target = None
        if mixture is not None and mixture.soft is not None:
            target = _soft_target(mixture, mixture.soft, first_labels(batch, method.target_key))
        if target is not None:
            largest = target.topk(min(5, target.size(1)), 1).values.mean(0)
            values = {f"msda/target/{i}": value for i, value in enumerate(largest, 1)}
            pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
        fresh = due and trainer.current_epoch != self._drawn_in
        if fresh and mixture is not None and mixture.inputs.dim() == 4:
            self._drawn_in = trainer.current_epoch
            display = Display.of(trainer.datamodule)  # type: ignore[attr-defined]
            labels = first_labels(batch, method.target_key)
            picture = draw_grid(
                [mixed_cells(mixture, labels, display, self.images)], [str(method.last_method)]
            )
            loggers: list[Logger | None] = [*trainer.loggers] or [None]
            for logger in loggers:
                _log_picture(trainer, logger, picture)
                if target is not None and mixture.soft is not None:
                    _log_distribution(trainer, logger, "msda/target", target)
                    _log_distribution(trainer, logger, "msda/learned", mixture.soft)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (method := find_method(trainer)) is None:
            return
        batches = max(1, self._counts.total())
        pl_module.log("msda/prob_mixed", 1 - self._counts[None] / batches)
        for leaf in method.leaves():
            name = type(leaf).__name__
            pl_module.log(f"msda/share/{name}", self._counts[name] / batches)
        if self._lams:
            for logger in trainer.loggers:
                _log_distribution(trainer, logger, "msda/lams", torch.cat(self._lams))

    def _is_due(self, trainer: Trainer) -> bool:
        """Tell whether this process draws the epoch."""
        due = self.every_n_epochs > 0 and trainer.current_epoch % self.every_n_epochs == 0
        return due and trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]


def _soft_target(mixture: Mixture, learned: Tensor, labels: Any) -> Tensor | None:
    """Return the label of each sample, a part of it learned, shape ``(N, K)``; None without labels."""
    if not isinstance(labels, Tensor):
        return None
    own = labels if labels.is_floating_point() else F.one_hot(labels.long().flatten(), learned.size(1))
    return blend([*mixture.sources(own.to(learned)), learned], mixture.label_weights)


def _log_distribution(trainer: Trainer, logger: Logger | None, name: str, values: Tensor) -> None:
    """Give values to a logger that draws histograms."""
    numbers = values.detach().flatten().float().cpu()
    step = trainer.fit_loop.epoch_loop._batches_that_stepped
    if isinstance(logger, WandbLogger):
        import wandb

        logger.log_metrics({name: wandb.Histogram(numbers.tolist())}, step)  # type: ignore[dict-item]
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_histogram(name, numbers, step)


def _log_picture(trainer: Trainer, logger: Logger | None, picture: Image) -> None:
    """Give a picture to a logger, or put it into the run's folder if it takes none."""
    step = trainer.fit_loop.epoch_loop._batches_that_stepped  # that of the batch's other metrics
    if isinstance(logger, WandbLogger):
        logger.log_image("msda/mix", [picture], step=step)
    elif isinstance(logger, TensorBoardLogger):
        from torchvision.transforms.functional import pil_to_tensor

        logger.experiment.add_image("msda/mix", pil_to_tensor(picture), step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, picture, f"msda/mix-step{step}.png")
    else:
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "msda"
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"mix-epoch{trainer.current_epoch}.png")
