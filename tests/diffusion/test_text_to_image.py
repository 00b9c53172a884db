from __future__ import annotations

import builtins
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from qhw_diffusion.cli import main
from qhw_diffusion.diffusion import load_dataset, load_pipeline
from qhw_diffusion.diffusion import text_to_image as t2i
from qhw_diffusion.diffusion.text_to_image import training
from qhw_diffusion.errors import (
    DamagedFileError,
    InvalidInputError,
    MissingDataError,
    MissingDependencyError,
    RunFolderError,
    UnknownNameError,
)
from qhw_diffusion.runs import RunFolder


def tiny(**changes: Any) -> t2i.TextToImageConfig:
    small = {
        "autoencoder_channels": (8, 8, 8),
        "channels": (8, 16),
        "text_width": 16,
        "text_layers": 1,
        "autoencoder_steps": 2,
        "autoencoder_batch_size": 2,
        "steps": 2,
        "batch_size": 2,
        "latents_per_prompt": 1,
        "warmup": 0,
        "log_every": 1,
    }
    return t2i.TextToImageConfig(**(small | changes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Any]:
    """A run folder of the tiny recipe, and the pipeline that training returned."""
    config = tiny()
    with RunFolder.create(tmp_path_factory.mktemp("t2i") / "run", kind="pipeline", config=config.to_dict()) as run:
        return run, t2i.train_text_to_image(config, run)


def state(pipeline: Any) -> dict[str, torch.Tensor]:
    parts = {"vae": pipeline.vae, "unet": pipeline.unet, "text": pipeline.text_encoder}
    return {f"{part}.{k}": v for part, module in parts.items() for k, v in module.state_dict().items()}


def assert_same(one: Any, other: Any) -> None:
    first, second = state(one), state(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert one.vae.config.scaling_factor == other.vae.config.scaling_factor


# -- the table of prompts and its images -----------------------------------------------------------------------------


def test_the_table_has_every_combination_of_two_colours_once() -> None:
    assert len(set(t2i.PROMPTS)) == len(t2i.PROMPTS) == 300
    wanted = {f"a {c} {d} on a {g} ground" for d in t2i.DIGITS for c in t2i.COLOURS for g in t2i.COLOURS if c != g}
    assert set(t2i.PROMPTS) == wanted
    for label in (0, 7, 299):
        assert t2i.prompt(*t2i.ATTRIBUTE_TABLE[label].tolist()) == t2i.PROMPTS[label]
    assert torch.equal(t2i.attributes_of([t2i.PROMPTS[5], f" {t2i.PROMPTS[0].upper()}  "]), t2i.ATTRIBUTE_TABLE[[5, 0]])


def test_held_out_combinations_are_sixty_and_spread_over_all_values() -> None:
    assert [*t2i.TRAINED.tolist(), *t2i.HELD_OUT.tolist()] == list(range(300))
    held, kept = t2i.ATTRIBUTE_TABLE[t2i.HELD_OUT], t2i.ATTRIBUTE_TABLE[t2i.TRAINED]
    assert held[:, 0].bincount().tolist() == [6] * 10
    assert held[:, 1].bincount().tolist() == held[:, 2].bincount().tolist() == [10] * 6
    # every pair of attributes of a held-out prompt occurs in a trained one
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert {tuple(row) for row in held[:, [i, j]].tolist()} <= {tuple(row) for row in kept[:, [i, j]].tolist()}


@pytest.mark.parametrize("text", ["a red seven", "a red seven on a red ground", "a pink seven on a blue ground", ""])
def test_a_prompt_that_is_none_of_the_table_is_named(text: str) -> None:
    with pytest.raises(InvalidInputError, match="no prompt of the coloured digits"):
        t2i.attributes_of([text])


def test_writers_are_disjoint_and_known() -> None:
    sets = {which: {image.numpy().tobytes() for image in t2i.writers(which).images} for which in t2i.WRITERS}
    assert [len(t2i.writers(which)) for which in t2i.WRITERS] == [1200, 397, 200]
    assert t2i.writers("heldout").labels.bincount().tolist() == [20] * 10
    assert not sets["train"] & sets["heldout"]
    assert not sets["train"] & sets["evaluation"]
    assert not sets["evaluation"] & sets["heldout"]
    with pytest.raises(UnknownNameError, match="writers"):
        t2i.writers("test")


@pytest.mark.slow
def test_the_data_set_is_deterministic_and_loads_by_name() -> None:
    train, again = t2i.coloured_digits("train"), t2i.coloured_digits("train")
    heldout = load_dataset("qhw_diffusion.diffusion.text_to_image:coloured_digits", "heldout")
    assert train.fingerprint == again.fingerprint != heldout.fingerprint
    assert (len(train), len(heldout), train.image_shape, train.n_classes) == (3840, 3840, (3, 32, 32), 240)
    assert heldout.labels.bincount().tolist() == [16] * 240
    with pytest.raises(UnknownNameError, match="split"):
        t2i.coloured_digits("test")
    few = t2i.coloured_digits("train", prompts=[t2i.PROMPTS[3], t2i.PROMPTS[200]])
    assert (few.n_classes, few.labels.bincount().tolist()) == (2, [600, 600])  # more of each where there are few
    ten = load_dataset("qhw_diffusion.diffusion.text_to_image:coloured_digits", "train", prompts=t2i.TEN)
    assert (ten.n_classes, ten.labels.bincount().tolist()) == (10, [120] * 10)
    assert ten.fingerprint == t2i.coloured_digits("train", prompts=t2i.TEN).fingerprint


def test_images_have_the_colours_they_are_asked_for() -> None:
    """The corner is ground, the middle of a one is digit, within the shades' spread."""
    rgb = {
        "red": (0.85, 0.12, 0.12), "yellow": (0.95, 0.85, 0.15), "green": (0.13, 0.62, 0.22),
        "blue": (0.13, 0.30, 0.85), "purple": (0.58, 0.20, 0.72), "white": (0.93, 0.93, 0.93),
    }  # fmt: skip
    wanted = t2i.ATTRIBUTE_TABLE[t2i.ATTRIBUTE_TABLE[:, 0] == 1].repeat(20, 1)
    images = (t2i.draw(wanted, torch.Generator().manual_seed(0)) + 1) / 2
    corners = images[:, :, 0, 0]
    assert images.min() >= 0
    assert images.max() <= 1
    for value, name in enumerate(t2i.COLOURS):
        of_ground = corners[wanted[:, 2] == value]
        assert (of_ground - torch.tensor(rgb[name])).abs().max() < 0.09
        # the pixel that is least like its ground
        rows = wanted[:, 1] == value
        distance = (images[rows] - corners[rows][:, :, None, None]).square().sum(1).flatten(1)
        darkest = images[rows].flatten(2).gather(2, distance.argmax(1)[:, None, None].expand(-1, 3, 1)).squeeze(2)
        assert (darkest - torch.tensor(rgb[name])).abs().max() < 0.12


# -- tokenizer -------------------------------------------------------------------------------------------------------


def test_every_word_is_one_token_and_the_tokenizer_survives_saving(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    made = t2i.build_tokenizer(["a", "on", "three", "red", "reed", "green"], 8)
    made.save_pretrained(tmp_path)
    for tokenizer in (made, CLIPTokenizer.from_pretrained(tmp_path)):
        assert tokenizer("a Green three on").input_ids == [0, 2, 7, 4, 3, 1]
        assert tokenizer.eos_token_id == 1  # 2 would make transformers look for the end of a prompt in another way
        assert tokenizer.model_max_length == 8
        assert t2i.unknown_words(tokenizer, ["a red three", "a blue tree on red", "a blue"]) == ["blue", "tree"]


def test_words_that_break_each_other_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="break 'bcdx'"):
        t2i.build_tokenizer(["cdefg", "bcdx"], 8)  # the longer word merges c and d first, and then b has no c


def test_unknown_words_and_prompts_that_are_cut_are_said(trained: tuple[RunFolder, Any]) -> None:
    tokenizer = trained[1].tokenizer
    t2i.check_prompts(tokenizer, t2i.PROMPTS)
    with pytest.raises(InvalidInputError, match=r"does not know 'crimson', 'ten'; it knows a, on, ground, red"):
        t2i.check_prompts(tokenizer, ["a crimson ten on a blue ground"])
    with pytest.raises(InvalidInputError, match=r"has 13 tokens .* cuts after 12"):
        t2i.check_prompts(tokenizer, ["a red seven on a blue ground on a red ground"])


def test_a_tokenizer_without_a_list_of_words_tells_its_unknown_token() -> None:
    from transformers import CLIPTokenizer

    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "b": 3, "b</w>": 4}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=6)
    assert t2i.unknown_words(tokenizer, ["a b bb", "c bc"]) == ["c", "bc"]


