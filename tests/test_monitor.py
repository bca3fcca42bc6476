"""What was mixed, as it reaches the loggers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from typing_extensions import override

from lightning_msda import CutMix, FMix, LaMix, Mixture, MixUp, RandomMix, ResizeMix
from lightning_msda.monitor import MixMonitor
from tests.tools import Classifier, Recorder, grid_size, read_csv, read_picture, train
from tests.tools import workplace as workplace


class FakeRun:
    """A W&B run that keeps what is logged to it."""

    id = "fake"
    name = "fake"

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None

    def having(self, key: str) -> list[dict[str, Any]]:
        return [values for values in self.logged if key in values]


class FakeWriter:
    """A TensorBoard writer or an MLflow client that keeps its images."""

    def __init__(self) -> None:
        self.images: list[tuple[Any, ...]] = []
        self.histograms: list[tuple[Any, ...]] = []

    def add_histogram(self, *args: Any) -> None:
        self.histograms.append(args)

    def add_image(self, *args: Any) -> None:
        self.images.append(args)

    log_image = add_image


class FakeTensorBoard(TensorBoardLogger):
    """A logger that does not need TensorBoard."""

    def __init__(self) -> None:
        self.writer = FakeWriter()

    name = version = save_dir = log_dir = root_dir = ""
    experiment = property(lambda self: self.writer)

    @override
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    log_hyperparams = log_graph = save = finalize = lambda self, *args, **kwargs: None  # type: ignore[assignment]


class FakeMLFlow(MLFlowLogger):
    """A logger that does not need MLflow."""

    def __init__(self) -> None:
        self.writer = FakeWriter()

    name = version = save_dir = ""
    run_id = "run"
    experiment = property(lambda self: self.writer)

    @override
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    log_hyperparams = save = finalize = after_save_checkpoint = lambda self, *args, **kwargs: None  # type: ignore[assignment]


def watch(method: Callback, monitor: MixMonitor | None = None, **options: Any) -> Trainer:
    """Train with a method, a monitor and a recorder."""
    Recorder.trainings.clear()
    return train([method, monitor or MixMonitor(), Recorder()], **options)


def recorded_lams() -> list[float]:
    mixes = Recorder.trainings[-1].mixes
    return [1.0 if mix is None else float(mix.lam.double().mean()) for mix in mixes]


def values(rows: Sequence[dict[str, str]], key: str) -> list[float]:
    return [float(row[key]) for row in rows if row.get(key)]


@pytest.mark.parametrize(
    "method",
    [MixUp(), MixUp(per_sample=True), CutMix(prob=0.5), RandomMix(), ResizeMix(start_epoch=1)],
    ids=["MixUp", "by sample", "half of the batches", "RandomMix", "from the second epoch on"],
)
def test_lam_is_the_mean_of_the_last_mix(method: Callback) -> None:
    trainer = watch(method, batches=6, max_epochs=2, logger=CSVLogger(".", name="runs"))
    rows = read_csv(Path(str(trainer.log_dir)) / "metrics.csv")
    lams = [row for row in rows if row["msda/lam"]]
    assert values(lams, "step") == list(range(12))
    assert values(lams, "msda/lam") == pytest.approx(recorded_lams(), rel=1e-6)


def test_shares_are_those_of_the_epochs_batches() -> None:
    trainer = watch(RandomMix(prob=0.7), batches=10, max_epochs=2, logger=CSVLogger(".", name="runs"))
    rows = [row for row in read_csv(Path(str(trainer.log_dir)) / "metrics.csv") if row["msda/prob_mixed"]]
    names = ["MixUp", "CutMix", "ResizeMix", "FMix"]
    assert len(rows) == 2
    for row, first in zip(rows, (0, 10), strict=True):
        counts = Counter(Recorder.trainings[-1].methods[first : first + 10])
        assert 0 < counts[None] < 10
        assert float(row["msda/prob_mixed"]) == pytest.approx(1 - counts[None] / 10)
        shares = [float(row[f"msda/share/{name}"]) for name in names]
        assert shares == pytest.approx([counts[name] / 10 for name in names])
        assert sum(shares) == pytest.approx(float(row["msda/prob_mixed"]))


def test_shares_sum_to_1_where_every_batch_is_mixed() -> None:
    trainer = watch(RandomMix([MixUp(), RandomMix([CutMix(), FMix()])]), batches=8)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if "share" in key}
    assert sorted(metrics) == ["msda/share/CutMix", "msda/share/FMix", "msda/share/MixUp"]
    assert sum(metrics.values()) == pytest.approx(1.0)
    assert float(trainer.callback_metrics["msda/prob_mixed"]) == 1.0


def test_a_method_by_itself_has_all_of_the_share() -> None:
    assert float(watch(CutMix()).callback_metrics["msda/share/CutMix"]) == 1.0


def test_the_grid_is_a_file_in_the_runs_folder() -> None:
    trainer = watch(CutMix(), MixMonitor(images=3), logger=CSVLogger(".", name="runs"))
    picture = read_picture(Path(str(trainer.log_dir)) / "msda" / "mix-epoch0.png")
    captions = ["lam 0.00  0 + 0"]
    assert picture.size == grid_size(1, 3, (8, 8), titles=["CutMix"], captions=captions)
    assert picture.format == "PNG"
    assert not Path("msda").exists()


def test_the_grid_shows_the_first_mixed_batch_of_the_epoch() -> None:
    watch(CutMix(), MixMonitor(images=2))
    pixels = pil_to_tensor(read_picture("msda/mix-epoch0.png").convert("L")).flatten()
    width, height = grid_size(1, 2, (8, 8), titles=["CutMix"], captions=["lam 0.00  0 + 0"])
    pixels = pixels.view(height, width)
    mix = Recorder.trainings[-1].mixes[0]
    assert mix is not None
    left = grid_size(1, 0, (8, 8), titles=["CutMix"])[0]
    image = mix.inputs[0, 0]
    stretched = ((image - image.min()) / (image.max() - image.min()) * 255).round().long()
    assert torch.equal(pixels[8 + 7 : 8 + 112 : 14, left + 7 : left + 112 : 14], stretched)


@pytest.mark.parametrize(
    ("interval", "drawn"), [(0, []), (1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (10, [0])], ids=str
)
def test_grids_come_every_n_epochs(interval: int, drawn: list[int]) -> None:
    watch(MixUp(), MixMonitor(interval), max_epochs=5, batches=2)
    assert sorted(path.name for path in Path().rglob("*.png")) == [f"mix-epoch{e}.png" for e in drawn]


def test_a_second_training_is_drawn_too() -> None:
    monitor = MixMonitor()
    for folder in ("first", "second"):
        watch(MixUp(), monitor, default_root_dir=folder)
        assert (Path(folder) / "msda" / "mix-epoch0.png").is_file()


@pytest.mark.parametrize("shape", [(6, 8), (6, 4, 8)], ids=["features", "signals"])
def test_inputs_that_are_no_images_are_logged_but_not_drawn(shape: tuple[int, ...]) -> None:
    features = int(torch.tensor(shape[1:]).prod())
    trainer = watch(MixUp(), module=Classifier(features), shape=shape)
    assert "msda/lam" in trainer.callback_metrics
    assert list(Path().rglob("*.png")) == []


def test_a_method_that_never_mixes_is_logged_but_not_drawn() -> None:
    trainer = watch(MixUp(prob=0.0))
    assert float(trainer.callback_metrics["msda/lam"]) == 1.0
    assert float(trainer.callback_metrics["msda/prob_mixed"]) == 0.0
    assert list(Path().rglob("*.png")) == []


def test_batches_without_labels_are_drawn_too() -> None:
    class Unlabelled(Classifier):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.linear(batch[0].flatten(1)).square().mean()  # type: ignore[no-any-return]

    watch(MixUp(target_key=False), module=Unlabelled())
    assert [path.name for path in Path().rglob("*.png")] == ["mix-epoch0.png"]


def test_wandb_gets_scalars_and_the_grid() -> None:
    run = FakeRun()
    watch(RandomMix(), logger=WandbLogger(experiment=run), batches=3)  # type: ignore[arg-type]
    lams = run.having("msda/lam")
    assert [values["msda/lam"] for values in lams] == pytest.approx(recorded_lams(), rel=1e-6)
    assert [values["trainer/global_step"] for values in lams] == [0, 1, 2]
    (picture,) = run.having("msda/mix")
    assert picture["trainer/global_step"] == 0
    (image,) = picture["msda/mix"]
    assert image.format == "png"
    captions = ["lam 0.00  0 + 0"]
    method = str(Recorder.trainings[-1].methods[0])
    assert (image._width, image._height) == grid_size(1, 6, (8, 8), titles=[method], captions=captions)
    assert list(Path().rglob("*.png")) == []


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_the_grid_has_the_step_of_the_modules_own_metrics(accumulate: int) -> None:
    run = FakeRun()
    logger: Any = WandbLogger(experiment=run)  # type: ignore[arg-type]
    watch(MixUp(), MixMonitor(1), logger=logger, max_epochs=2, accumulate_grad_batches=accumulate)
    steps = [values["trainer/global_step"] for values in run.having("msda/mix")]
    own = [values["trainer/global_step"] for values in run.having("train/loss")]
    assert steps == [own[0], own[len(own) // 2]]


class TwoOptimizers(Classifier):
    """Optimizes by itself, with two steps for each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    @override
    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            loss = super().training_step(batch, batch_idx)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    @override
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([parameter], lr=0.1) for parameter in self.parameters()]


