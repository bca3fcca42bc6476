"""Modules and losses of other packages, each in a LightningModule as its own documentation writes it.

They are built from a configuration, without a download, and no line of theirs knows of mixing. The packages
are imported where a row needs them, and a row whose package is not installed is skipped.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_msda import MSDA, CutMix, FMix, MixedLossError, Mixture, MixUp, ResizeMix
from tests.contract.oracle import (
    Terms,
    classes,
    classes_by_sample,
    dense,
    joint,
    masked,
    row,
    trains,
    values,
)

N, K, V, T = 4, 3, 11, 5  # samples, classes, words, tokens
SINGLE = 1e-5  # of models that compute a part in single precision, and of lam beside integer inputs
NO_FORM = "has no form by sample"

Formula = Callable[[Mixture, Any], Terms]


class Stranger(NamedTuple):
    """A module of others, its batches, the method, and the formula with one lam and with one for each sample.

    Where `by_sample` is None there is none, and it is refused; where it is False the row does not depend on
    it. A batch is a pair of inputs and labels, or their union where both are dictionaries.
    """

    make: Callable[[], LightningModule]
    batch: Callable[[], tuple[Any, Any]]
    method: Callable[..., MSDA]
    formula: Formula = classes
    by_sample: Formula | bool | None = classes_by_sample
    inputs: Callable[[Mixture, Any], Any] = lambda mix, x: mix.inputs
    layer: str | None = None
    rtol: float = 1e-10
    batches: int = 2

    def train(self, *, per_sample: bool = False) -> LightningModule:
        formula = self.by_sample if per_sample else self.formula
        return trains(
            _copies(self.make(), anew=self.layer is not None),
            [self.batch() for _ in range(self.batches)],
            self.method(per_sample=True) if per_sample else self.method(),
            collate=_joined,
            terms=formula if callable(formula) else classes,
            inputs=self.inputs,
            layer=self.layer,
            rtol=self.rtol,
        )


def _copies(module: LightningModule, *, anew: bool = True) -> Callable[[], LightningModule]:
    """Return a function that copies a module: each time, or at first and then once for all that follows."""
    copies: list[LightningModule] = []

    def make() -> LightningModule:
        if anew or len(copies) < 2:
            copies.append(copy.deepcopy(module))
        copies[-1].zero_grad()
        return copies[-1]

    return make


def _joined(x: Any, y: Any) -> Any:
    return {**x, **y} if isinstance(x, dict) else (x, y)


def rows(strangers: dict[str, Stranger], outcome: str) -> list[Any]:
    """Return the names of those that train with one lam ("one"), with one by sample, or are "refused"."""
    marks: dict[str, tuple[Callable[[Stranger], bool], dict[str, Any]]] = {
        "one": (lambda s: True, {}),
        "by sample": (lambda s: callable(s.by_sample), {"per_sample": True}),
        "refused": (lambda s: s.by_sample is None, {"per_sample": True, "refused": NO_FORM}),
    }
    chosen, kwargs = marks[outcome]
    return [
        pytest.param(name, marks=row("Modules of others", name, **kwargs))
        for name, stranger in strangers.items()
        if chosen(stranger)
    ]


def not_ignored(y: Tensor) -> Tensor:
    return (y != -100).double().sum()


# --- transformers -------------------------------------------------------------------------------------------


class Finetuner(LightningModule):
    """As Lightning's and Hugging Face's tutorials write it: the model computes the loss of `labels=`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.double()

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outputs = self(**batch)
        self.log("train_loss", outputs.loss, prog_bar=True)
        loss: Tensor = outputs.loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-5)


@cache
def hugging(model: str, **options: Any) -> LightningModule:
    """Return a small model of transformers by its name."""
    transformers = pytest.importorskip("transformers")
    family = next(f for f in SIZES if model.startswith(f))
    config = getattr(transformers, f"{family}Config")(**{**SIZES[family], **options})
    torch.manual_seed(0)
    return Finetuner(getattr(transformers, model)(config))


TEXT = {"vocab_size": V, "pad_token_id": 0}
SIZES: dict[str, dict[str, Any]] = {
    "Bert": {
        **TEXT,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": T,
    },
    "DistilBert": {
        **TEXT,
        "dim": 8,
        "n_layers": 1,
        "n_heads": 2,
        "hidden_dim": 16,
        "max_position_embeddings": T,
    },
    "GPT2": {
        "vocab_size": V,
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": T,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "Llama": {
        **TEXT,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": T,
    },
    "T5": {
        **TEXT,
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 16,
        "num_layers": 1,
        "num_heads": 2,
        "decoder_start_token_id": 0,
    },
    "ViT": {
        "image_size": 8,
        "patch_size": 4,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "num_labels": K,
    },
    "Segformer": {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "sr_ratios": [2, 1],
        "hidden_sizes": [4, 8],
        "patch_sizes": [3, 3],
        "strides": [2, 2],
        "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2],
        "decoder_hidden_size": 8,
        "num_labels": K,
    },
}


def text(labels: Callable[[], Tensor]) -> Callable[[], tuple[Any, Any]]:
    """Return batches of token ids; the attention masks are beside the labels, where `united` finds them."""

    def batch() -> tuple[Any, Any]:
        lengths = torch.randint(2, T + 1, (N, 1))
        mask = (torch.arange(T) < lengths).long()
        ids = torch.randint(1, V, (N, T)) * mask
        return {"input_ids": ids}, {"attention_mask": mask, "labels": labels()}

    return batch