# -- training and the folder -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_is_repeatable_and_its_folder_is_a_stable_diffusion_pipeline(trained: tuple[RunFolder, Any]) -> None:
    from diffusers import StableDiffusionPipeline

    run, pipeline = trained
    before = torch.get_rng_state()
    assert_same(t2i.train_text_to_image(tiny()), pipeline)
    assert torch.equal(torch.get_rng_state(), before)
    assert [(row["step"], "losses/unet" in row) for row in run.metrics()] == [
        (1, False),
        (2, False),
        (3, True),
        (4, True),
    ]
    # as any user of diffusers reads it: dtypes, weights and scheduler fit each other
    plain = StableDiffusionPipeline.from_pretrained(run.path / "model", low_cpu_mem_usage=False)
    plain.set_progress_bar_config(disable=True)
    assert_same(plain, pipeline)
    ours = load_pipeline(run.path)
    assert not any(p.requires_grad for p in ours.unet.parameters())
    made = [
        p(
            "a red seven on a blue ground", num_inference_steps=2, output_type="pt", generator=torch.manual_seed(3)
        ).images
        for p in (plain, pipeline, ours)
    ]
    assert made[0].shape == (1, 3, 32, 32)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
    tables = [(run.path / "model" / file).read_text().splitlines() for file in ("prompts.txt", "held-out-prompts.txt")]
    assert (tuple(tables[0]), tuple(tables[1])) == (t2i.PROMPTS[:240], t2i.PROMPTS[240:])
    recipe = json.loads((run.path / "model" / "recipe.json").read_text())
    assert t2i.TextToImageConfig.from_dict(recipe["config"]) == tiny()
    assert [len(recipe["history"][name]) for name in ("autoencoder", "unet")] == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 2, 3])
