"""Batches that are mixed at a hidden layer, each trained through.

The untouched twin has a hook on its layer that mixes by the formula; its labels are plain.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutput

from lightning_msda import MSDA, CutMix, FMix, MixedLossError, Mixture, MixUp, RandomMix, ResizeMix
from tests.contract import oracle
from tests.contract.oracle import Terms, classes, classes_by_sample, row, trains, unmixed
from tests.training import loader, make_trainer

N, K = 6, 5
Method = Callable[..., MSDA]
Step = Callable[["Model", Tensor, Tensor], Tensor]
Batches = list[tuple[Any, Any]]

METHODS: list[type[MSDA]] = [MixUp, CutMix, FMix, ResizeMix]
CLASSES: dict[bool, Callable[[Mixture, Any], Terms]] = {False: classes, True: classes_by_sample}


works = partial(row, "At a hidden layer")
both = partial(oracle.both, "At a hidden layer")


def conv() -> nn.Module:
    return nn.Conv2d(3, 3, 3, padding=1, dtype=torch.float64)


class Model(LightningModule):
    """Three layers under a step of one's own."""

    def __init__(self, step: Step, body: Callable[[], nn.Module] = conv) -> None:
        super().__init__()
        self.stem = conv()
        self.body = body()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(48, K, dtype=torch.float64))
        self.unused = conv()
        self.step = step

    def hidden(self, x: Tensor) -> Tensor:
        """Return what the body is given."""
        return torch.tanh(self.stem(x))

    def scores(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.tanh(self.body(self.hidden(x))))
        return scores

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(self, *batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def classified(net: Model, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net.scores(x), y)


def images() -> Tensor:
    return torch.rand(N, 3, 4, 4, dtype=torch.float64)


def labels() -> Tensor:
    return torch.randint(0, K, (N,))


def batches(x: Callable[[], Any] = images, y: Callable[[], Any] = labels) -> Batches:
    return [(x(), y()) for _ in range(4)]


def mixed(mix: Mixture, t: Tensor) -> Tensor:
    """Return features as the formula mixes them."""
    if mix.mask is None or mix.source is None:
        plain: Tensor = oracle.mixed(mix, t)
        return plain
    mask = mix.mask.reshape(-1, *[t.size(d) if d in mix.dims else 1 for d in range(1, t.dim())])
    shown = list(t[mix.partner])
    for dim, places in zip(mix.dims, mix.source, strict=True):
        shown = [s.index_select(dim - 1, place) for s, place in zip(shown, places, strict=True)]
    return torch.where(mask, t, torch.stack(shown))


def trains_at(
    layer: str | Mapping[str, str],
    make: Callable[[], LightningModule],
    data: Batches,
    method: MSDA,
    inputs: Callable[[Mixture, Any], Any] = lambda mix, x: x,
    **options: Any,
) -> None:
    """Train a module under a method, beside a twin whose layer mixes by the formula.

    Args:
        layer: Name of the layer at whose output the formula mixes; or names by the method that mixed.
        make: As in `trains`, and so are those that follow.
        data: See there.
        method: See there.
        inputs: The inputs as the step is expected to see them; by default they are left alone.
        **options: See there.
    """

    def made() -> LightningModule:
        module, mix = make(), method.last_mix
        name = layer if isinstance(layer, str) else layer.get(str(method.last_method))
        if mix is not None and name is not None:  # a twin, after a batch that was mixed there

            def hook(module: nn.Module, args: Any, output: Any) -> Any:
                if isinstance(output, Tensor):
                    return mixed(mix, output)
                return (mixed(mix, output[0]), *output[1:])

            module.get_submodule(name).register_forward_hook(hook)
        return module

    trains(made, data, method, inputs=inputs, **options)


@pytest.mark.parametrize(
    ("kind", "per_sample"),
    [
        pytest.param(kind, p, marks=works(kind.__name__, per_sample=p), id=f"{kind.__name__}, {p}")
        for kind in METHODS
        for p in (False, True)
    ],
)
@pytest.mark.parametrize(("at", "dims"), [("body", None), ("head", [1]), ("stem", [3])])
def test_every_method(kind: Method, per_sample: bool, at: str, dims: list[int] | None) -> None:
    over = {} if kind is MixUp else {"dims": dims}
    method = kind(at=at, per_sample=per_sample, **over)
    trains_at(at, lambda: Model(classified), batches(), method, terms=CLASSES[per_sample])


@pytest.mark.parametrize("per_sample", both("RandomMix, its candidates at one layer"))
@pytest.mark.parametrize("order", ["random", "cycle"])
def test_candidates_at_one_layer(per_sample: bool, order: Any) -> None:
    method = RandomMix([kind(at="body", per_sample=per_sample) for kind in METHODS], order=order)
    trains_at("body", lambda: Model(classified), batches(), method, terms=CLASSES[per_sample], max_epochs=3)


@pytest.mark.parametrize("per_sample", both("RandomMix, its candidates at the input and at different layers"))
def test_candidates_at_different_layers(per_sample: bool) -> None:
    at: dict[str, str] = {"CutMix": "stem", "FMix": "body", "ResizeMix": "body"}
    candidates = [kind(at=at.get(kind.__name__), per_sample=per_sample) for kind in METHODS]
    method = RandomMix(candidates, order="cycle")
    trains_at(
        at,
        lambda: Model(classified),
        batches(),
        method,
        lambda mix, x: mixed(mix, x) if method.last_method == "MixUp" else x,
        terms=CLASSES[per_sample],
        max_epochs=3,
    )


def called_twice(net: Model, x: Tensor, y: Tensor) -> Tensor:
    first, again = (net.body(net.hidden(x)) for _ in range(2))
    assert torch.equal(first, again)
    return F.cross_entropy(net.head(first * again.tanh()), y)


def called_for_two_views(net: Model, x: Tensor, y: Tensor) -> Tensor:
    first, second = (net.body(net.hidden(view)).tanh() for view in (x, x.flip(-1)))
    return F.cross_entropy(net.head(first + second), y) + F.mse_loss(first, second)


def recomputed(net: Model, x: Tensor, y: Tensor, reentrant: bool) -> Tensor:
    features = checkpoint(net.body, net.hidden(x), use_reentrant=reentrant)
    return F.cross_entropy(net.head(torch.tanh(features)), y)


def recomputed_with_the_rest(net: Model, x: Tensor, y: Tensor, reentrant: bool) -> Tensor:
    def rest(hidden: Tensor) -> Any:
        return net.head(F.dropout(torch.tanh(net.body(hidden)), 0.2))

    return F.cross_entropy(checkpoint(rest, net.hidden(x), use_reentrant=reentrant), y)


def frozen(net: Model, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        features = net.body(net.hidden(x))
    return F.cross_entropy(net.head(features), y)


def activated_in_place(net: Model, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net.head(F.relu_(net.body(net.hidden(x)))), y)


def labels_read_first(net: Model, x: Tensor, y: Tensor) -> Tensor:
    hot = F.one_hot(y, K)
    return -(hot * F.log_softmax(net.scores(x), 1)).sum(1).mean()


def residual(net: Model, x: Tensor, y: Tensor) -> Tensor:
    hidden = net.hidden(x)
    return F.cross_entropy(net.head(hidden + net.body(hidden)), y)


STEPS: dict[str, Step] = {
    "a layer that is called twice": called_twice,
    "a layer that is called for two views": called_for_two_views,
    "a layer that is recomputed, reentrant": partial(recomputed, reentrant=True),
    "a layer that is recomputed, not reentrant": partial(recomputed, reentrant=False),
    "a layer that is recomputed with all after it, reentrant": partial(
        recomputed_with_the_rest, reentrant=True
    ),
    "a layer that is recomputed with all after it, not reentrant": partial(
        recomputed_with_the_rest, reentrant=False
    ),
    "a layer that is frozen": frozen,
    "a layer before an activation in place": activated_in_place,
    "a layer in a residual branch": residual,
    "labels that are read before the layer runs": labels_read_first,
}


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize(
    ("name", "per_sample"),
    oracle.cells("At a hidden layer", STEPS),
)
def test_layers_in_steps_of_any_kind(kind: Method, name: str, per_sample: bool) -> None:
    method = kind(at="body", per_sample=per_sample)
    trains_at("body", lambda: Model(STEPS[name]), batches(), method, terms=CLASSES[per_sample])


def with_a_loss_before(net: Model, x: Tensor, y: Tensor) -> Tensor:
    hidden = net.hidden(x)
    early = F.cross_entropy(net.head(hidden), y)
    return early + F.cross_entropy(net.head(torch.tanh(net.body(hidden))), y)


@works("a loss that is made before the layer runs")
@pytest.mark.parametrize("kind", METHODS)
def test_a_loss_before_the_layer(kind: Method) -> None:
    trains_at("body", lambda: Model(with_a_loss_before), batches(), kind(at="body"))


@pytest.mark.parametrize("kind", METHODS)
def test_a_loss_before_the_layer_cannot_know_the_lam_of_each_sample(kind: Method) -> None:
    with pytest.raises((MixedLossError, ValueError), match="'body'.*per_sample"):
        trains_at(
            "body",
            lambda: Model(with_a_loss_before),
            batches(),
            kind(at="body", per_sample=True),
            terms=classes_by_sample,
        )


def two_sizes(net: Model, x: Tensor, y: Tensor) -> Tensor:
    large, small = (net.body(net.hidden(view)).mean((2, 3)) for view in (x, x[..., :3, :3]))
    return F.cross_entropy(net.head(torch.tanh(large + small).repeat(1, 16)), y)


@works("a layer that is called for two sizes, under MixUp")
def test_features_of_two_sizes_are_interpolated() -> None:
    trains_at("body", lambda: Model(two_sizes), batches(), MixUp(at="body"))


@pytest.mark.parametrize("kind", [CutMix, FMix, ResizeMix])
def test_a_mask_for_features_of_two_sizes_has_no_one_lam(kind: Method) -> None:
    with pytest.raises(ValueError, match=r"'body'.*\[4, 4\].*\[3, 3\]"):
        make_trainer(kind(at="body")).fit(Model(two_sizes), loader(*samples(), batch_size=N))


def samples() -> tuple[Tensor, Tensor]:
    return torch.rand(3 * N, 3, 4, 4, dtype=torch.float64), torch.randint(0, K, (3 * N,))


def of_rows(net: Model, x: Tensor, y: Tensor) -> Tensor:
    """Run the layer on (T, N, E)."""
    rows = net.hidden(x).permute(2, 0, 1, 3).flatten(2)
    return F.cross_entropy(net.head(net.body(rows).transpose(0, 1)), y)


def of_both_views(net: Model, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net.head(net.body(net.hidden(torch.cat([x, x.flip(-1)])))), torch.cat([y, y]))


@pytest.mark.parametrize(
    ("step", "body", "shape"),
    [
        (of_rows, lambda: nn.Linear(12, 12, dtype=torch.float64), r"\(4, 6, 12\)"),
        (of_both_views, conv, r"\(12, 3, 4, 4\)"),
    ],
    ids=["the batch second", "views concatenated"],
)
def test_features_that_are_not_one_for_each_sample_get_a_sentence(
    step: Step, body: Callable[[], nn.Module], shape: str
) -> None:
    with pytest.raises(ValueError, match=f"'body' returned features of shape {shape} for 6 samples.*by at"):
        make_trainer(MixUp(at="body")).fit(Model(step, body), loader(*samples(), batch_size=N))


class Pair(NamedTuple):
    features: Any
    other: Any


@dataclass
class Record:
    features: Any
    other: Any


class Wrapped(nn.Module):
    """Returns its features beside others that are made of what it was given, and that stay unmixed."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv = conv()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.conv(x), x)


class Output(NamedTuple):
    """What a layer makes of its features and its input, and how the step reads both."""

    wrap: Callable[[Tensor, Tensor], Any]
    read: Callable[[Any], tuple[Tensor, Any]]


OUTPUTS: dict[str, Output] = {
    "a layer that returns a tuple": Output(lambda t, x: (t, x), lambda out: out),
    "a layer that returns a tuple of one": Output(lambda t, x: (t,), lambda out: (out[0], 1)),
    "a layer that returns a tuple, its first tensor second": Output(
        lambda t, x: (None, t, x), lambda out: out[1:]
    ),
    "a layer that returns a tuple with integers": Output(
        lambda t, x: (t, x.argmax(1, keepdim=True)), lambda out: out
    ),
    "a layer that returns a nested tuple": Output(
        lambda t, x: (t, (x, [x])), lambda out: (out[0], out[1][1][0])
    ),
    "a layer that returns a list": Output(lambda t, x: [t, x], tuple),
    "a layer that returns a named tuple": Output(Pair, lambda out: (out.features, out[1])),
    "a layer that returns a dict": Output(
        lambda t, x: {"out": t, "aux": x}, lambda out: (out["out"], out["aux"])
    ),
    "a layer that returns a dataclass": Output(Record, lambda out: (out.features, out.other)),
    "a layer that returns a ModelOutput": Output(
        lambda t, x: BaseModelOutput(last_hidden_state=t, hidden_states=(x,)),
        lambda out: ((out.last_hidden_state + out[0] + out["last_hidden_state"]) / 3, out.hidden_states[0]),
    ),
}


@pytest.mark.parametrize("kind", [MixUp, CutMix, FMix])
@pytest.mark.parametrize("name", [pytest.param(name, marks=works(name)) for name in OUTPUTS])
def test_outputs_of_any_form_have_their_first_tensor_mixed(kind: Method, name: str) -> None:
    wrap, read = OUTPUTS[name]

    def step(net: Model, x: Tensor, y: Tensor) -> Tensor:
        features, other = read(net.body(net.hidden(x)))
        return F.cross_entropy(net.head(torch.tanh(features) + other), y)

    trains_at("body.conv", lambda: Model(step, lambda: Wrapped(wrap)), batches(), kind(at="body"))


@works("a layer whose features are channels_last")
@pytest.mark.parametrize("kind", METHODS)
def test_the_memory_format_of_features_is_kept(kind: Method) -> None:
    def step(net: Model, x: Tensor, y: Tensor) -> Tensor:
        features = net.body(net.hidden(x))
        assert features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()
        return F.cross_entropy(net.head(features), y)

    def body() -> nn.Module:
        return Wrapped(lambda t, x: t.contiguous(memory_format=torch.channels_last))

    trains_at("body.conv", lambda: Model(step, body), batches(), kind(at="body"))


BUILT_IN: dict[str, Callable[[], nn.Module]] = {
    "nn.LSTM": lambda: nn.LSTM(12, 12, batch_first=True, dtype=torch.float64),
    "nn.MultiheadAttention": lambda: nn.MultiheadAttention(12, 2, batch_first=True, dtype=torch.float64),
}


@pytest.mark.parametrize("method", [MixUp(at="body"), FMix(at="body", dims=[1]), CutMix(at="body", dims=[1])])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=works(f"{name}, its first output")) for name in BUILT_IN]
)
def test_layers_of_torch_that_return_tuples(method: MSDA, name: str) -> None:
    def step(net: Model, x: Tensor, y: Tensor) -> Tensor:
        tokens = net.hidden(x).transpose(1, 2).flatten(2)
        features = net.body(*[tokens] * (3 if name == "nn.MultiheadAttention" else 1))[0]
        return F.cross_entropy(net.head(torch.tanh(features)), y)

    trains_at("body", lambda: Model(step, BUILT_IN[name]), batches(), copy.copy(method))


@works("a layer in a container")
def test_a_layer_in_a_container() -> None:
    trains_at(
        "body.1",
        lambda: Model(classified, lambda: nn.Sequential(conv(), conv())),
        batches(),
        MixUp(at="body.1"),
    )


class Tied(Model):
    """Has one layer under two names, as encoders and decoders share their embedding."""

    def __init__(self) -> None:
        super().__init__(classified)
        self.again = self.body


@works("a layer of two names")
@pytest.mark.parametrize("at", ["body", "again"])
def test_a_layer_of_two_names(at: str) -> None:
    trains_at(at, Tied, batches(), MixUp(at=at))


@works("batches that are not mixed in between (prob=0.5)")
@pytest.mark.parametrize("kind", METHODS)
def test_batches_in_between_are_not_mixed(kind: Method) -> None:
    method = kind(at="body", prob=0.5)
    trains_at("body", lambda: Model(classified), batches(), method, max_epochs=3)


@works("inputs alone (target_key=False)")
@pytest.mark.parametrize("kind", METHODS)
def test_features_are_mixed_alone(kind: Method) -> None:
    method = kind(at="body", target_key=False)
    trains_at("body", lambda: Model(classified), batches(), method, terms=unmixed)


class Precision(NamedTuple):
    """How a model and its Trainer come to features of a dtype."""

    model: torch.dtype
    trainer: Any
    rtol: float


PRECISIONS = {
    "float16 features": Precision(torch.float16, "32-true", 1e-2),
    "bfloat16 features (bf16-mixed)": Precision(torch.float32, "bf16-mixed", 1e-2),
    "float32 features": Precision(torch.float32, "32-true", 1e-5),
}


def in_one_pass(mix: Mixture, y: Tensor) -> Terms:
    """Return one term, with the labels of both sources and lam: two passes would round twice."""
    return [(1.0, (y, y[mix.partner], mix.lam[0].float()))]


def cross_entropy_of(scores: Tensor, y: Any) -> Tensor:
    """Return the loss of labels, or the formula of what the twin is given in their place."""
    if not isinstance(y, tuple):
        return F.cross_entropy(scores, y)
    own, partner, lam = y
    return torch.lerp(F.cross_entropy(scores, partner), F.cross_entropy(scores, own), lam)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("name", [pytest.param(name, marks=works(name)) for name in PRECISIONS])
def test_features_of_any_precision(kind: Method, name: str) -> None:
    dtype, precision, rtol = PRECISIONS[name]

    def step(net: Model, x: Tensor, y: Any) -> Tensor:
        return cross_entropy_of(net.scores(x.to(dtype)).float(), y)

    def make() -> LightningModule:
        return Model(step).to(dtype)

    method = kind(at="body")
    trains_at("body", make, batches(), method, terms=in_one_pass, rtol=rtol, precision=precision)


def regressed(net: Model, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(net.scores(x)[:, 0], y.double())


def mapped(net: Model, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net.body(net.hidden(x)), y, ignore_index=-100)


# The losses of all kinds of targets are mixed, because lam is known only when the layer has run.
TARGETS: dict[str, tuple[Step, Callable[[], Tensor]]] = {
    "floating-point targets, whose losses are mixed": (regressed, lambda: torch.rand(N, dtype=torch.float64)),
    "integer quantities, whose losses are mixed": (regressed, labels),
    "soft labels, whose losses are mixed": (
        classified,
        lambda: torch.rand(N, K, dtype=torch.float64).softmax(1),
    ),
    "label maps, whose losses are mixed": (mapped, lambda: torch.randint(0, 3, (N, 4, 4))),
}


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("name", [pytest.param(name, marks=works(name)) for name in TARGETS])
def test_targets_of_any_kind(kind: Method, name: str) -> None:
    step, targets = TARGETS[name]
    trains_at("body", lambda: Model(step), batches(y=targets), kind(at="body"))


class Text(LightningModule):
    """Classifies the mean of the embedded tokens that count, or each token."""

    def __init__(self, each: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4, dtype=torch.float64)
        self.hidden = nn.Linear(4, 8, dtype=torch.float64)
        self.head = nn.Linear(8, K, dtype=torch.float64)
        self.each = each

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hidden = torch.tanh(self.hidden(self.embedding(batch["input_ids"])))
        if self.each:
            return F.cross_entropy(self.head(hidden).transpose(1, 2), batch["labels"])
        share = batch["attention_mask"].to(hidden.dtype) * batch.get("kept", 1) * batch.get("emphasis", 1)
        pooled = (share[..., None] * hidden).sum(1) / (1 + share.sum(1, keepdim=True))
        return F.cross_entropy(self.head(pooled), batch["labels"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def text() -> dict[str, Tensor]:
    """Return rows of tokens of different lengths, and what belongs to each token."""
    counts = torch.arange(8) < torch.randint(3, 9, (N, 1))
    return {
        "input_ids": torch.randint(1, 9, (N, 8)) * counts,
        "attention_mask": counts.long(),
        "kept": torch.rand(N, 8) < 0.9,
        "emphasis": torch.rand(N, 8, dtype=torch.float64) + 0.5,
    }


def beside(mix: Mixture, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what the step sees of inputs that are mixed beside the embedded tokens."""

    def seen(t: Tensor) -> Tensor:
        if mix.mask is None and not t.is_floating_point():
            return torch.maximum(t, t[mix.partner])
        return mixed(mix, t)

    return {name: t if name == "input_ids" else seen(t) for name, t in x.items()}


def of_text(x: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
    return {**x, "labels": y}


AT_EMBEDDING: dict[str, Method] = {
    "MixUp": partial(MixUp, at="embedding"),
    "CutMix": partial(CutMix, at="embedding", dims=[1]),
    "FMix": partial(FMix, at="embedding", dims=[1]),
    "ResizeMix": partial(ResizeMix, at="embedding", dims=[1]),
}
TEXTS = {name: f"text, {name} at the embedding" for name in AT_EMBEDDING}


@pytest.mark.parametrize(
    ("name", "per_sample"),
    [pytest.param(name, p, marks=works(TEXTS[name], per_sample=p)) for name in TEXTS for p in (False, True)],
)
def test_text_is_mixed_at_its_embedding(name: str, per_sample: bool) -> None:
    method = AT_EMBEDDING[name](per_sample=per_sample)
    trains_at("embedding", Text, batches(text), method, collate=of_text, terms=CLASSES[per_sample])


@pytest.mark.parametrize(
    ("name", "per_sample"),
    [
        pytest.param(
            name,
            p,
            marks=works(
                f"{TEXTS[name]}, attention masks by {'their union' if name == 'MixUp' else 'the same mask'}",
                per_sample=p,
            ),
        )
        for name in TEXTS
        for p in (False, True)
    ],
)
@pytest.mark.parametrize(
    "others", [["attention_mask"], ["attention_mask", "kept", "emphasis"]], ids=["mask", "all"]
)
def test_what_belongs_to_tokens_is_mixed_beside_them(name: str, per_sample: bool, others: list[str]) -> None:
    trains_at(
        "embedding",
        Text,
        batches(lambda: {field: t for field, t in text().items() if field in ("input_ids", *others)}),
        AT_EMBEDDING[name](input_key=["input_ids", *others], per_sample=per_sample),
        beside,
        collate=of_text,
        terms=CLASSES[per_sample],
    )


@pytest.mark.parametrize("name", AT_EMBEDDING)
@works("text, labels of tokens, whose losses are mixed")
def test_labels_of_tokens(name: str) -> None:
    def of_tokens() -> Tensor:
        return torch.where(torch.rand(N, 8) < 0.3, -100, torch.randint(0, K, (N, 8)))

    data = batches(text, of_tokens)
    trains_at("embedding", partial(Text, each=True), data, AT_EMBEDDING[name](), collate=of_text)


class Embeds(LightningModule):
    """Compares the mean of its tokens with the embedding of the label, of one table."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4, dtype=torch.float64)
        self.head = nn.Linear(4, 4, dtype=torch.float64)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self.head(self.embedding(x).mean(1)), self.embedding(y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@works("a layer that labels go through too")
def test_labels_that_go_through_the_layer_are_mixed_alike() -> None:
    data = batches(lambda: torch.randint(0, 9, (N, 8)))
    trains_at("embedding", Embeds, data, MixUp(at="embedding"))


class Looks(Model):
    """Looks for hooks that were left on its layers, when all callbacks have seen the batch."""

    def on_train_batch_end(self, *args: Any) -> None:
        assert not any(module._forward_hooks for module in self.modules())
        self.looked = True


@works("after each batch, the layer as it was")
@pytest.mark.parametrize("kind", METHODS)
def test_no_hook_is_left_after_a_batch(kind: Method) -> None:
    net = Looks(classified)
    make_trainer(kind(at="body")).fit(net, loader(*samples(), batch_size=N))
    assert net.looked


class FailsOnce(Callback):
    """Fails at the second batch, at one of the trainer's hooks."""

    def __init__(self, where: str) -> None:
        setattr(self, where, self.fail)

    def fail(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 1:
            raise ZeroDivisionError


def fails_in_the_step(net: Model, x: Tensor, y: Tensor) -> Tensor:
    loss = classified(net, x, y)
    if net.global_step == 1:
        raise ZeroDivisionError
    return loss


FAILURES = [
    "step",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
]


@works("after a failure, the layer as it was")
@pytest.mark.parametrize("where", FAILURES)
def test_no_hook_is_left_after_a_failure(where: str) -> None:
    net = Model(fails_in_the_step if where == "step" else classified)
    callbacks = [] if where == "step" else [FailsOnce(where)]
    data = loader(*samples(), batch_size=N)
    with pytest.raises(ZeroDivisionError):
        make_trainer(*callbacks, FMix(at="body")).fit(net, data)
    assert not any(module._forward_hooks for module in net.modules())
    net.step = classified
    never_mixed = Model(classified)
    never_mixed.load_state_dict(net.state_dict())
    for model in (net, never_mixed):
        make_trainer().fit(model, data)
    assert all(map(torch.equal, net.state_dict().values(), never_mixed.state_dict().values()))


def called_by_forward(net: Model, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net.head(net.body.forward(net.hidden(x))), y)


def skipped_at_times(net: Model, x: Tensor, y: Tensor) -> Tensor:
    hidden = net.hidden(x)
    return F.cross_entropy(net.head(net.body(hidden) if net.global_step != 1 else hidden), y)


@works("a layer that the step never runs", refused="nothing would be mixed")
@pytest.mark.parametrize(
    ("at", "step"),
    [("unused", classified), ("body", called_by_forward), ("body", skipped_at_times)],
    ids=["not called", "its forward called", "skipped at times"],
)
def test_a_layer_that_is_not_reached_is_refused(at: str, step: Step) -> None:
    with pytest.raises(
        ValueError, match=f"The step never called '{at}'.*Name a layer that the training step"
    ):
        make_trainer(MixUp(at=at)).fit(Model(step), loader(*samples(), batch_size=N))


def by_two_losses(net: Model, x: Tensor, y: Tensor, again: Callable[..., Any]) -> None:
    """Optimize by hand what two heads make of one layer."""
    features = again(lambda hidden: torch.tanh(net.body(hidden)), net.hidden(x))
    losses = [F.cross_entropy(net.head(view), y) for view in (features, features.flip(-1))]
    optimizer: Any = net.optimizers()
    optimizer.zero_grad()
    for i, loss in enumerate(losses):
        net.manual_backward(loss, retain_graph=i == 0)
    optimizer.step()


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layer_that_is_recomputed_for_two_losses(per_sample: bool, reentrant: bool) -> None:
    def trained(again: Callable[..., Any]) -> Tensor:
        torch.manual_seed(0)
        net = Model(partial(by_two_losses, again=again))  # type: ignore[arg-type]
        net.automatic_optimization = False
        data = loader(*samples(), batch_size=N)
        make_trainer(CutMix(at="body", per_sample=per_sample, seed=0)).fit(net, data)
        return nn.utils.parameters_to_vector(net.parameters())

    wanted = trained(lambda layer, x: layer(x))
    actual = trained(partial(checkpoint, use_reentrant=reentrant))
    torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12)


def later(move: Callable[[Tensor], Tensor], loss: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """Return a step that moves labels first, and then lets the layer make scores."""

    def step(net: Model, x: Tensor, y: Tensor) -> Tensor:
        moved = move(y)
        return loss(net.scores(x), moved)

    return step


def hot_in_turn(y: Tensor) -> Tensor:
    hot = torch.zeros(N, K, dtype=torch.float64)
    for i in range(N):
        hot[i, y[i]] = 1
    return hot


ORDER = torch.randperm(N, generator=torch.Generator().manual_seed(1))
MOVED = {
    "flipped": later(lambda y: y.flip(0), lambda z, y: F.cross_entropy(z.flip(0), y)),
    "permuted": later(lambda y: y[ORDER], lambda z, y: F.cross_entropy(z[ORDER], y)),
    "joined": later(
        lambda y: torch.cat([y[2:], y[:2]]), lambda z, y: F.cross_entropy(torch.cat([z[2:], z[:2]]), y)
    ),
    "one by one": later(lambda y: torch.stack([y[i] for i in range(N)]), F.cross_entropy),
    "written in turn": later(hot_in_turn, lambda z, hot: -(hot * z.log_softmax(1)).sum(1).mean()),
}


@pytest.mark.parametrize("per_sample", both("labels moved before the layer has run"))
@pytest.mark.parametrize("name", MOVED)
def test_labels_may_be_moved_before_their_lam_is_known(name: str, per_sample: bool) -> None:
    method = MixUp(at="body", per_sample=per_sample)
    trains_at("body", lambda: Model(MOVED[name]), batches(), method, terms=CLASSES[per_sample])