def tokens(labels: Callable[[], Tensor]) -> Callable[[], tuple[Any, Any]]:
    """Return batches of token ids with attention masks as inputs."""

    def batch() -> tuple[Any, Any]:
        x, y = text(labels)()
        return {"input_ids": x["input_ids"], "attention_mask": y["attention_mask"]}, {"labels": y["labels"]}

    return batch


def united(formula: Formula) -> Formula:
    """Return a formula of the labels alone beside the union of the attention masks."""

    def terms(mix: Mixture, y: Any) -> Terms:
        union = torch.maximum(y["attention_mask"], y["attention_mask"][mix.partner])
        return [(c, {"attention_mask": union, "labels": labels}) for c, labels in formula(mix, y["labels"])]

    return terms


def both_masked(mix: Mixture, x: Any) -> Any:
    return {**masked(mix, x), "input_ids": mix.inputs}


def at_embedding(layer: str, method: Callable[..., MSDA] = MixUp) -> dict[str, Any]:
    """Return the arguments of text that is mixed at its embedding."""

    def make(**arguments: Any) -> MSDA:
        return method(at=layer, input_key=["input_ids", "attention_mask"], **arguments)

    return {"method": make, "layer": layer}


def cut_tokens(**arguments: Any) -> MSDA:
    return CutMix(dims=[1], input_key=["input_ids", "attention_mask"], **arguments)


def single() -> Tensor:
    return torch.randint(0, K, (N,))


def several() -> Tensor:
    return torch.randint(0, 2, (N, K)).double()


def quantity() -> Tensor:
    return torch.randn(N, dtype=torch.float64)


def quantities() -> Tensor:
    return torch.randn(N, K, dtype=torch.float64)


def by_token() -> Tensor:
    labels = torch.randint(0, K, (N, T))
    return torch.where(torch.rand(N, T) < 0.3, -100, labels)


def words() -> Tensor:
    labels = torch.randint(0, V, (N, T))
    return torch.where(torch.rand(N, T) < 0.3, -100, labels)


def pictures(labels: Callable[[], Tensor], size: int = 8) -> Callable[[], tuple[Any, Any]]:
    return lambda: (
        {"pixel_values": torch.rand(N, 3, size, size, dtype=torch.float64)},
        {"labels": labels()},
    )


def pixels(mix: Mixture, x: Any) -> Any:
    return {"pixel_values": mix.inputs}


def in_dict(formula: Formula) -> Formula:
    """Return a formula of ``{"labels": y}`` for one of labels."""
    return lambda mix, y: [(c, {"labels": labels}) for c, labels in formula(mix, y["labels"])]


def question() -> tuple[Any, Any]:
    positions = {name: torch.randint(0, T, (N,)) for name in ("start_positions", "end_positions")}
    return {"input_ids": torch.randint(1, V, (N, T))}, positions


def choice() -> tuple[Any, Any]:
    ids = {
        "input_ids": torch.randint(1, V, (N, 2, T)),
        "attention_mask": torch.ones(N, 2, T, dtype=torch.long),
    }
    return ids, {"labels": torch.randint(0, 2, (N,))}


BERT = "model.bert.embeddings.word_embeddings"
CLASSIFIER = "BertForSequenceClassification"
WORDS = united(joint(not_ignored))
SHIFTED = united(joint(lambda y: not_ignored(y[:, 1:])))