def test_the_grid_has_that_step_under_manual_optimization_too() -> None:
    run = FakeRun()
    logger: Any = WandbLogger(experiment=run)  # type: ignore[arg-type]
    watch(MixUp(), MixMonitor(1), module=TwoOptimizers(), logger=logger, max_epochs=2)
    own = [values["trainer/global_step"] for values in run.having("train/loss")]
    assert [values["trainer/global_step"] for values in run.having("msda/mix")] == [own[0], own[4]]


def test_tensorboard_gets_the_grid() -> None:
    logger = FakeTensorBoard()
    watch(MixUp(), logger=logger, batches=2)
    ((name, pixels, step),) = logger.writer.images
    assert (name, step) == ("msda/mix", 0)
    width, height = grid_size(1, 6, (8, 8), titles=["MixUp"], captions=["lam 0.00  0 + 0"])
    assert (pixels.shape, pixels.dtype) == ((3, height, width), torch.uint8)
    assert list(Path().rglob("*.png")) == []


def test_learned_labels_are_logged_as_numbers_and_distributions() -> None:
    run, board = FakeRun(), FakeTensorBoard()
    loggers = [WandbLogger(experiment=run), board]  # type: ignore[arg-type]
    method, targets = LaMix(beta=0.6), []

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            mix = method.last_mix
            assert mix is not None and mix.soft is not None
            own, other = (F.one_hot(y, 4) * weight for y, weight in _labels(batch[1], mix))
            targets.append((own + other + 0.4 * mix.soft, mix.soft))

    train([method, MixMonitor(1), Keep()], logger=loggers, batches=4)
    logged = run.having("msda/target/1")
    assert len(logged) == len(targets) == 4
    for values, (target, _) in zip(logged, targets, strict=True):
        largest = target.sort(1, descending=True).values.mean(0).tolist()
        assert [values[f"msda/target/{i}"] for i in (1, 2, 3, 4)] == pytest.approx(largest, rel=1e-5)
    drawn = {name: values for name, values, step in board.writer.histograms}
    torch.testing.assert_close(drawn["msda/target"], targets[0][0].flatten())
    torch.testing.assert_close(drawn["msda/learned"], targets[0][1].flatten())
    (histogram,) = run.having("msda/learned")
    assert sum(histogram["msda/learned"].histogram) == 6 * 4


