"""Wrong commands of every kind: each is told in a sentence that names what was given, and leaves no trace."""

from __future__ import annotations

import errno
import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from qhw_diffusion.circuits import published_circuit, save_circuit
from qhw_diffusion.cli import COMMANDS, main
from qhw_diffusion.denoising import LatentQDM, ReverseConfig, save_pretrained
from qhw_diffusion.denoising.command import KIND, DenoiserTraining
from qhw_diffusion.devices import Device, take_snapshot
from qhw_diffusion.guidance import (
    GuidanceConfig,
    PolicyConfig,
    PPOConfig,
    RewardConfig,
    build_policy,
    save_policy_model,
)
from qhw_diffusion.hardware import Ledger
from qhw_diffusion.runs import RunFolder

CALIBRATED = {"distribution_offset": 0.0, "distribution_scale": 1.0}

BIG = "99999999999999999999"  # more than 64 bits
LARGE = "1000000000000000000"  # fits into 64 bits, and into no memory
NUL, LONG = "a\0b", "n" * 300

POLICY = ["{world}/policy", "--device", "fake_manila", "--shots", "20"]
TRAIN = ["train", "guidance", "--g0", "1.2", "--n-steps", "2", "--spacing", "trailing", "--noise-pool", "24",
         "--num-envs", "24", "--num-iterations", "1", "--num-minibatches", "1", "--out", "out"]  # fmt: skip
DENOISE = ["train", "denoising", "--n-steps", "2", "--depth", "1", "--iterations", "2", "--autoencoder-steps", "2",
           "--out", "out"]  # fmt: skip
BACKBONE, CLASSIFIER = ["train", "backbone", "--out", "out"], ["train", "classifier", "--out", "out"]
AUTOENCODER = ["train", "autoencoder", "--out", "out"]
SAMPLE = ["sample", "--out", "out", "--guidance", "2"]
ROLLOUT = ["evaluate", "guidance", *POLICY, "--images", "4", "--out", "out", "--ledger", "book"]
TUNE = ["fine-tune", *POLICY, "--num-envs", "20", "--updates", "1", "--out", "out", "--ledger", "book"]
MEASURED = ["distill", *POLICY, "--seeds", "1", "--images", "20", "--out", "out", "--ledger", "book"]
DRAW = ["evaluate", "denoising", "{world}/denoiser", "--device", "fake_manila", "--shots", "200", "--images", "2",
        "--out", "out", "--ledger", "book"]  # fmt: skip
COST = ["cost", "{world}/policy"]
DENOISER = ["cost", "{world}/denoiser", "--device", "fake_manila"]
CIRCUIT = ["cost", "{world}/chain.qpy", "--device", "fake_manila"]
LIST = ["ledger", "list", "--ledger"]
STUDY = ["study", "shots", "--quick", "--out", "out"]
PERCEPTION = ["study", "perception", "make", "--out", "out"]

