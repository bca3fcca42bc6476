"""No method waits for its device: shown without one, by tensors that only claim to be on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

import lightning_msda
from lightning_msda import MSDA, Mixture, Step

aten = torch.ops.aten
# What hands values to the host, or makes a result whose size only the values know.
READING = {aten._local_scalar_dense, aten.item, aten.equal, aten.is_nonzero}
SIZED_BY_VALUES = {
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.bincount,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class WaitingError(RuntimeError):
    """Something would have waited for the device."""


class Gpu(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps what is on a GPU fake and what is on the host real, and refuses what waits in between."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        target = torch.device(kwargs.get("device") or (tensors[0].device if tensors else "cpu"))
        if not there and target.type == "cpu":
            return func(*args, **kwargs)
        packet = func.overloadpacket
        if there and packet in READING | SIZED_BY_VALUES:
            raise WaitingError(f"{func} waits for values")
        if there and func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            raise WaitingError(f"{func} waits for the repeats")
        if there and packet in INDEXING:
            for index in [index for index in args[1] if index is not None]:
                if index.dtype in (torch.bool, torch.uint8) or not isinstance(index, FakeTensor):
                    raise WaitingError(
                        f"{func} waits for a boolean index to be counted, or for one of the host"
                    )
        if packet is aten._to_copy:
            self._check_copy(args[0], target, kwargs.get("non_blocking", False))
        if packet is aten.copy_:
            self._check_copy(args[1], args[0].device, kwargs.get("non_blocking", len(args) > 2 and args[2]))
        with self.fake:
            return func(*args, **kwargs)

    @staticmethod
    def _check_copy(source: Tensor, target: torch.device, non_blocking: bool) -> None:
        if source.device.type == "cuda" and target.type == "cpu":
            raise WaitingError("a copy to the host waits")
        if source.device.type == "cpu" and target.type == "cuda" and not non_blocking:
            raise WaitingError("a copy from the host blocks")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Return the mode; torch does not look for a device meanwhile."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    return Gpu()


def mix_there(gpu: Gpu, method: MSDA, ordinal: int, dtype: torch.dtype = torch.float32) -> Mixture:
    """Mix a batch on the device, where nothing may wait; the grid is large enough for FMix's shortcut."""
    with gpu:
        x = torch.empty(6, 3, 72, 80, dtype=dtype, device="cuda")
        assert isinstance(x, FakeTensor)
        mixture = method.mix(x, Step(seed=1, ordinal=ordinal))
    assert (mixture.inputs.shape, mixture.inputs.dtype, mixture.inputs.device) == (x.shape, x.dtype, x.device)
    assert all(tensor.device == x.device for tensor in (mixture.weights, mixture.partners))
    return mixture


EXPORTED: dict[str, Callable[..., MSDA]] = {
    name: kind
    for name in lightning_msda.__all__
    if isinstance(kind := getattr(lightning_msda, name), type) and issubclass(kind, MSDA) and kind is not MSDA
}


def forms(name: str) -> list[Callable[[], MSDA]]:
    """Return what makes a method, by batch and by sample."""
    kind = EXPORTED[name]
    if name in ("RandomMix", "SamplePairing"):  # they draw nothing by sample themselves
        return [kind]
    return [kind, lambda: kind(per_sample=True)]


@pytest.mark.parametrize("name", EXPORTED)
def test_no_method_waits_for_its_device(gpu: Gpu, name: str) -> None:
    for make in forms(name):
        for ordinal in range(8 if name == "RandomMix" else 2):
            mix_there(gpu, make(), ordinal)


@pytest.mark.parametrize("spectrum", ["paper", "official"])
@pytest.mark.parametrize("max_soft", [0.0, 0.3])
@pytest.mark.parametrize("decay_power", [1.5, 3.0])
def test_no_form_of_fmix_waits(gpu: Gpu, spectrum: Any, max_soft: float, decay_power: float) -> None:
    for per_sample in (False, True):
        method = lightning_msda.FMix(
            decay_power=decay_power, max_soft=max_soft, spectrum=spectrum, per_sample=per_sample
        )
        mix_there(gpu, method, 0)


@pytest.mark.parametrize("name", ["CutMix", "Cutout", "FMix", "ResizeMix", "SaliencyMix"])
def test_integers_are_mixed_without_waiting(gpu: Gpu, name: str) -> None:
    for make in forms(name):
        mix_there(gpu, make(), 0, torch.uint8)


def reads_a_number(x: Tensor, lam: Tensor) -> Tensor:
    return x * lam.to(x.device, non_blocking=True).item()


def reads_a_truth(x: Tensor, lam: Tensor) -> Tensor:
    return -x if x.mean() > 0 else x


def reads_a_list(x: Tensor, lam: Tensor) -> Tensor:
    number: float = x.flatten()[:2].tolist()[0]
    return x * number


def counts_a_mask(x: Tensor, lam: Tensor) -> Tensor:
    mixed = x.clone()
    mixed[x[:, 0, 0, 0] > 0.5] = x[0]
    return mixed


def picks_by_a_mask(x: Tensor, lam: Tensor) -> Tensor:
    return x + x[x > 0.5].sum()


def finds_places(x: Tensor, lam: Tensor) -> Tensor:
    return x + x.nonzero().sum()


def sends_and_waits(x: Tensor, lam: Tensor) -> Tensor:
    return x * lam.to(x.device)


def fetches(x: Tensor, lam: Tensor) -> Tensor:
    return x * float(x.cpu().mean())


def indexes_by_the_host(x: Tensor, lam: Tensor) -> Tensor:
    return x[torch.arange(len(x)).flip(0)]


@pytest.mark.parametrize(
    "rule",
    [
        reads_a_number,
        reads_a_truth,
        reads_a_list,
        counts_a_mask,
        picks_by_a_mask,
        finds_places,
        sends_and_waits,
        fetches,
        indexes_by_the_host,
    ],
)
def test_a_method_that_waits_is_found_out(gpu: Gpu, rule: Callable[[Tensor, Tensor], Tensor]) -> None:
    class Waits(MSDA):
        @override
        def mix(self, x: Tensor, step: Step) -> Mixture:
            mixed = rule(x, torch.rand(1, generator=step.generator()))
            return Mixture.untouched(mixed)

    with pytest.raises(WaitingError):
        mix_there(gpu, Waits(), 0)
