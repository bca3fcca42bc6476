"""How each kind of target is mixed."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_msda.blending import blend
from lightning_msda.mixed_tensor import MixedTensor
from lightning_msda.mixed_value import guarded
from lightning_msda.mixture import Mixture

__all__ = ["TargetKind", "mix_target"]

TargetKind = Literal["class", "value"]


def mix_target(target: Tensor, mixture: Mixture, kind: TargetKind | None = None) -> Tensor:
    """Return a target as the step gets to see it.

    Args:
        target: Labels of the batch, shape ``(N, ...)``. It is not written to, nor is a view of it
            returned.
        mixture: How the batch was mixed.
        kind: ``"class"``: the losses are mixed; ``"value"``: the labels are; None: integers and booleans
            are classes, floating point is values. Dense labels follow the mask whatever the kind, unless
            it hides without a partner.

    Returns:
        Dense labels, which line up with the mask (integers, or floating point of three dimensions or more),
        follow it like pixels. Values are mixed into
        ``lam * own + (1 - lam) * partner``, a `MixedValue`. Classes become a `MixedTensor`.

    Raises:
        ValueError: If there is not one label for each sample, or if it lines up with a mask, or with inputs
            whose parts moved or have several masks, that it cannot follow.
    """
    n = len(mixture.partners)
    if target.dim() == 0 or len(target) != n:
        raise ValueError(
            f"The inputs have {n} samples, but a target has shape {tuple(target.shape)}. Name targets"
            " with a label for each sample by target_key."
        )
    _refuse_unfollowed(target, mixture)
    dense = target.dim() > 2 or not target.is_floating_point()
    if dense and mixture.fill is None and mixture.aligned_dims(target) is not None:
        followed = mixture.follow(target)
        return followed if mixture.selects else guarded(followed, mixture.sources(target))
    sources = mixture.sources(target)
    if kind == "value" or (kind is None and target.is_floating_point()):
        return guarded(blend(sources, mixture.label_weights), [source.clone() for source in sources])
    # A source of weight 0 has the own label instead: its loss may be infinite, and 0 times that is not 0.
    shares = mixture.weights[:, 1:].reshape(len(target), -1, *[1] * (target.dim() - 1)).unbind(1)
    partners = [torch.where(share == 0, target, s) for share, s in zip(shares, sources[1:], strict=True)]
    worlds = [target.clone(), *partners]
    if mixture.soft is not None:
        worlds.append(mixture.soft)
    return MixedTensor(tuple(worlds), mixture.label_weights)


def _refuse_unfollowed(target: Tensor, mixture: Mixture) -> None:
    """Refuse labels of the positions of inputs whose mask runs over no dimensions that could be named."""
    spatial = mixture.inputs.shape[2:]
    lined_up = target.dim() > 2 and target.shape[-len(spatial) :] == spatial
    if mixture.mask is not None and not mixture.dims and lined_up and spatial.numel() > 1:
        raise ValueError(
            f"A target of shape {tuple(target.shape)} has labels for the positions of inputs"
            f" {tuple(mixture.inputs.shape)}, whose parts were moved or come from several masks: it cannot"
            " follow them. Use PuzzleMix(transport=False), CutMix or FMix; or name others by target_key."
        )