TRANSFORMERS: dict[str, Stranger] = {
    f"transformers: {CLASSIFIER}, at its embedding": Stranger(
        lambda: hugging(CLASSIFIER, num_labels=K),
        text(single),
        formula=united(classes),
        by_sample=united(classes_by_sample),
        **at_embedding(BERT),
    ),
    f"transformers: {CLASSIFIER}, several labels, at its embedding": Stranger(
        lambda: hugging(CLASSIFIER, num_labels=K, problem_type="multi_label_classification"),
        text(several),
        formula=united(classes),
        by_sample=united(classes_by_sample),
        **at_embedding(BERT),
    ),
    f"transformers: {CLASSIFIER}, regression, at its embedding": Stranger(
        lambda: hugging(CLASSIFIER, num_labels=1),
        text(quantity),
        formula=united(classes),
        by_sample=united(classes_by_sample),
        **at_embedding(BERT),
    ),
    f"transformers: {CLASSIFIER}, several regressions, at its embedding": Stranger(
        lambda: hugging(CLASSIFIER, num_labels=K, problem_type="regression"),
        text(quantities),
        formula=united(classes),
        by_sample=united(classes_by_sample),
        **at_embedding(BERT),
    ),
    f"transformers: {CLASSIFIER}, its tokens cut": Stranger(
        lambda: hugging(CLASSIFIER, num_labels=K), tokens(single), cut_tokens, inputs=both_masked
    ),
    f"transformers: {CLASSIFIER}, several labels, its tokens cut": Stranger(
        lambda: hugging(CLASSIFIER, num_labels=K, problem_type="multi_label_classification"),
        tokens(several),
        cut_tokens,
        values,
        values,
        inputs=both_masked,
    ),
    f"transformers: {CLASSIFIER}, regression, its tokens cut": Stranger(
        lambda: hugging(CLASSIFIER, num_labels=1),
        tokens(quantity),
        cut_tokens,
        values,
        values,
        inputs=both_masked,
    ),
    "transformers: DistilBertForSequenceClassification, at its embeddings": Stranger(
        lambda: hugging("DistilBertForSequenceClassification", num_labels=K),
        text(single),
        formula=united(classes),
        by_sample=united(classes_by_sample),
        **at_embedding("model.distilbert.embeddings"),
    ),
    "transformers: BertForTokenClassification, -100, at its embedding": Stranger(
        lambda: hugging("BertForTokenClassification", num_labels=K),
        text(by_token),
        formula=united(classes),
        by_sample=WORDS,
        **at_embedding(BERT),
    ),
    "transformers: BertForTokenClassification, -100, its tokens cut": Stranger(
        lambda: hugging("BertForTokenClassification", num_labels=K),
        tokens(by_token),
        cut_tokens,
        dense,
        dense,
        inputs=both_masked,
    ),
    "transformers: BertForMaskedLM, at its embedding": Stranger(
        lambda: hugging("BertForMaskedLM"),
        text(words),
        formula=united(classes),
        by_sample=WORDS,
        **at_embedding(BERT),
    ),
    "transformers: BertForMultipleChoice, its tokens cut": Stranger(
        lambda: hugging("BertForMultipleChoice"),
        choice,
        lambda **a: CutMix(dims=[2], input_key=["input_ids", "attention_mask"], target_key="labels", **a),
        inputs=lambda mix, x: {"input_ids": mix.inputs, "attention_mask": x["attention_mask"]},
    ),
    "transformers: BertForQuestionAnswering, at its embedding": Stranger(
        lambda: hugging("BertForQuestionAnswering"),
        question,
        lambda **a: MixUp(at=BERT, target_key=["start_positions", "end_positions"], **a),
        layer=BERT,
    ),
    "transformers: GPT2LMHeadModel, at its embedding": Stranger(
        lambda: hugging("GPT2LMHeadModel"),
        text(words),
        formula=united(classes),
        by_sample=SHIFTED,
        rtol=SINGLE,
        **at_embedding("model.transformer.wte"),
    ),
    "transformers: LlamaForCausalLM, at its embedding": Stranger(
        lambda: hugging("LlamaForCausalLM"),
        text(words),
        formula=united(classes),
        by_sample=SHIFTED,
        rtol=SINGLE,
        **at_embedding("model.model.embed_tokens"),
    ),
    "transformers: LlamaForSequenceClassification, at its embedding": Stranger(
        lambda: hugging("LlamaForSequenceClassification", num_labels=K),
        text(single),
        formula=united(classes),
        by_sample=united(classes_by_sample),
        rtol=SINGLE,
        **at_embedding("model.model.embed_tokens"),
    ),
    "transformers: T5ForConditionalGeneration, at its encoder": Stranger(
        lambda: hugging("T5ForConditionalGeneration"),
        text(words),
        formula=united(classes),
        by_sample=WORDS,
        rtol=SINGLE,
        **at_embedding("model.encoder"),
    ),
    "transformers: ViTForImageClassification": Stranger(
        lambda: hugging("ViTForImageClassification"),
        pictures(single),
        CutMix,
        inputs=pixels,
    ),
    "transformers: ViTForImageClassification, several labels": Stranger(
        lambda: hugging("ViTForImageClassification", problem_type="multi_label_classification"),
        pictures(several),
        MixUp,
        in_dict(values),
        in_dict(values),
        inputs=pixels,
    ),
    "transformers: ViTForImageClassification, at a hidden layer": Stranger(
        lambda: hugging("ViTForImageClassification"),
        pictures(single),
        lambda **a: CutMix(at="model.vit.layers.0", dims=[1], **a),
        layer="model.vit.layers.0",
    ),
    "transformers: SegformerForSemanticSegmentation": Stranger(
        lambda: hugging("SegformerForSemanticSegmentation"),
        pictures(lambda: torch.randint(0, K, (N, 16, 16)), 16),
        FMix,
        in_dict(dense),
        in_dict(dense),
        inputs=pixels,
    ),
}


# --- torchvision --------------------------------------------------------------------------------------------


class Auxiliary(LightningModule):
    """As torchvision's references train models with auxiliary logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.double()
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image, target = batch
        logits, *auxiliary = self.model(image)
        loss: Tensor = self.criterion(logits, target)
        for aux_logits in auxiliary:
            loss = loss + 0.3 * self.criterion(aux_logits, target)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)


class Segmenter(LightningModule):
    """As torchvision's references train models that return a dictionary."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.double()

    def criterion(self, inputs: dict[str, Tensor], target: Tensor) -> Tensor:
        losses = {}
        for name, x in inputs.items():
            losses[name] = F.cross_entropy(x, target, ignore_index=255)
        if len(losses) == 1:
            return losses["out"]
        return losses["out"] + 0.5 * losses["aux"]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image, target = batch
        return self.criterion(self.model(image), target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


@cache
def googlenet() -> LightningModule:
    models = pytest.importorskip("torchvision.models")
    return Auxiliary(models.googlenet(weights=None, init_weights=False, aux_logits=True, num_classes=K))


@cache
def fcn() -> LightningModule:
    models = pytest.importorskip("torchvision.models")
    resnet = models.resnet18(weights=None)
    backbone = models._utils.IntermediateLayerGetter(resnet, {"layer2": "out", "layer1": "aux"})
    heads = [models.segmentation.fcn.FCNHead(channels, K) for channels in (128, 64)]
    return Segmenter(models.segmentation.FCN(backbone, *heads))


def images(labels: Callable[[], Tensor], size: int = 16, n: int = N) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.rand(n, 3, size, size, dtype=torch.float64), labels())


