"""The command line: the trainer's verbs, the methods as YAML, and runs that are read back from W&B."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lightning_msda
from lightning_msda import MSDA
from lightning_msda.cli import main
from lightning_msda.cli.app import App
from tests.tools import QUIET, Recorder, grid_size, read_csv, read_picture
from tests.tools import workplace as workplace
from tests.wandb_file import Run, read_runs
from tests.wandb_file import offline as offline

BASE = ["--config", "digits/cnn", *QUIET]
SMALL = [
    *BASE,
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=2",
    "--trainer.log_every_n_steps=1",
]


def callbacks_of(app: App) -> list[Any]:
    callbacks: list[Any] = app.trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def method_of(app: App) -> Any:
    (method,) = [callback for callback in callbacks_of(app) if isinstance(callback, MSDA)]
    return method


@pytest.mark.parametrize(
    "args", [[], ["--msda", "null"], ["--msda=null"], ["--config", "none.yaml"]], ids=str
)
def test_without_a_method_there_is_no_callback_of_none(args: list[str]) -> None:
    Path("none.yaml").write_text("msda: null")
    callbacks = callbacks_of(App([*BASE, *args], run=False))
    assert None not in callbacks
    assert not any(isinstance(callback, MSDA) for callback in callbacks)


def test_without_a_method_it_trains() -> None:
    main(["fit", *BASE, "--trainer.fast_dev_run=true"])


# Every argument of every method, each with a value that is not its default.
COMMON = {
    "prob": {0: 1.0, 10: 0.5},
    "per_sample": True,
    "dims": [2, 3],
    "criterion": "loss",
    "input_key": ["image", "depth"],
    "target_key": "heads.shape",
    "target": "class",
    "start_epoch": 3,
    "stop_epoch": -2,
    "seed": 5,
}
METHODS: dict[str, dict[str, Any]] = {
    "ManifoldMixup": {"layers": ["input", "network.layer1"], "alpha": 0.2},
    "PatchUp": {"layers": ["network.layer1"], "mode": "hard", "gamma": 0.5, "block_size": 3},
    "CoMixup": {"alpha": {0: 2.0, 5: 1.0}, "threshold": "soft", "block_num": 2, "part": 8, "sources": 2},
    "PuzzleMix": {"t_size": 4, "saliency_stride": 2, "block_num": 4, "pair": "other_class"},
    "LaMix": {
        "beta": {0: 0.5, 9: 1.0},
        "lam": 0.5,
        "classifier": "network.head",
        "base": "puzzlemix",
        "seed": 5,
    },
    "MixUp": {"alpha": {0: 1.0, 100: 0.2}, "at": "network.layer1", **COMMON, "dims": None},
    "CutMix": {"alpha": 0.3, **COMMON, "target_key": False, "input_key": 0},
    "FMix": {
        "alpha": 0.3,
        "decay_power": {0: 3.0, 5: 2.0},
        "max_soft": 0.1,
        "reformulate": True,
        "spectrum": "official",
        **COMMON,
        "target": "value",
    },
    "ResizeMix": {"side": [0.2, 0.6], **COMMON},
    "SaliencyMix": {"alpha": {0: 1.0, 5: 0.2}, **COMMON},
    "BCMix": {"plus": True, **COMMON, "per_sample": False, "dims": None},
    "SamplePairing": {"epochs_on": 3, "epochs_off": 1, **COMMON, "per_sample": False, "dims": None},
    "Cutout": {"holes": 2, "length": 4, "fill": 0.5, **COMMON, "per_sample": False},
    "RandomMix": {
        "candidates": [
            {"class_path": "MixUp", "init_args": {"alpha": 0.3, "prob": 0.5, "at": "network.layer2"}},
            {"class_path": "ResizeMix", "init_args": {"side": [0.2, 0.6], "stop_epoch": 7}},
            {
                "class_path": "RandomMix",
                "init_args": {
                    "candidates": [{"class_path": "FMix"}, {"class_path": "CutMix"}],
                    "order": "cycle",
                },
            },
        ],
        "weights": {0: [1.0, 2.0, 3.0], 5: [0.0, 1.0, 1.0]},
        "order": "cycle",
        **COMMON,
        "per_sample": False,
        "dims": None,
    },
}


def arguments(method: MSDA) -> dict[str, Any]:
    """Return a method's arguments as they are written in YAML."""

    def plain(value: Any) -> Any:
        if isinstance(value, MSDA):
            return {"class_path": type(value).__name__, "init_args": arguments(value)}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return {key: plain(value) for key, value in vars(method).items() if not key.startswith(("_", "last_"))}