# command, the mistake, words of the message
WRONG: list[tuple[list[str], list[str], str]] = [
    # -- words that no command takes
    ([], [], "give a command"),
    (["trian"], [], "did you mean train"),
    (["train"], [], "guidance"),
    (["train", "guidence"], [], "did you mean guidance"),
    (["ledger", "lsit"], [], "did you mean list"),
    (["--verbose"], ["devices"], "--verbose"),
    (["devices"], ["--jsn"], "did you mean --json"),
    (["version"], ["now"], "now"),
    (["doctor"], ["--onlin"], "did you mean --online"),
    (["cost"], [], "TARGET"),
    (COST, ["--shots"], "--shots"),
    (COST, ["{world}/denoiser"], "denoiser"),
    (["demo", "everything"], [], "everything"),
    (["demo", "--quick"], ["--dry-run"], "--dry-run"),
    (["study", "nothing"], [], "nothing"),
    (["study", "perception"], [], "make, analyse"),
    (["study", "perception"], ["mak"], "did you mean make"),
    (["ledger", "list"], ["--state", "lost"], "lost"),
    (["distill", "{world}/policy", "--into", "stone"], [], "stone"),
    # -- numbers: of no kind, out of range, beyond 64 bits, beyond the memory
    (COST, ["--shots", "many"], "many"),
    (COST, ["--shots", "1.5"], "1.5"),
    (COST, ["--shots", ""], "--shots"),
    (COST, ["--shots", "0"], "shots is 0"),
    (COST, ["--shots", BIG], BIG),
    (COST, ["--shots", LARGE], LARGE),
    (COST, ["--images", "-3"], "-3"),
    (COST, ["--images", LARGE], LARGE),
    (COST, ["--repetition-delay", "nan"], "nan"),
    (COST, ["--repetition-delay", "-1"], "-1"),
    (COST, ["--repetition-delay", "inf"], "inf"),
    (COST, ["--resilience-level", "9"], "9"),
    (CIRCUIT, ["--rows", "0"], "--rows must be at least 1"),
    (CIRCUIT, ["--rows", LARGE], LARGE),
    (DENOISER, ["--images", "0"], "--images must be at least 1"),
    (DENOISER, ["--shots", "-1"], "-1"),
    (["standin"], ["--port", "99999"], "99999"),
    (["standin"], ["--port", "-1"], "-1"),
    (["standin"], ["--port", "http"], "http"),
    (["standin"], ["--seed", "-1"], "-1"),
    (["standin"], ["--device", "fake_manla"], "fake_manila"),
    (["ledger", "cap"], ["nan", "--ledger", "book"], "nan"),
    (["ledger", "cap"], ["inf", "--ledger", "book"], "inf"),
    (["ledger", "cap"], ["-1", "--ledger", "book"], "-1"),
    (["ledger", "cap"], ["much", "--ledger", "book"], "much"),
    (["calibration", "diff", "fake_manila", "fake_manila"], ["--top", "-1"], "-1"),
    (["calibration", "best-qubits", "fake_manila", "--circuit", "{world}/chain.qpy"], ["--top", "0"], "top"),
    (["calibration", "best-qubits", "fake_manila", "--circuit", "{world}/chain.qpy"], ["--seeds", "0"], "seeds"),
    (["calibration", "show", "fake_manila"], ["--qubits", "3-99"], "99"),
    (["calibration", "show", "fake_manila"], ["--qubits", "a"], "a"),
    (TRAIN, ["--seed", BIG], BIG),
    (TRAIN, ["--seed", "-1"], "seed"),
    (TRAIN, ["--learning-rate-circuit", "nan"], "learning_rate_circuit must be finite"),
    (["train", "guidance", "--out", "out"], ["--spacing", "scheduler"], "the denoiser brings no scheduler"),
    (TRAIN, ["--pooled-features"], "give both"),
    (TRAIN, ["--n-steps", "0"], "n_steps"),
    (TRAIN, ["--g0", "inf"], "inf"),
    (DENOISE, ["--depth", LARGE], LARGE),
    (DENOISE, ["--n-qubits", "13"], "12"),
    (DENOISE, ["--seed", "-1"], "seed"),
    (DENOISE, ["--learning-rate", "nan"], "learning_rate must be finite"),
    (DENOISE, ["--model", "amplitude", "--n-qubits", "3"], "--model latent"),
    (BACKBONE, ["--seed", BIG], BIG),
    (CLASSIFIER, ["--width", LARGE], LARGE),
    (CLASSIFIER, ["--weight-decay", "-1"], "-1"),
    (AUTOENCODER, ["--latent-channels", "0"], "latent_channels"),
    (AUTOENCODER, ["--data", "nothing"], "nothing"),
    (AUTOENCODER, ["--data", "cifar10", "--feature-weight", "0", "--data-root", "{world}/empty"], "empty"),
    (["train", "pipeline", "--out", "out"], ["--channels", "8,12"], "8"),
    (["train", "pipeline", "--out", "out"], ["--max-tokens", "3"], "max_tokens"),
    (["train", "prompt-classifier", "--out", "out"], ["--role", "judge"], "judge"),
    (["evaluate", "pipeline", "--out", "out"], ["--scales", "nan"], "nan"),
    (["evaluate", "pipeline", "--out", "out"], ["nothing"], "nothing"),
    (["evaluate", "backbone", "digits"], ["--constants", "nan"], "must be finite"),
    (["evaluate", "backbone", "digits"], ["--images", "0"], "0"),
    (["evaluate", "backbone", "{world}/policy"], [], "policy"),
    ([*SAMPLE, "--prompt", "a red seven"], ["--pipeline", "nothing"], "nothing"),
    ([*SAMPLE, "--prompt", "a red seven"], ["--pipeline", "{world}/policy"], "policy"),
    (["sample", "--out", "out", "--pipeline", "{world}/empty"], ["--guidance", "2"], "--prompt"),
    ([*SAMPLE, "--pipeline", "{world}/empty"], ["--prompts", "{world}/nothing"], "nothing"),
    (["evaluate", "denoising", "{world}/denoiser"], ["--images", "3"], "3"),
    (["evaluate", "denoising", "{world}/denoiser"], ["--shots", "0"], "0"),
    (["evaluate", "denoising", "{world}/denoiser"], ["--images", LARGE], LARGE),
    (DRAW, ["--shots", "1"], "shots or more"),
    (DRAW, ["--images", LARGE], LARGE),
    (DRAW, ["--mitigation", "zoe"], "zne"),
    (DRAW, ["--resilience-level", "1"], "level 0 only"),
    (ROLLOUT, ["--images", LARGE], LARGE),
    (ROLLOUT, ["--seed", BIG], BIG),
    (ROLLOUT, ["--shots", "20000000"], "20000000"),
    (TUNE, ["--num-envs", LARGE], LARGE),
    (TUNE, ["--compare-images", LARGE], LARGE),
    (DENOISE, ["--n-steps", "100000"], "100000"),
    (STUDY, ["--workers", LARGE], LARGE),
    (ROLLOUT, ["--max-qpu-seconds", "nan"], "nan"),
    (TUNE, ["--updates", "0"], "updates"),
    (MEASURED, ["--max-session-seconds", "-1"], "-1"),
    (STUDY, ["--workers", "0"], "workers"),
    (STUDY, ["--repeats", "1"], "repeats"),
    (["study", "trainability", "--out", "out"], ["--qubits", "4,2"], "qubits must rise"),
    (["study", "trainability", "--out", "out"], ["--engines", "nosy"], "nosy"),
    ([*PERCEPTION, "g=2"], [], "two or more runs"),
    ([*PERCEPTION, "{world}/policy"], ["{world}/policy"], "different names"),
    ([*PERCEPTION, "{world}/policy"], ["{world}/nothing"], "no folder {world}/nothing"),
    ([*PERCEPTION, "{world}/policy"], ["{world}/empty"], "cannot be compared"),
    ([*PERCEPTION, "{world}/empty"], ["{world}"], "no PNGs"),
    ([*PERCEPTION, "{world}/policy"], ["g=much"], "g=much"),
    ([*PERCEPTION, "{world}/policy", "g=2"], ["--images", "2"], "images must be at least 4"),
    ([*PERCEPTION, "{world}/policy", "g=2"], ["--checks", "1"], "checks must be at least 4"),
    ([*PERCEPTION, "{world}/policy", "g=2"], ["--question", "nicer"], "nicer"),
    ([*PERCEPTION, "{world}/policy", "g=2"], ["--consent", "{world}/nothing"], "{world}/nothing"),
    ([*PERCEPTION, "{world}/policy", "g=2"], ["--lpips", "{world}/nothing"], "{world}/nothing"),
    (["study", "perception", "analyse"], ["--study", "{world}/empty"], "study.json"),
    (["study", "perception", "analyse"], ["answers.json", "--study", "{world}/policy"], "study.json"),
    # -- flags that do not go together
    (COST, ["--rows", "3"], "--rows does not go with"),
    (CIRCUIT, ["--images", "3"], "--images does not go with"),
    (DENOISER, ["--mitigation", "readout:measured:2"], "readout"),
    (["evaluate", "denoising", "{world}/denoiser"], ["--max-qpu-seconds", "3"], "--max-qpu-seconds"),
    (DRAW, ["--engine", "noisy"], "no --engine"),
    (DRAW, ["--overwrite", "--resume"], "--resume"),
    (["evaluate", "guidance", "{world}/policy"], ["--max-qpu-seconds", "3"], "--max-qpu-seconds"),
    (["evaluate", "guidance", "{world}/policy"], ["--shots", "20"], "--device"),
    (ROLLOUT, ["--engine", "noisy"], "--engine"),
    (ROLLOUT, ["--seeds", "3"], "--seeds"),
    (ROLLOUT, ["--overwrite", "--resume"], "--resume"),
    (["distill", "{world}/policy", "--out", "out"], ["--mode", "batch"], "--mode"),
    ([*MEASURED, "--into"], ["network"], "--into"),
    # -- names of devices, engines, strategies, data sets
    (COST, ["--device", "fake_manla"], "fake_manila"),
    (COST, ["--device", "ibm_nowhere"], "account"),
    (COST, ["--device", ""], "device"),
    (COST, ["--device", NUL], "NUL"),
    (COST, ["--mitigation", "zme"], "zne"),
    (COST, ["--mitigation", "zne:linear:3,1"], "3"),
    (COST, ["--mitigation", "+"], "''"),
    (["calibration", "show"], ["fake_nothing"], "fake_nothing"),
    (["calibration", "snapshot"], ["ideal"], "ideal"),
    (DENOISE, ["--data", "digit"], "digits"),
    (DENOISE, ["--ansatz", "chian"], "chain"),
    (TRAIN, ["--engine", "shots:"], "shots"),
    (TRAIN, ["--policy", "quantom"], "quantum"),
    # -- files and folders that are missing, of another kind, or damaged
    (["cost"], ["nowhere"], "nowhere"),
    (["cost"], [""], "not a run folder"),
    (["cost"], ["{world}/empty"], "not a run folder"),
    (["cost"], ["{world}/book"], "is a ledger"),
    (["cost"], ["{world}/policy/model"], "give {world}/policy"),
    (["cost"], ["{world}/policy/manifest.json", "--device", "fake_manila"], "manifest.json"),
    (["cost"], ["{world}/nothing.qpy", "--device", "fake_manila"], "nothing.qpy"),
    (["cost"], ["{world}/cut.qpy", "--device", "fake_manila"], "cut.qpy"),
    (["cost"], ["/dev/null", "--device", "fake_manila"], "/dev/null"),
    (["cost"], ["/proc/self/mem", "--device", "fake_manila"], "/proc/self/mem"),
    (["cost"], [LONG, "--device", "fake_manila"], "File name too long"),
    (["cost"], ["{world}/no manifest"], "manifest.json"),
    (["cost"], ["{world}/cut manifest"], "manifest.json"),
    (["cost"], ["{world}/list manifest"], "manifest.json"),
    (["evaluate", "guidance"], ["{world}/no reward"], "no reward/config.json does not describe a guidance run"),
    (["train", "guidance", "--resume", "--out"], ["{world}/no reward"], "('reward' is missing)"),
    (["cost"], ["{world}/other version"], "99"),
    (["cost"], ["{world}/cut model"], "device.snapshot.json.gz"),
    (["cost"], ["{world}/cut weights"], "cut weights"),
    (["cost"], ["{world}/cut denoiser", "--device", "fake_manila"], "cut denoiser"),
    (COST, ["--device", "{world}/cut.json"], "cut.json"),
    (COST, ["--device", "{world}/foreign.json"], "foreign.json"),
    (COST, ["--device", "{world}/nothing.json.gz"], "nothing.json.gz"),
    (COST, ["--device", "{world}/empty"], "empty"),
    (COST, ["--device", "nowhere.json"], "nowhere.json"),
    (["calibration", "show"], ["{world}/foreign.json"], "foreign.json"),
    (["calibration", "diff", "fake_manila"], ["{world}/cut.json"], "cut.json"),
    (["calibration", "diff", "fake_manila"], ["fake_torino"], "fake_torino"),
    (["calibration", "best-qubits", "fake_manila"], ["--circuit", "{world}/cut.qpy"], "cut.qpy"),
    (["calibration", "best-qubits", "fake_manila"], ["--circuit", "{world}/empty"], "empty"),
    (["evaluate", "guidance"], ["{world}/denoiser"], "denoiser"),
    (["evaluate", "denoising"], ["{world}/policy"], "guidance"),
    (["evaluate", "guidance"], ["nowhere"], "nowhere"),
    (["distill"], ["{world}/denoiser", "--out", "out"], "denoiser"),
    (["fine-tune", "nowhere"], [*POLICY[1:], "--out", "out"], "nowhere"),
    (TRAIN, ["--backbone", "{world}/empty"], "empty"),
    (TRAIN, ["--reward-classifier", "{world}/policy"], "policy"),
    (BACKBONE, ["--data-root", "{world}/empty", "--data", "mnist16"], "empty"),
    (TRAIN, ["--observables", "adaptive:9"], "allowed: 1 to 6"),
    (BACKBONE, ["--depth", "3"], "add --bottleneck quantum"),
    (BACKBONE, ["--latent-shape", "4,8,8"], "(--autoencoder"),
    (["evaluate", "guidance", "{world}/policy", "--device", "fake_manila"], ["--engine", "noisy+decoupling"],
     "train the policy with --scheduled"),
    (BACKBONE, ["--bottleneck", "quantumm"], "did you mean quantum"),
    (BACKBONE, ["--bottleneck", "quantum", "--observables", "x"], "adaptive:K"),
    (BACKBONE, ["--bottleneck", "quantum", "--channels", "8,8", "--attention", "false,false", "--engine", "noisy"],
     "has no noise"),
    (["evaluate", "backbone", "digits"], ["--engine", "noisy"], "has no circuit"),
    (BACKBONE, ["--data", "fashion28", "--data-root", "{world}/nothing.qpy"], "nothing.qpy"),
    (["evaluate", "denoising", "{world}/denoiser"], ["--evaluation-classifier", "{world}/empty"], "empty"),
    # -- places that cannot be written
    (TRAIN, ["--out", "/proc/qhw"], "/proc/qhw"),
    (DENOISE, ["--out", "/dev/null/x"], "/dev/null"),
    (CLASSIFIER, ["--out", "{world}/nothing.qpy"], "nothing.qpy"),
    (BACKBONE, ["--out", LONG], "File name too long"),
    (BACKBONE, ["--resume"], "out"),
    (DENOISE, ["--out", "{world}/policy", "--overwrite"], "policy"),
    (TRAIN, ["--out", "{world}/policy"], "policy"),
    (ROLLOUT, ["--out", "/proc/qhw"], "/proc/qhw"),
    (ROLLOUT, ["--ledger", "/proc/qhw"], "/proc/qhw"),
    (STUDY, ["--out", "/proc/qhw"], "/proc/qhw"),
    (STUDY, ["--report-only"], "out"),
    (["calibration", "snapshot", "fake_manila"], ["--out", "/proc/x.json"], "/proc/x.json"),
    (["calibration", "snapshot", "fake_manila"], ["--out", "x.txt"], "x.txt"),
    (["calibration", "snapshot", "fake_manila"], ["--out", "{world}/foreign.json"], "foreign.json"),
    (["calibration", "show", "fake_manila"], ["--picture", "x.bmp"], "x.bmp"),
    (["calibration", "show", "fake_manila"], ["--picture", "{world}/empty"], "empty"),
    (["calibration", "show", "fake_manila"], ["--picture", "/proc/x.png"], "/proc/x.png"),
    # -- the ledger
    (LIST, ["nowhere"], "nowhere"),
    (LIST, ["{world}/empty"], "empty"),
    (LIST, ["{world}/nothing.qpy"], "nothing.qpy"),
    (LIST, [NUL], "NUL"),
    (LIST, [LONG], "nnn"),
    (LIST, ["/proc"], "/proc"),
    (LIST, ["{world}/locks a file"], "locks is a file"),
    (LIST, ["{world}/database a folder"], "ledger.sqlite is a folder"),
    (LIST, ["{world}/database no database"], "database no database"),
    (LIST, ["{world}/database foreign"], "database foreign"),
    (LIST, ["{world}/database empty"], "database empty"),
    (["ledger", "recover", "--ledger"], ["{world}/database a folder"], "ledger.sqlite"),
    (["ledger", "recover", "--ledger"], ["{world}/locks a file"], "locks is a file"),
    (["ledger", "list", "--ledger", "{world}/book"], ["--run", "nobody"], "nobody"),
    (["ledger", "list", "--ledger", "{world}/book"], ["--run", "roll"], "rollout-1"),
    (["ledger", "list", "--ledger", "{world}/book"], ["--run", ""], "rollout-1"),
    (["ledger", "show", "--ledger", "{world}/book"], ["zzz"], "zzz"),
    (["ledger", "show", "--ledger", "{world}/book"], [""], "''"),
    (["ledger", "adopt", "--ledger", "{world}/book"], ["aaa", ""], "JOB-ID is"),
    (["ledger", "adopt", "--ledger", "{world}/book"], ["zzz", "job"], "zzz"),
    (["ledger", "export", "--ledger", "{world}/book"], ["x.xls"], "x.xls"),
    (["ledger", "export", "--ledger", "{world}/book"], ["/proc/x.csv"], "/proc/x.csv"),
    (["ledger", "export", "--ledger", "{world}/book"], ["{world}/nothing.qpy/x.csv"], "x.csv"),
    (["ledger", "export", "--ledger", "{world}/book", "--run", "nobody"], ["x.csv"], "nobody"),
    (COST, ["--ledger", "{world}/database no database"], "database no database"),
    (TUNE, ["--ledger", "{world}/locks a file"], "locks is a file"),
    # -- extensions of one's own
    (DENOISE, ["--ansatz", "{world}/syntax.py:make"], "syntax.py"),
    (DENOISE, ["--ansatz", "{world}/imports.py:make"], "imports.py"),
    (DENOISE, ["--ansatz", "{world}/own.py:missing"], "missing"),
    (DENOISE, ["--ansatz", "{world}/own.py:number"], "number"),
    (DENOISE, ["--ansatz", "{world}/own.py:raises"], "raises"),
    (DENOISE, ["--ansatz", "nowhere.py:make"], "nowhere.py"),
    (DENOISE, ["--ansatz", "no.such.module:make"], "no.such.module"),
    (DENOISE, ["--data", "{world}/own.py:number"], "number"),
    (DENOISE, ["--data", "{world}/own.py:raises"], "raises"),
    (COST, ["--device", "{world}/syntax.py:DEVICE"], "syntax.py"),
    (COST, ["--device", "{world}/own.py:number"], "number"),
    (COST, ["--device", "{world}/own.py:raises"], "raises"),
    (COST, ["--mitigation", "{world}/own.py:number"], "number"),
    (TRAIN, ["--engine", "{world}/imports.py:Engine"], "imports.py"),
    (["study"], ["{world}/own.py:number"], "number"),
    (["study"], ["{world}/syntax.py:STUDY"], "syntax.py"),
    (["study"], ["{world}/exits.py:STUDY"], "exits.py"),
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and damaged runs, ledgers, files and extensions."""
    world = tmp_path_factory.mktemp("world")
    actor = PolicyConfig(device="fake_manila", depth=1)
    config = {"guidance": GuidanceConfig(n_steps=2, spacing="trailing", noise_pool=24).to_dict(),
              "reward": RewardConfig(**CALIBRATED).to_dict(),
              "ppo": PPOConfig.short(num_iterations=1, num_envs=24).to_dict(), "policy": actor.to_dict()}  # fmt: skip
    with RunFolder.create(world / "policy", kind="guidance", config=config) as run:
        save_policy_model(build_policy(actor, seed=0, device=Device.load("fake_manila")), run.path / "model")
    denoiser = LatentQDM(ReverseConfig(n_qubits=2, n_steps=1, depth=1))
    training = DenoiserTraining(reverse=denoiser.reverse.config)
    with RunFolder.create(world / "denoiser", kind=KIND, config=training.to_dict()) as run:
        save_pretrained(denoiser, run.path / "model")
    for name in ("no manifest", "cut manifest", "list manifest", "other version", "cut model", "cut weights",
                 "no reward"):  # fmt: skip
        shutil.copytree(world / "policy", world / name)
    shutil.copytree(world / "denoiser", world / "cut denoiser")
    (world / "no manifest" / "manifest.json").unlink()
    (world / "list manifest" / "manifest.json").write_text("[]")
    (world / "no reward" / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "reward"}))
    manifest = json.loads((world / "policy" / "manifest.json").read_text())
    (world / "other version" / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    cut(world / "cut manifest" / "manifest.json")
    cut(world / "cut model" / "model" / "device.snapshot.json.gz")
    cut(world / "cut weights" / "model" / "model.safetensors")
    cut(world / "cut denoiser" / "model" / "model.safetensors")

    (world / "empty").mkdir()
    for name in ("nothing.qpy", "nothing.json.gz"):
        (world / name).write_bytes(b"")
    (world / "foreign.json").write_text('{"some": "thing"}')
    take_snapshot("fake_manila", world / "cut.json")
    cut(world / "cut.json")
    save_circuit(published_circuit("policy_4q_2l_chain").circuit, world, "chain")
    shutil.copy(world / "chain.qpy", world / "cut.qpy")
    cut(world / "cut.qpy")

    with Ledger.open(world / "book") as ledger:
        for key, run_name in (("a" * 64, "rollout-1"), ("b" * 64, "rollout-2")):
            ledger.plan(key, run=run_name, purpose="p", device="fake_manila", circuits=1, shots=1,
                        estimate_seconds=1.0, paid=False, summary={})  # fmt: skip
    for name in ("locks a file", "database a folder", "database no database", "database foreign", "database empty"):
        shutil.copytree(world / "book", world / name)
        for left in world.glob(f"{name}/ledger.sqlite-*"):
            left.unlink()
    shutil.rmtree(world / "locks a file" / "locks", ignore_errors=True)
    (world / "locks a file" / "locks").write_text("")
    for name in ("a folder", "no database", "foreign", "empty"):
        (world / f"database {name}" / "ledger.sqlite").unlink()
    (world / "database a folder" / "ledger.sqlite").mkdir()
    (world / "database no database" / "ledger.sqlite").write_text("no database " * 500)
    (world / "database empty" / "ledger.sqlite").write_bytes(b"")
    connection = sqlite3.connect(world / "database foreign" / "ledger.sqlite")
    connection.execute("CREATE TABLE holidays (day TEXT)")
    connection.commit()
    connection.close()

    (world / "syntax.py").write_text("def make(:\n")
    (world / "imports.py").write_text("import no_such_library_anywhere\n")
    (world / "exits.py").write_text("import sys\nsys.exit(3)\n")
    (world / "own.py").write_text(
        "number = 5\n\n\ndef raises(*arguments, **settings):\n    raise KeyError('what it wanted')\n"
    )
    return world


def cut(path: Path) -> None:
    """Half of a file."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to stand in; it and the world are as they were afterwards."""
    for name in ("QISKIT_IBM_TOKEN", "QISKIT_IBM_URL", "QISKIT_IBM_INSTANCE", "QHW_LEDGER", "QHW_PROGRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = contents(world)
    yield tmp_path / "here"
    assert contents(tmp_path / "here") == {}
    assert contents(world) == before


def contents(folder: Path) -> dict[str, int | None]:
    """Every path below a folder, with its size."""
    paths = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {str(path): path.stat().st_size if path.is_file() else None for path in paths}


def told(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """What a wrong command says: one line, an exit code of the documentation, nothing on stdout."""
    capsys.readouterr()
    code: object
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code in range(2, 8), captured
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("qhw"), captured.err
    assert ": error: " in captured.err
    assert "Traceback" not in captured.err
    assert not re.search(r"\w+Config\b", captured.err), "a class of ours, of which the command line knows nothing"
    assert captured.out == ""
    return captured.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "mistake", "words"),
    [pytest.param(*case, id=f"{number}-{'-'.join([*case[0][:2], *case[1]])[:70]}".replace("\0", "NUL"))
     for number, case in enumerate(WRONG)],
)  # fmt: skip
def test_a_wrong_command_is_a_sentence(
    world: Path, here: Path, capsys: pytest.CaptureFixture[str], command: list[str], mistake: list[str], words: str
) -> None:
    given = [word.replace("{world}", str(world)) for word in (*command, *mistake)]
    assert words.replace("{world}", str(world)) in told(capsys, given)


def test_they_are_many_and_of_every_command() -> None:
    assert len({(*command, *mistake) for command, mistake, _ in WRONG}) == len(WRONG) >= 150
    studies = {path for path, (text, _) in COMMANDS.items() if not text}  # they share one command
    told = {path for path in COMMANDS for command, mistake, _ in WRONG
            if path == tuple([*command, *mistake][: len(path)])}  # fmt: skip
    assert told - studies == set(COMMANDS) - studies


FULL = [
    ["calibration", "snapshot", "fake_manila", "--out", "x.json"],
    ["calibration", "show", "fake_manila", "--picture", "x.png"],
    ["ledger", "export", "--ledger", "{world}/book", "x.csv"],
    ["ledger", "export", "--ledger", "{world}/book", "x.json"],
    ["ledger", "cap", "5", "--ledger", "new"],
    [*CLASSIFIER, "--steps", "1"],
    DENOISE,
    TRAIN,
]


@pytest.mark.slow
@pytest.mark.parametrize("command", FULL, ids=lambda command: "-".join(command[:2] + command[-1:]))
def test_a_full_disk_is_a_sentence(
    world: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
) -> None:
    """Full when the first file is moved into place."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    error = told(capsys, [word.replace("{world}", str(world)) for word in command])
    monkeypatch.undo()
    assert "No space left on device; make room there" in error or "cannot be" in error
    shutil.rmtree(here / "new", ignore_errors=True)  # an empty folder of a ledger is none yet


@pytest.mark.parametrize(("name", "value", "command", "words"), [
    ("QHW_LEDGER", "/proc/qhw", ["ledger", "cap", "5"], "/proc/qhw"),
    ("QHW_LEDGER", "{world}/nothing.qpy", ["ledger", "list"], "nothing.qpy"),
    ("QHW_LEDGER", "{world}/locks a file", COST, "locks is a file"),
    ("QHW_LEDGER", LONG, ["ledger", "recover"], "nnn"),
    ("QISKIT_IBM_TOKEN", "no key", ["devices"], "account"),
    ("QISKIT_IBM_TOKEN", "", [*COST, "--device", "ibm_nowhere"], "account"),
    ("QHW_PROGRESS", "perhaps", [*COST, "--shots", "0"], "shots is 0"),
    ("HOME", "/proc/qhw", [*COST, "--shots", "0"], "shots is 0"),
])  # fmt: skip
def test_nonsense_in_the_environment_is_a_sentence(
    world: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str,
    command: list[str], words: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("QISKIT_IBM_URL", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setenv(name, value.replace("{world}", str(world)))
    assert words in told(capsys, [word.replace("{world}", str(world)) for word in command])