def maps(size: int = 16, ignored: int | None = None) -> Callable[[], Tensor]:
    """Return dense masks of shape ``(N, H, W)``, some pixels of them ignored."""

    def labels() -> Tensor:
        drawn = torch.randint(0, K, (N, size, size))
        return drawn if ignored is None else torch.where(torch.rand(drawn.shape) < 0.2, ignored, drawn)

    return labels


def not_255(y: Tensor) -> Tensor:
    return (y != 255).double().sum()


TORCHVISION: dict[str, Stranger] = {
    "torchvision: googlenet with auxiliary logits": Stranger(
        googlenet, images(single, 32), CutMix, batches=1, by_sample=False
    ),
    "torchvision: fcn with an auxiliary head, masks cut": Stranger(
        fcn, images(maps(ignored=255)), CutMix, dense, dense
    ),
    "torchvision: fcn with an auxiliary head, masks interpolated": Stranger(
        fcn, images(maps(ignored=255)), MixUp, by_sample=joint(not_255)
    ),
}


# --- segmentation_models_pytorch ----------------------------------------------------------------------------


ENCODER = "tu-test_byobnet"


class Pets(LightningModule):
    """The notebook of segmentation_models_pytorch, its loss to be chosen."""

    mean: Tensor
    std: Tensor

    def __init__(self, mode: str, loss: Callable[[Any], nn.Module]) -> None:
        super().__init__()
        smp = pytest.importorskip("segmentation_models_pytorch")
        self.mode = mode
        self.number_of_classes = 1 if mode == "binary" else K
        self.model = smp.create_model(
            "Unet",
            encoder_name=ENCODER,
            encoder_weights=None,
            encoder_depth=3,
            decoder_channels=(8, 4, 4),
            in_channels=3,
            classes=self.number_of_classes,
        )
        params = smp.encoders.get_preprocessing_params(ENCODER)
        self.register_buffer("std", torch.tensor(params["std"]).view(1, 3, 1, 1))
        self.register_buffer("mean", torch.tensor(params["mean"]).view(1, 3, 1, 1))
        self.loss_fn = loss(smp.losses)
        self.get_stats, self.iou_score = smp.metrics.get_stats, smp.metrics.iou_score
        self.training_step_outputs: list[Any] = []

    def forward(self, image: Tensor) -> Tensor:
        mask: Tensor = self.model((image - self.mean) / self.std)
        return mask

    def shared_step(self, batch: Any) -> dict[str, Tensor]:
        image = batch["image"]
        assert image.ndim == 4
        mask = batch["mask"]
        logits_mask = self(image)
        if self.mode == "binary":
            assert mask.ndim == 4
            assert mask.max() <= 1.0 and mask.min() >= 0
            loss = self.loss_fn(logits_mask, mask)
            predicted = (logits_mask.sigmoid() > 0.5).long()
            tp, fp, fn, tn = self.get_stats(predicted, mask.long(), mode="binary")
        else:
            mask = mask.long()
            assert mask.ndim == 3
            loss = self.loss_fn(logits_mask, mask)
            predicted = logits_mask.softmax(dim=1).argmax(dim=1)
            tp, fp, fn, tn = self.get_stats(
                predicted, mask, mode="multiclass", num_classes=self.number_of_classes, ignore_index=255
            )
        return {"loss": loss, "tp": tp, "fp": fp, "fn": fn, "tn": tn}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        train_loss_info = self.shared_step(batch)
        self.training_step_outputs.append(train_loss_info)
        return train_loss_info

    def on_train_epoch_end(self) -> None:
        outputs = self.training_step_outputs
        counts = [torch.cat([output[name] for output in outputs]) for name in ("tp", "fp", "fn", "tn")]
        per_image_iou = self.iou_score(*counts, reduction="micro-imagewise")
        self.log_dict({"train_per_image_iou": per_image_iou}, prog_bar=True)
        self.training_step_outputs.clear()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-4)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=1e-5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def binary_maps() -> Tensor:
    return torch.randint(0, 2, (N, 1, 16, 16)).double()


def dtype_of(name: str) -> torch.dtype:
    return torch.float32 if name.startswith("Lovasz") else torch.float64  # it is written for single precision


def pets(labels: Callable[[], Tensor], dtype: torch.dtype) -> Callable[[], tuple[Any, Any]]:
    def batch() -> tuple[Any, Any]:
        mask = labels()
        image = torch.rand(N, 3, 16, 16, dtype=dtype)
        return {"image": image}, {"mask": mask.to(dtype) if mask.is_floating_point() else mask}

    return batch


def of_masks(formula: Formula) -> Formula:
    return lambda mix, y: [(c, {"mask": mask}) for c, mask in formula(mix, y["mask"])]