def _labels(y: Tensor, mix: Mixture) -> list[tuple[Tensor, Tensor]]:
    return [(y, mix.weights[:, :1]), (y[mix.partner], mix.weights[:, 1:])]


def test_the_epochs_lams_are_a_distribution_where_a_grid_is_due() -> None:
    run, board = FakeRun(), FakeTensorBoard()
    loggers = [WandbLogger(experiment=run), board]  # type: ignore[arg-type]
    watch(MixUp(per_sample=True, prob=0.7), MixMonitor(2), logger=loggers, batches=5, max_epochs=3)
    of_epochs = [[m.lam for m in Recorder.trainings[-1].mixes[i : i + 5] if m is not None] for i in (0, 10)]
    drawn = [values for name, values, _ in board.writer.histograms if name == "msda/lams"]
    assert len(drawn) == len(run.having("msda/lams")) == 2
    for found, lams in zip(drawn, of_epochs, strict=True):
        torch.testing.assert_close(found, torch.cat(lams).float())


def test_without_an_interval_nothing_is_kept() -> None:
    board, monitor = FakeTensorBoard(), MixMonitor(0)
    watch(MixUp(), monitor, logger=board)
    assert board.writer.histograms == board.writer.images == monitor._lams == []


def test_the_hosts_time_is_logged_by_step() -> None:
    run = FakeRun()
    watch(MixUp(), logger=WandbLogger(experiment=run), batches=3)  # type: ignore[arg-type]
    times = [values["msda/host_ms"] for values in run.having("msda/host_ms")]
    assert len(times) == 3 and all(0 < time < 60_000 for time in times)