def within(given: Any, made: Any) -> bool:
    """Tell whether what was given is in what was made of it, beside defaults."""
    if isinstance(given, dict) and isinstance(made, dict):
        return all(key in made and within(value, made[key]) for key, value in given.items())
    if isinstance(given, list) and isinstance(made, list):
        return len(given) == len(made) and all(map(within, given, made))
    return bool(given == made)


def test_every_method_is_in_the_table() -> None:
    exported = [getattr(lightning_msda, name) for name in lightning_msda.__all__]
    methods = {kind.__name__ for kind in exported if issubclass(kind, MSDA) and kind is not MSDA}
    assert set(METHODS) == methods


@pytest.mark.parametrize("name", METHODS)
def test_a_method_survives_the_way_through_yaml(name: str) -> None:
    content = {"msda": {"class_path": name, "init_args": METHODS[name]}}
    Path("mine.yaml").write_text(yaml.safe_dump(content))
    first = App([*BASE, "--config", "mine.yaml"], run=False)
    made = arguments(method_of(first))
    assert within(METHODS[name], made)
    for i in range(2):
        Path("saved.yaml").write_text(first._parser("fit").dump(first.config.fit, skip_none=bool(i)))
        again = App(["--config", "saved.yaml"], run=False)
        assert arguments(method_of(again)) == made


def test_the_saved_configuration_makes_the_same_run_again() -> None:
    args = ["--config", "msda/randommix", "--msda.prob", "0.5", "--msda.seed", "3"]
    main(["fit", *SMALL, *args])
    (saved,) = Path().rglob("config.yaml")
    assert saved.parent == Path("lightning_logs/version_0")
    main(["fit", "--config", str(saved)])
    first, second = (read_csv(Path(f"lightning_logs/version_{i}/metrics.csv")) for i in range(2))
    assert first == second
    assert len(first) > 0


@pytest.mark.parametrize(
    "args",
    [
        ["--trainer.callbacks+=CutMix", "--trainer.callbacks.alpha=0.3"],
        ["--trainer.callbacks", "lightning_msda.CutMix", "--trainer.callbacks.alpha", "0.3"],
        ["--config", "plain.yaml"],
    ],
    ids=["appended", "set", "file"],
)
def test_a_method_in_the_plain_callbacks_works_too(args: list[str]) -> None:
    content = {"class_path": "lightning_msda.CutMix", "init_args": {"alpha": 0.3}}
    Path("plain.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [content]}}))
    method = method_of(App([*BASE, *args], run=False))
    assert (type(method).__name__, method.alpha) == ("CutMix", 0.3)
    Recorder.trainings.clear()
    main(["fit", *SMALL, *args, "--trainer.callbacks+=tests.tools.Recorder"])
    assert Recorder.trainings[0].methods == ["CutMix"] * 4


def test_fit_mixes_as_it_is_told() -> None:
    Recorder.trainings.clear()
    main(["fit", *SMALL, "--msda", "MixUp", "--trainer.callbacks+=tests.tools.Recorder"])
    (training,) = Recorder.trainings
    assert training.seed == "0"
    assert training.methods == ["MixUp"] * 4
    mixes = [mix for mix in training.mixes if mix is not None]
    for x, mix in zip(training.batches, mixes, strict=True):
        lam = mix.lam[0]
        torch.testing.assert_close(mix.inputs, lam * x + (1 - lam) * x[mix.partner])
    assert len({float(mix.lam[0]) for mix in mixes}) == 4


def test_the_seed_of_the_command_line_is_that_of_the_mixes() -> None:
    lams = []
    for seed in (1, 1, 2):
        Recorder.trainings.clear()
        recorder = "--trainer.callbacks+=tests.tools.Recorder"
        main(["fit", *SMALL, "--msda", "MixUp", recorder, f"--seed_everything={seed}"])
        lams.append([float(mix.lam[0]) for mix in Recorder.trainings[0].mixes if mix is not None])
    assert lams[0] == lams[1] != lams[2]


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_the_other_verbs_run_with_a_method_and_mix_nothing(verb: str) -> None:
    Recorder.trainings.clear()
    recorder = "--trainer.callbacks+=tests.tools.Recorder"
    main(
        [
            verb,
            *BASE,
            "--config",
            "msda/randommix",
            f"--trainer.limit_{verb.removesuffix('idate')}_batches=2",
            recorder,
        ]
    )
    assert Recorder.trainings == []


def test_the_module_can_be_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["lightning-msda", "recipes", "msda/fmix"])
    runpy.run_module("lightning_msda", run_name="__main__")
    assert capsys.readouterr().out.startswith("# FMix")


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]], ids=str)
def test_help_names_every_verb(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(args)
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in "fit validate test predict recipes preview compare".split())


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"lightning-msda {lightning_msda.__version__}\n"