class Overlap(nn.Module):
    """A loss of smp's by the overlap with each class, and its formula where the labels are a `_Mixed`.

    Sums over the batch are sums over the mixture: of a pixel that shows class a with the share w, w counts.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        loss: Any = self.loss
        if not isinstance(y, _Mixed):
            value: Tensor = loss(z, y)
            return value
        p = z.softmax(1)
        intersection, predicted, actual = (torch.zeros(K, dtype=p.dtype) for _ in range(3))
        for share, labels in y.sources:
            w = share.view(-1, 1, 1, 1)
            known = labels[:, None] != 255
            hot = F.one_hot(labels * known[:, 0], K).permute(0, 3, 1, 2) * known
            intersection = intersection + (w * p * hot).sum((0, 2, 3))
            predicted = predicted + (w * p * known).sum((0, 2, 3))
            actual = actual + (w * hot).sum((0, 2, 3))
        alpha, beta = {"DiceLoss": (0.5, 0.5), "JaccardLoss": (1.0, 1.0), "TverskyLoss": (0.3, 0.7)}[
            type(loss).__name__
        ]
        union = intersection + alpha * (predicted - intersection) + beta * (actual - intersection)
        score = (intersection + loss.smooth) / (union + loss.smooth)
        each = (-score.log() if loss.log_loss else 1 - score) * (actual > 0)
        each = each if loss.classes is None else each[loss.classes]
        weights = torch.ones_like(each) if loss.class_weights is None else loss.class_weights
        mean: Tensor = (each * weights).sum() / weights.sum()
        return mean


class _Mixed(Tensor):
    sources: list[tuple[Tensor, Tensor]]


def overlapping(name: str, **arguments: Any) -> Callable[[Any], nn.Module]:
    return lambda losses: Overlap(getattr(losses, name)("multiclass", **arguments))


def of_the_mixture(mix: Mixture, y: Tensor) -> Terms:
    labels = y.clone().as_subclass(_Mixed)
    labels.sources = [(mix.lam, y), (1 - mix.lam, y[mix.partner])]
    return [(1.0, labels)]


# A loss, and its formula by sample where masks are interpolated.
SMP: dict[str, tuple[Callable[[Any], nn.Module], Formula | bool | None]] = {
    "DiceLoss": (overlapping("DiceLoss"), of_the_mixture),
    "DiceLoss, ignore_index": (overlapping("DiceLoss", ignore_index=255), of_the_mixture),
    "DiceLoss, class_weights": (
        overlapping("DiceLoss", class_weights=[1.0, 2.0, 3.0], log_loss=True, smooth=1.0),
        of_the_mixture,
    ),
    "JaccardLoss, classes": (overlapping("JaccardLoss", classes=[1, 2]), of_the_mixture),
    "TverskyLoss": (overlapping("TverskyLoss", alpha=0.3, beta=0.7), of_the_mixture),
    "LovaszLoss, ignore_index": (lambda losses: losses.LovaszLoss("multiclass", ignore_index=255), None),
    "LovaszLoss by image": (
        lambda losses: losses.LovaszLoss("multiclass", per_image=True),
        classes_by_sample,
    ),
    "FocalLoss": (lambda losses: losses.FocalLoss("multiclass"), classes_by_sample),
    "FocalLoss, ignore_index": (
        lambda losses: losses.FocalLoss("multiclass", alpha=0.25, ignore_index=255),
        joint(lambda y: (y != 255).sum()),
    ),
    "FocalLoss, reduced_threshold": (
        lambda losses: losses.FocalLoss("multiclass", reduced_threshold=0.5, reduction="sum"),
        classes_by_sample,
    ),
    "FocalLoss, normalized": (lambda losses: losses.FocalLoss("multiclass", normalized=True), False),
    "SoftCrossEntropyLoss": (
        lambda losses: losses.SoftCrossEntropyLoss(smooth_factor=0.1),
        classes_by_sample,
    ),
    "SoftCrossEntropyLoss, ignore_index": (
        lambda losses: losses.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=255),
        classes_by_sample,  # its mean counts every pixel
    ),
}
SMP_BINARY: dict[str, Callable[[Any], nn.Module]] = {
    "DiceLoss, binary": lambda losses: losses.DiceLoss("binary", from_logits=True),
    "JaccardLoss, binary": lambda losses: losses.JaccardLoss("binary"),
    "FocalLoss, binary": lambda losses: losses.FocalLoss("binary"),
    "LovaszLoss, binary": lambda losses: losses.LovaszLoss("binary"),
    "SoftBCEWithLogitsLoss": lambda losses: losses.SoftBCEWithLogitsLoss(smooth_factor=0.1),
}


@cache
def unet(name: str) -> LightningModule:
    torch.manual_seed(0)
    module = Pets("binary", SMP_BINARY[name]) if name in SMP_BINARY else Pets("multiclass", SMP[name][0])
    return module.to(dtype_of(name))


def segmented(
    name: str, method: Callable[..., MSDA], formula: Formula, by_sample: Formula | bool | None
) -> Stranger:
    labels = binary_maps if name in SMP_BINARY else maps(ignored=255 if "ignore" in name else None)
    return Stranger(
        lambda: unet(name),
        pets(labels, dtype_of(name)),
        lambda **arguments: method(target_key="mask", **arguments),
        of_masks(formula),
        of_masks(by_sample) if callable(by_sample) else by_sample,
        inputs=lambda mix, x: {"image": mix.inputs},
        rtol=1e-10 if dtype_of(name) == torch.float64 else SINGLE,
    )


CUT = [
    "DiceLoss",
    "DiceLoss, ignore_index",
    "FocalLoss, ignore_index",
    "SoftCrossEntropyLoss, ignore_index",
    "LovaszLoss, ignore_index",
    "JaccardLoss, binary",
]
SEGMENTATION: dict[str, Stranger] = {
    **{f"smp: {name}, masks cut": segmented(name, CutMix, dense, dense) for name in CUT},
    "smp: DiceLoss, masks cut by FMix": segmented("DiceLoss", FMix, dense, dense),
    **{
        f"smp: {name}, masks interpolated": segmented(name, MixUp, classes, by_sample)
        for name, (_, by_sample) in SMP.items()
    },
    **{f"smp: {name}, masks interpolated": segmented(name, MixUp, values, values) for name in SMP_BINARY},
}


# --- timm ---------------------------------------------------------------------------------------------------


class Timm(LightningModule):
    """A model of timm's under a loss of timm's, as its training script calls it."""

    def __init__(self, loss_fn: Callable[[Any], nn.Module]) -> None:
        super().__init__()
        timm = pytest.importorskip("timm")
        self.model = timm.create_model("test_vit", pretrained=False, num_classes=K, img_size=32).double()
        self.loss_fn = loss_fn(pytest.importorskip("timm.loss"))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        input, target = batch
        output = self.model(input)
        loss: Tensor = self.loss_fn(output, target)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def soft() -> Tensor:
    return torch.rand(N, K, dtype=torch.float64).softmax(1)


def splits() -> Tensor:
    return torch.randint(0, K, (N // 2,)).repeat(2)


def multi_hot() -> Tensor:
    return torch.randint(0, 2, (N, K))


def blended_for(make: Callable[[Any], nn.Module], labels: Callable[[], Tensor], **rest: Any) -> Stranger:
    """Return a row whose floating-point labels are mixed themselves."""
    return timm_row(make, labels, formula=values, by_sample=values, **rest)


def timm_row(make: Callable[[Any], nn.Module], labels: Callable[[], Tensor], **rest: Any) -> Stranger:
    return Stranger(lambda: Timm(make), images(labels, 32), **{"method": CutMix, **rest})


def of_classes(**arguments: Any) -> MSDA:
    return FMix(target="class", **arguments)


TIMM: dict[str, Stranger] = {
    "timm: LabelSmoothingCrossEntropy": timm_row(lambda loss: loss.LabelSmoothingCrossEntropy(0.1), single),
    "timm: SoftTargetCrossEntropy": blended_for(lambda loss: loss.SoftTargetCrossEntropy(), soft),
    "timm: SoftTargetCrossEntropy, its losses mixed": timm_row(
        lambda loss: loss.SoftTargetCrossEntropy(), soft, method=of_classes
    ),
    "timm: BinaryCrossEntropy of classes": timm_row(lambda loss: loss.BinaryCrossEntropy(0.1), single),
    "timm: BinaryCrossEntropy of classes, target_threshold": timm_row(
        lambda loss: loss.BinaryCrossEntropy(0.1, target_threshold=0.2, sum_classes=True), single
    ),
    "timm: BinaryCrossEntropy of several labels": timm_row(
        lambda loss: loss.BinaryCrossEntropy(0.1, target_threshold=0.2, smooth_dense=True),
        several,
        method=of_classes,
    ),
    "timm: AsymmetricLossMultiLabel": timm_row(
        lambda loss: loss.AsymmetricLossMultiLabel(), multi_hot, rtol=SINGLE
    ),
    "timm: AsymmetricLossMultiLabel, disable_torch_grad_focal_loss": timm_row(
        lambda loss: loss.AsymmetricLossMultiLabel(disable_torch_grad_focal_loss=True, reduction="mean"),
        multi_hot,
        rtol=SINGLE,
    ),
    "timm: AsymmetricLossSingleLabel": timm_row(lambda loss: loss.AsymmetricLossSingleLabel(), single),
    "timm: JsdCrossEntropy": timm_row(lambda loss: loss.JsdCrossEntropy(num_splits=2), splits, method=MixUp),
    "timm: PolyCrossEntropy": timm_row(
        lambda loss: loss.PolyCrossEntropy(smoothing=0.1), single, rtol=SINGLE
    ),
    "timm: PolyBinaryCrossEntropy": timm_row(
        lambda loss: loss.PolyBinaryCrossEntropy(gamma=2.0, alpha=0.25, reduction="batchmean"),
        multi_hot,
        rtol=SINGLE,
    ),
    "timm: ZlprLoss": timm_row(lambda loss: loss.ZlprLoss(), multi_hot, rtol=SINGLE),
    "timm: TwoWayLoss": timm_row(lambda loss: loss.TwoWayLoss(), multi_hot, rtol=SINGLE, by_sample=None),
    "timm: DistributionBalancedLoss": timm_row(
        lambda loss: loss.DistributionBalancedLoss([10, 5, 2], 20), multi_hot, rtol=SINGLE
    ),
    "timm: BinaryCrossEntropy, at a hidden layer": timm_row(
        lambda loss: loss.BinaryCrossEntropy(0.1),
        single,
        method=lambda **arguments: CutMix(at="model.blocks.0", dims=[1], **arguments),
        layer="model.blocks.0",
    ),
}


# --- margin heads -------------------------------------------------------------------------------------------


class ArcMarginProduct(nn.Module):
    """The head of ronghuaiyang's arcface-pytorch, with the label smoothing that notebooks add."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        s: float = 30.0,
        m: float = 0.5,
        easy_margin: bool = False,
        ls_eps: float = 0.0,
    ) -> None:
        super().__init__()
        self.s = s
        self.ls_eps = ls_eps
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.xavier_uniform_(self.weight)
        self.easy_margin = easy_margin
        self.cos_m = math.cos(m)
        self.sin_m = math.sin(m)
        self.th = math.cos(math.pi - m)
        self.mm = math.sin(math.pi - m) * m

    def forward(self, input: Tensor, label: Tensor) -> Tensor:
        cosine = F.linear(F.normalize(input), F.normalize(self.weight))
        sine = torch.sqrt(1.0 - torch.pow(cosine, 2))
        phi = cosine * self.cos_m - sine * self.sin_m
        if self.easy_margin:
            phi = torch.where(cosine > 0, phi, cosine)
        else:
            phi = torch.where(cosine > self.th, phi, cosine - self.mm)
        one_hot = torch.zeros(cosine.size(), device=input.device)
        one_hot.scatter_(1, label.view(-1, 1).long(), 1)
        if self.ls_eps > 0:
            one_hot = (1 - self.ls_eps) * one_hot + self.ls_eps / self.out_features
        output = (one_hot * phi) + ((1.0 - one_hot) * cosine)
        output *= self.s
        return output