def test_mlflow_gets_the_grid() -> None:
    logger = FakeMLFlow()
    watch(MixUp(), logger=logger, batches=2)
    ((run, picture, name),) = logger.writer.images
    assert (run, name) == ("run", "msda/mix-step0.png")
    assert picture.size == grid_size(1, 6, (8, 8), titles=["MixUp"], captions=["lam 0.00  0 + 0"])


def test_every_logger_gets_the_grid() -> None:
    run, writer = FakeRun(), FakeTensorBoard()
    loggers = [CSVLogger(".", name="runs"), WandbLogger(experiment=run), writer]  # type: ignore[arg-type]
    trainer = watch(MixUp(), logger=loggers)
    assert (Path(str(trainer.log_dir)) / "msda" / "mix-epoch0.png").is_file()
    assert len(run.having("msda/mix")) == len(writer.writer.images) == 1


def test_without_a_logger_the_grid_is_in_the_trainers_folder() -> None:
    watch(MixUp(), default_root_dir="root")
    assert [str(path) for path in Path().rglob("*.png")] == ["root/msda/mix-epoch0.png"]


def test_a_fast_dev_run_writes_nothing() -> None:
    watch(MixUp(), fast_dev_run=True)
    assert list(Path().iterdir()) == []


def test_without_a_method_it_warns_and_logs_nothing() -> None:
    with pytest.warns(UserWarning, match=r"nothing to watch.*RandomMix\(\)"):
        trainer = train([MixMonitor()])
    assert [key for key in trainer.callback_metrics if key.startswith("msda")] == []
    assert list(Path().rglob("*.png")) == []


def test_training_is_the_same_with_and_without_it() -> None:
    weights = []
    for extra in ([], [MixMonitor(1)]):
        torch.manual_seed(0)
        module: LightningModule = Classifier()
        train([RandomMix(seed=1), *extra], module=module)
        weights.append(torch.nn.utils.parameters_to_vector(module.parameters()))
    assert torch.equal(*weights)


def test_classes_have_names_where_the_data_has_them() -> None:
    class Data(LightningDataModule):
        classes = ("a class with quite a long name",) * 4

    class Named(Callback):
        @override
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.datamodule = Data()  # type: ignore[attr-defined]

    train([MixUp(), MixMonitor(images=2), Named()])
    caption = f"lam 0.00  {Data.classes[0]} + {Data.classes[0]}"
    wanted = grid_size(1, 2, (8, 8), titles=["MixUp"], captions=[caption])
    assert read_picture("msda/mix-epoch0.png").size == wanted


@pytest.mark.parametrize("arguments", [{"every_n_epochs": -1}, {"images": 0}], ids=str)
def test_arguments_out_of_range_are_refused(arguments: dict[str, int]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        MixMonitor(**arguments)