def test_help_explains_every_argument_of_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--msda.help", "FMix"])
    assert exit_.value.code in (0, None)
    printed = capsys.readouterr().out
    assert [name for name in METHODS["FMix"] if f"--msda.{name}" not in printed] == []
    assert "How fast amplitudes fall" in printed


def run_of(*args: str) -> Run:
    """Train with W&B offline, and read the run back."""
    folder = Path("runs").resolve()  # W&B's service works in a folder of its own
    Recorder.trainings.clear()
    recorder = "--trainer.callbacks+=tests.tools.Recorder"
    main(["fit", *SMALL, "--config", "log/wandb", f"--trainer.logger.save_dir={folder}", recorder, *args])
    (run,) = read_runs(folder)
    assert run.finished
    return run


@pytest.mark.usefixtures("offline")
def test_an_offline_run_can_be_read_back() -> None:
    run = run_of("--config", "msda/randommix", "--msda.prob", "0.75", "--data.batch_size", "32")
    (training,) = Recorder.trainings

    lams = [1.0 if mix is None else float(mix.lam.double().mean()) for mix in training.mixes]
    assert [step for step, _ in run.logged("msda/lam")] == [0, 1, 2, 3]
    assert [value for _, value in run.logged("msda/lam")] == pytest.approx(lams, rel=1e-6)
    for epoch, (step, mixed) in enumerate(run.logged("msda/prob_mixed")):
        methods = training.methods[2 * epoch : 2 * epoch + 2]
        assert (step, mixed) == (2 * epoch + 1, 1 - methods.count(None) / 2)
        shares = {
            name: run.logged(f"msda/share/{name}")[epoch][1]
            for name in ("MixUp", "CutMix", "ResizeMix", "FMix")
        }
        assert shares == {name: methods.count(name) / 2 for name in shares}
    assert {"train/loss", "train/acc", "val/loss", "val/acc"} <= {key for row in run.history for key in row}

    ((step, picture),) = run.logged("msda/mix")
    first = next(i for i, mix in enumerate(training.mixes) if mix is not None)
    assert step == first
    (file,) = picture["filenames"]
    captions, titles = ["lam 0.00  0 + 0"], [str(training.methods[first])]
    size = grid_size(1, 8, (8, 8), titles=titles, captions=captions)
    assert read_picture(run.folder / "files" / file).size == size == (picture["width"], picture["height"])

    written = yaml.safe_load((Path(__file__).parents[2] / "recipes/msda/randommix.yaml").read_text())["msda"]
    msda = run.config["msda"]
    assert msda["class_path"] == "lightning_msda.RandomMix"
    assert msda["init_args"]["prob"] == 0.75
    assert msda["init_args"]["weights"] == written["init_args"]["weights"]
    for candidate, given in zip(
        msda["init_args"]["candidates"], written["init_args"]["candidates"], strict=True
    ):
        assert candidate["class_path"].rpartition(".")[2] == given["class_path"]
        assert within(given["init_args"], candidate["init_args"])
    assert run.config["seed_everything"] == 0
    assert run.config["data"]["init_args"] == {"batch_size": 32, "train_size": 200}
    assert run.config["trainer"]["max_epochs"] == 2
    assert run.config["model"]["init_args"]["network"]["init_args"]["width"] == 16
    assert run.config["optimizer"]["init_args"]["lr"] == 3e-3

    saved = yaml.safe_load((run.folder / "files" / "recipe.yaml").read_text())
    assert saved == {key: run.config[key] for key in saved}
    assert [path.name for path in Path().iterdir()] == ["runs"]


@pytest.mark.usefixtures("offline")
def test_an_offline_run_without_a_method_says_so() -> None:
    with pytest.warns(UserWarning, match="nothing to watch"):
        run = run_of("--trainer.max_epochs=1")
    assert run.config["msda"] is None
    assert [key for row in run.history for key in row if key.startswith("msda")] == []
    assert len(run.logged("train/loss")) == 2