class InsightFace(nn.Module):
    """The margin of insightface, written into the logits in place."""

    def __init__(self, in_features: int, out_features: int, s: float = 8.0, margin: float = 0.5) -> None:
        super().__init__()
        self.s = s
        self.margin = margin
        self.weight = nn.Parameter(torch.normal(0, 0.01, (out_features, in_features)))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        logits = F.linear(F.normalize(embeddings), F.normalize(self.weight)).clamp(-1 + 1e-7, 1 - 1e-7)
        index = torch.where(labels != -1)[0]
        target_logit = logits[index, labels[index].view(-1)]
        with torch.no_grad():
            target_logit.arccos_()
            logits.arccos_()
            final_target_logit = target_logit + self.margin
            logits[index, labels[index].view(-1)] = final_target_logit
            logits.cos_()
        return logits * self.s


class Embedder(LightningModule):
    """A backbone, a head that takes the labels, and cross-entropy."""

    def __init__(self, head: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 8), nn.BatchNorm1d(8))
        self.head = head()
        self.criterion = nn.CrossEntropyLoss()
        self.double()

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        output: Tensor = self.head(self.backbone(images), labels)
        return output

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch["image"], batch["label"]
        outputs = self(images, labels)
        loss: Tensor = self.criterion(outputs, labels)
        self.log("train_loss", loss.detach(), on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class AdaptiveMargins(nn.Module):
    """A margin by class, looked up in numpy, as solutions of the Google Landmark challenges do."""

    def __init__(self, s: float = 30.0) -> None:
        super().__init__()
        self.s = s
        self.margins = torch.linspace(0.1, 0.5, K).numpy()
        self.weight = nn.Parameter(torch.randn(K, 8))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        cosine = F.linear(F.normalize(embeddings), F.normalize(self.weight))
        ms = torch.from_numpy(self.margins[labels.cpu().numpy()]).to(cosine.dtype)
        one_hot = F.one_hot(labels, K)
        phi = cosine * ms.cos()[:, None] - (1 - cosine.square()).sqrt() * ms.sin()[:, None]
        loss = F.cross_entropy(self.s * (one_hot * phi + (1 - one_hot) * cosine), labels, reduction="none")
        return loss.mean()


class AdaptiveEmbedder(Embedder):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.head(self.backbone(batch["image"]), batch["label"])
        return loss


def faces() -> tuple[Any, Any]:
    return {"image": torch.rand(N, 3, 4, 4, dtype=torch.float64)}, {"label": single()}


def face_row(make: Callable[[], LightningModule], **rest: Any) -> Stranger:
    return Stranger(make, faces, **{"method": CutMix, "inputs": lambda mix, x: {"image": mix.inputs}, **rest})


HEADS: dict[str, Stranger] = {
    "ArcFace head": face_row(lambda: Embedder(lambda: ArcMarginProduct(8, K))),
    "ArcFace head, easy margin": face_row(
        lambda: Embedder(lambda: ArcMarginProduct(8, K, easy_margin=True)), method=ResizeMix
    ),
    "ArcFace head, label smoothing": face_row(
        lambda: Embedder(lambda: ArcMarginProduct(8, K, ls_eps=0.1)), method=MixUp
    ),
    "ArcFace head of insightface": face_row(lambda: Embedder(lambda: InsightFace(8, K))),
    "ArcFace head, margins from numpy, criterion=": face_row(
        lambda: AdaptiveEmbedder(AdaptiveMargins),
        method=lambda **arguments: CutMix(criterion="head", **arguments),
        by_sample=None,
    ),
}


# --- all of them --------------------------------------------------------------------------------------------

STRANGERS = {**TRANSFORMERS, **TORCHVISION, **SEGMENTATION, **TIMM, **HEADS}


@pytest.mark.parametrize("name", rows(STRANGERS, "one"))
def test_with_one_lam(name: str) -> None:
    STRANGERS[name].train()


@pytest.mark.parametrize("name", rows(STRANGERS, "by sample"))
def test_with_a_lam_for_each_sample(name: str) -> None:
    STRANGERS[name].train(per_sample=True)


@pytest.mark.parametrize("name", rows(STRANGERS, "refused"))
def test_what_has_no_form_by_sample_is_refused(name: str) -> None:
    with pytest.raises(MixedLossError, match="per_sample=False"):
        STRANGERS[name].train(per_sample=True)


@row("Modules of others", "ArcFace head, margins from numpy", refused="labels leave torch")
def test_margins_from_numpy_without_criterion_are_refused() -> None:
    with pytest.raises(MixedLossError, match="criterion="):
        face_row(lambda: AdaptiveEmbedder(AdaptiveMargins)).train()


# --- torchmetrics -------------------------------------------------------------------------------------------


class Measured(LightningModule):
    """A classifier that measures itself before it computes its loss."""

    def __init__(self, measure: Callable[[Any, Tensor, Tensor], Any]) -> None:
        super().__init__()
        torchmetrics = pytest.importorskip("torchmetrics")
        self.linear = nn.Linear(3 * 4 * 4, K, dtype=torch.float64)
        kinds = ["Accuracy", "Precision", "Recall", "ConfusionMatrix"]
        metrics = [getattr(torchmetrics.classification, f"Multiclass{kind}")(K) for kind in kinds]
        self.train_metrics = torchmetrics.MetricCollection(metrics, prefix="train_")
        self.measure = measure
        self.logits: list[Tensor] = []
        self.computed: dict[str, Tensor] = {}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self.linear(x.flatten(1))
        self.log_dict(self.measure(self.train_metrics, logits, y) or {})
        self.logits.append(logits.detach())
        return F.cross_entropy(logits, y)

    def on_train_epoch_end(self) -> None:
        self.computed = self.train_metrics.compute()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def called(metrics: Any, logits: Tensor, y: Tensor) -> Any:
    return {name: value.double().mean() for name, value in metrics(logits, y).items()}


def updated(metrics: Any, logits: Tensor, y: Tensor) -> None:
    metrics.update(logits.softmax(dim=-1), y)


def updated_one_by_one(metrics: Any, logits: Tensor, y: Tensor) -> None:
    preds = logits.argmax(dim=1)
    for metric in metrics.values(copy_state=False):
        metric.update(preds, y)


def by_function(metrics: Any, logits: Tensor, y: Tensor) -> Any:
    accuracy = pytest.importorskip("torchmetrics.functional").accuracy
    metrics(logits, y)
    return {"train_acc": accuracy(logits, y, task="multiclass", num_classes=K)}


MEASURES: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "torchmetrics: MetricCollection called before the loss": called,
    "torchmetrics: MetricCollection updated before the loss": updated,
    "torchmetrics: metrics updated one by one before the loss": updated_one_by_one,
    "torchmetrics: a function called before the loss": by_function,
}


