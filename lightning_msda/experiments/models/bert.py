"""BERT of transformers (Devlin et al., NAACL 2019, arXiv:1810.04805)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from typing_extensions import override

__all__ = ["BERT"]


class BERT(nn.Module):
    """BERT-base of transformers with its classification head, for token ids ``(N, T)``, 0 for padding.

    As in FMix (arXiv:2002.12047, section V.D) the tokens themselves may be mixed, by masks over the input's
    ``dims=[1]``. What interpolates is mixed at ``backbone.bert.embeddings.word_embeddings``.

    Args:
        num_classes: Number of classes.
        pretrained: Name or folder of trained weights, such as ``bert-base-cased``; the tokens, layers, heads
            and width are theirs. Default: untrained.
        tokens: Number of tokens that are known.
        layers: Number of layers.
        heads: Number of attention heads of a layer.
        width: Size of the hidden states; that of the layers between them is four times it.

    Raises:
        ModuleNotFoundError: If transformers is not installed.
    """

    def __init__(
        self,
        num_classes: int = 2,
        pretrained: str | None = None,
        tokens: int = 30522,
        layers: int = 12,
        heads: int = 12,
        width: int = 768,
    ) -> None:
        super().__init__()
        try:
            from transformers import AutoModelForSequenceClassification, BertConfig
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "BERT is transformers' network: pip install 'lightning-msda[experiments]'."
            ) from error
        make_config: Any = BertConfig
        model: Any = AutoModelForSequenceClassification
        if pretrained is not None:
            self.backbone = model.from_pretrained(pretrained, num_labels=num_classes)
        else:
            config = make_config(
                vocab_size=tokens,
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=4 * width,
                num_labels=num_classes,
            )
            self.backbone = model.from_config(config)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.backbone(input_ids=tokens, attention_mask=(tokens != 0).long()).logits
        return logits
