"""Tensor operations that know no method by name.

Shapes are written with these letters: N samples, C channels, H height, W width, L length, T tokens, E
embedding, K classes, k sources of a mix, R draws (1 for the batch or N, one for each sample), d mixed
dimensions. *Spatial* sizes are those of the mixed dimensions, in order. Draws are made on the host and
arrive as CPU tensors; what is done to a batch happens on its device, without a look at its values.
"""

from lightning_msda.ops.layout import along, mixed_dims, to_device, weight_dtype
from lightning_msda.ops.masks import (
    box_mask,
    box_share,
    box_sides,
    boxes_around,
    center_boxes,
    fitted_boxes,
    top_mask,
)
from lightning_msda.ops.mixing import (
    boxed,
    check_interpolable,
    interpolate,
    paste_box,
    paste_resized,
    resized_source,
    select,
    take,
    take_source,
)
from lightning_msda.ops.saliency import salient_peaks, spectral_residual
from lightning_msda.ops.spectrum import low_frequency_images

__all__ = [
    "along",
    "box_mask",
    "box_share",
    "box_sides",
    "boxed",
    "boxes_around",
    "center_boxes",
    "check_interpolable",
    "fitted_boxes",
    "interpolate",
    "low_frequency_images",
    "mixed_dims",
    "paste_box",
    "paste_resized",
    "resized_source",
    "salient_peaks",
    "select",
    "spectral_residual",
    "take",
    "take_source",
    "to_device",
    "top_mask",
    "weight_dtype",
]