class Averaged(LightningModule):
    """A classifier whose loss a metric averages."""

    def __init__(self, average: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 4 * 4, K, dtype=torch.float64)
        self.train_loss = pytest.importorskip("torchmetrics").MeanMetric().set_dtype(torch.float64)
        self.average = average
        self.losses: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.linear(x.flatten(1)), y)
        self.average(self.train_loss, loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


AVERAGES: dict[str, Callable[[Any, Tensor], Any]] = {
    "torchmetrics: MeanMetric called with the loss": lambda metric, loss: metric(loss),
    "torchmetrics: MeanMetric updated with the loss": lambda metric, loss: metric.update(loss),
}


def metric_rows(names: Iterable[str]) -> list[Any]:
    return [
        pytest.param(name, per_sample, marks=row("Modules of others", name, per_sample=per_sample))
        for name in names
        for per_sample in (False, True)
    ]


def trained(module: LightningModule, data: list[tuple[Tensor, Tensor]], *, per_sample: bool) -> Any:
    formula = classes_by_sample if per_sample else classes
    return trains(_copies(module), data, CutMix(per_sample=per_sample), terms=formula)


@pytest.mark.parametrize(("name", "per_sample"), metric_rows(MEASURES))
def test_metrics_see_own_labels(name: str, per_sample: bool) -> None:
    data = [images(single, 4)() for _ in range(3)]
    module = trained(Measured(MEASURES[name]), data, per_sample=per_sample)
    wanted = module.train_metrics.clone()
    wanted.reset()
    for logits, (_, y) in zip(module.logits, data, strict=True):
        wanted.update(logits, y)
    for key, value in wanted.compute().items():
        assert torch.equal(module.computed[key], value)


@pytest.mark.parametrize(("name", "per_sample"), metric_rows(AVERAGES))
def test_metrics_see_the_mixtures_loss(name: str, per_sample: bool) -> None:
    data = [images(single, 4)() for _ in range(3)]
    module = trained(Averaged(AVERAGES[name]), data, per_sample=per_sample)
    torch.testing.assert_close(module.train_loss.compute(), torch.stack(module.losses).mean())