def test_interrupted_training_resumes_bit_for_bit(
    trained: tuple[RunFolder, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Ctrl-C in the autoencoder's phase, at its end, and in the U-Net's."""
    config, done = tiny(), 0
    one_step = training._Phase.one_step

    def interrupted(self: Any) -> None:
        nonlocal done
        one_step(self)
        done += 1
        if done == after:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(training._Phase, "one_step", interrupted)
    with RunFolder.create(tmp_path / "run", kind="pipeline", config=config.to_dict()) as run:
        with pytest.raises(KeyboardInterrupt):
            t2i.train_text_to_image(config, run)
        assert not (run.path / "model").exists()
        resumed = t2i.train_text_to_image(config, run, resume=True)
        assert done == 4
        assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4]
        with pytest.raises(RunFolderError, match="not the same run"):
            t2i.train_text_to_image(tiny(seed=1), run, resume=True)
    assert_same(resumed, trained[1])


def test_every_part_is_trained(trained: tuple[RunFolder, Any]) -> None:
    before = state(training._Training(tiny()).pipeline)
    after = state(trained[1])
    still = {name for name, value in after.items() if torch.equal(value, before[name].half().float())}
    # what no training image or prompt of two batches needed, and biases before a softmax, whose gradient is zero
    assert {name.split(".")[0] for name in after} == {"vae", "unet", "text"}
    assert len(still) < 0.1 * len(after), sorted(still)


def test_a_missing_transformers_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "transformers":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    for call in (lambda: t2i.build_pipeline(tiny()), lambda: load_pipeline(t2i.NAME)):
        with pytest.raises(MissingDependencyError, match=r"pip install 'qhw-diffusion\[pipelines\]'"):
            call()
    assert main(["train", "pipeline", "--out", str(tmp_path / "run")]) == 2
    assert "pip install" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_folders_that_are_no_pipeline_are_said(trained: tuple[RunFolder, Any], tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"model_index\.json.* with the package come: coloured-digits"):
        load_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(DamagedFileError, match="does not describe a pipeline"):
        load_pipeline(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": (8, 12)}, "norm_groups 8 does not divide all of channels"),
        ({"cross_attention": (True,)}, "differ in length"),
        ({"autoencoder_channels": (8,) * 6}, "leave less than a pixel"),
        ({"text_width": 18}, "attention_heads 4 does not divide 18"),
        ({"prediction_type": "sample"}, "prediction_type"),
        ({"max_tokens": 8}, "max_tokens must be at least 9"),
        ({"learning_rate": 0.0}, "learning rates"),
        ({"kl_weight": -1.0}, "kl_weight"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_configurations_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        tiny(**changes)
