"""The human study: pictures of runs and folders, the page's structure, answers read and refused, the analysis."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from perception_people import answers, pictures, written
from PIL import Image

from qhw_diffusion.cli import main
from qhw_diffusion.errors import InvalidInputError, MissingDataError
from qhw_diffusion.guidance import GuidanceConfig, PolicyConfig, PPOConfig, RewardConfig, rollout, train_guidance
from qhw_diffusion.guidance.config import ModelConfig
from qhw_diffusion.guidance.evaluation import EVALUATION_SEED, draw_initial_noise, load_models
from qhw_diffusion.studies.perception.analyse import analyse_answers
from qhw_diffusion.studies.perception.make import Asked, study_of
from qhw_diffusion.studies.perception.pictures import pictures_of


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag == "script" and dict(attrs).get("id") == "data"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.data += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def test_the_page_is_whole_and_tells_nothing(tmp_path: Path) -> None:
    found = pictures(runs=3)
    evil = "</script><b>thing & \"0'"
    key, _ = written(tmp_path / "s", found, consent=f"Yes {evil}")
    text = (tmp_path / "s" / "page.html").read_text()
    page = Elements()
    page.feed(text)
    data = json.loads(page.data)
    assert data["consent"] == f"Yes {evil}"
    # nothing from elsewhere, and nothing can be: the policy of the page forbids it
    for tag, attributes in page.found:
        assert tag not in ("link", "iframe", "object", "embed"), tag
        assert not attributes.get("src") and not attributes.get("href"), (tag, attributes)  # noqa: PT018
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest|sendBeacon|WebSocket", text)
    policy = next(a["content"] for tag, a in page.found if tag == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    # every element that the script asks for is there, once
    ids = [a["id"] for _, a in page.found if "id" in a]
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'\$\("([a-z-]+)"\)', text)) <= set(ids)
    # neither names, nor metrics, nor which questions check attention
    for secret in (*found.runs, "confidence", "check", "noised", "known"):
        assert secret not in page.data
    assert {len(trial) for trial in data["trials"]} == {4}
    assert {trial["id"] for trial in data["trials"]} == set(key["trials"])
    assert len(data["training"]) == 2
    # three runs in three pairs of 12, eight checks; every picture is that of the key
    assert len(data["trials"]) == 3 * 12 + 8
    for trial in data["trials"]:
        assert sorted(trial["pictures"]) == sorted(key["trials"][trial["id"]]["pictures"])
    pair = next(trial for trial in key["trials"].values() if trial["kind"] == "pair" and trial["runs"] == [1, 2])
    for run, name in zip(pair["runs"], pair["pictures"], strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(data["pictures"][name])))
        assert not shown.info  # no text in the PNG
        expected = ((found.images[run, pair["index"], 0] + 1) * 127.5).round()
        assert np.array_equal(np.asarray(shown), expected.numpy().astype(np.uint8))
    # order of names, of questions and of sides does not follow the runs
    kinds = [trial["kind"] for trial in key["trials"].values()]
    assert kinds != sorted(kinds)
    assert len({tuple(t["pictures"]) == tuple(sorted(t["pictures"])) for t in key["trials"].values()}) == 2


def test_what_cannot_be_asked_is_refused() -> None:
    found = pictures()
    nameless = type(found)(**{**found.__dict__, "texts": (), "known_texts": ()})
    with pytest.raises(InvalidInputError, match="--classes"):
        study_of(nameless, Asked(images=12))
    key, page = study_of(nameless, Asked(images=12, question="real"))
    assert {trial["text"] for trial in page["trials"]} == {""}
    same = type(found)(**{**found.__dict__, "images": found.images[[0, 0]]})
    with pytest.raises(InvalidInputError, match="the same pictures"):
        study_of(same, Asked(images=12))
    partly = found.images.clone()
    partly[1, :5] = partly[0, :5]
    key, page = study_of(type(found)(**{**found.__dict__, "images": partly}), Asked(images=12))
    assert len(key["trials"]) == 7 + 8
    assert "5 pairs are left out" in key["notes"][-1]


def write_pngs(folder: Path, images: torch.Tensor, prompts: bool = False) -> None:
    folder.mkdir()
    for k, image in enumerate(images):
        Image.fromarray(((image.permute(1, 2, 0) + 1) * 127.5).byte().numpy()).save(folder / f"{k:03d}.png")
    if prompts:
        listed = [{"file": f"{k:03d}.png", "prompt": f"prompt {k}"} for k in range(len(images))]
        (folder / "guidance.json").write_text(json.dumps({"images": listed}))
        Image.new("RGB", (4, 4)).save(folder / "guidance.png")


def test_folders_of_pngs(tmp_path: Path) -> None:
    images = torch.rand(2, 9, 3, 8, 10, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for k in (0, 1):
        write_pngs(tmp_path / f"samples{k}", images[k], prompts=True)
        write_pngs(tmp_path / f"plain{k}", images[k])
    samples, plain = ([str(tmp_path / f"{name}{k}") for k in (0, 1)] for name in ("samples", "plain"))
    found = pictures_of(samples, 9, seed=0, known=10)
    assert found.runs == ("samples0", "samples1")
    assert found.texts == tuple(f"prompt {k}" for k in range(9))
    assert torch.allclose(found.images, images, atol=2 / 127.5)
    some = pictures_of(plain, 5, seed=1, known=3)
    assert some.images.shape == (2, 5, 3, 8, 10)
    assert some.texts == ()
    for runs, n, words in (
        ([plain[0]], 5, "two or more"),
        ([plain[0], plain[0]], 5, "different names"),
        (plain, 10, "--images"),
        ([plain[0], "g=2"], 5, "cannot be compared"),
        ([plain[0], samples[1]], 5, "another prompt"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            pictures_of(runs, n, seed=0, known=2)
    with pytest.raises(MissingDataError, match="no folder"):
        pictures_of([plain[0], str(tmp_path / "nowhere")], 5, seed=0, known=2)
    (Path(plain[1]) / "000.png").unlink()
    with pytest.raises(InvalidInputError, match=r"000\.png"):
        pictures_of(plain, 5, seed=0, known=2)
    Image.new("RGB", (4, 4)).save(Path(plain[1]) / "000.png")
    with pytest.raises(InvalidInputError, match="different sizes"):
        pictures_of(plain, 9, seed=0, known=2)


def test_runs_are_sampled_from_the_noise_of_the_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guidance = GuidanceConfig(n_steps=2, spacing="trailing", g0=1.2, noise_pool=24)
    models = load_models(ModelConfig())
    ppo = PPOConfig(num_iterations=1, num_envs=24, num_minibatches=1)
    policy = PolicyConfig(kind="matched")
    trained = train_guidance(guidance, ppo, RewardConfig(), policy, path=tmp_path / "mine", backbone=models.backbone,
                             scorer=models.reward, real=models.train)  # fmt: skip
    run = str(tmp_path / "mine")
    assert main(["study", "perception", "make", run, "g=3", "--images", "6", "--out", str(tmp_path / "s")]) == 0
    assert "6 pairs of pictures and 8 attention checks" in capsys.readouterr().out
    found = pictures_of([run, "g=3"], 6, seed=0, known=10)
    labels, noise = draw_initial_noise(models.backbone, models.heldout, 6, EVALUATION_SEED)
    for k, player in enumerate((trained.policy, 3.0)):
        expected = rollout(models.backbone, trained.config, labels, noise, player, scorer=models.reward)
        assert torch.equal(found.images[k], expected.images.clamp(-1, 1))
        judged = models.evaluation_classifier.logits(expected.images.clamp(-1, 1)).softmax(1)
        assert torch.allclose(found.metrics["confidence"][k], judged[torch.arange(6), labels], atol=1e-6)
    assert found.texts == tuple(f"the digit {int(label)}" for label in labels)
    assert found.known_are == "real (held-out) pictures"
    with pytest.raises(InvalidInputError, match="names 2 classes, the model has 10"):
        pictures_of([run, "g=3"], 6, seed=0, known=10, classes=("a", "b"))
    assert "real" in json.loads((tmp_path / "s" / "study.json").read_text())["checks_show"]
    assert main(["study", "perception", "make", run, "g=3", "--out", str(tmp_path / "s")]) == 2
    assert "no empty folder" in capsys.readouterr().err


def save(folder: Path, people: list[dict[str, Any]]) -> list[Path]:
    files = []
    for content in people:
        files.append(folder / f"answers-{content['rater']}.json")
        files[-1].write_text(json.dumps(content))
    return files


def test_the_analysis_of_known_people(tmp_path: Path) -> None:
    key, _ = written(tmp_path / "s", pictures(runs=3, n=30))
    rng = np.random.default_rng(0)
    beta = [0.8, 0.0, -0.8]

    def first(trial: dict[str, Any]) -> float:
        i, j = trial["runs"]
        return float(1 / (1 + np.exp(beta[j] - beta[i])))

    people = [answers(key, f"r{k:02d}", first, rng) for k in range(14)]
    people.append(answers(key, "asleep", lambda trial: 0.0, rng, attentive=0.0))
    files = save(tmp_path, people)
    told = analyse_answers(files, tmp_path / "s")
    assert "asleep (0 of 8)" in told
    found = json.loads((tmp_path / "s" / "analysis.json").read_text())
    assert [one["name"] for one in found["raters"] if not one["kept"]] == ["asleep"]
    for pair, known in zip(found["pairs"], ((0, 1), (0, 2), (1, 2)), strict=True):
        p = first({"runs": list(known)})
        assert pair["preference"]["low"] <= p <= pair["preference"]["high"]
        assert pair["raters"] == 14
        assert pair["pictures"] == 30
        assert pair["preference"]["mean"] > 0.5
    for one, known_ability in zip(found["abilities"], beta, strict=True):
        assert one["ability"]["low"] <= known_ability <= one["ability"]["high"]
    assert 0.42 < found["left"] < 0.58
    assert found["chance_to_pass_at_random"] == pytest.approx(9 / 256)
    report = (tmp_path / "s" / "report.html").read_text()
    for words in ("Krippendorff", "run-a", "Bradley", "asleep", "confidence"):
        assert words in report


def test_a_metric_that_people_follow_is_found(tmp_path: Path) -> None:
    key, _ = written(tmp_path / "s", pictures(n=30))
    rng = np.random.default_rng(0)

    def first(trial: dict[str, Any]) -> float:
        return float(trial["each"]["confidence"][0] > 0.5)

    analyse_answers(save(tmp_path, [answers(key, f"r{k}", first, rng) for k in range(3)]), tmp_path / "s")
    found = json.loads((tmp_path / "s" / "analysis.json").read_text())
    assert found["correlations"][0]["rho"]["mean"] > 0.8
    assert found["alpha"]["mean"] == 1
    assert found["abilities"] is None


def test_one_person_says_nothing_of_others(tmp_path: Path) -> None:
    key, _ = written(tmp_path / "s", pictures())
    files = save(tmp_path, [answers(key, "alone", lambda trial: 0.5, np.random.default_rng(0))])
    assert "says nothing of other people" in analyse_answers(files, tmp_path / "s")


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def do(content: dict[str, Any]) -> None:
        content[path] = value

    return do


DAMAGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (change("format", 2), "format 1"),
    (change("study", "other"), "answers to study other"),
    (change("rater", ""), "rater is ''"),
    (change("session", None), "session is None"),
    (change("finished", None), "before the end"),
    (change("answers", {}), "no list"),
    (lambda c: c["answers"].pop(), "1 of 20 questions are not answered"),
    (lambda c: c["answers"].append(c["answers"][0]), "answered twice"),
    (lambda c: c["answers"][0].update(trial="t9999"), "none of this study"),
    (lambda c: c["answers"][0].update(left="p9999"), "not its two pictures"),
    (lambda c: c["answers"][0].update(chosen="p9999"), "was not shown"),
    (lambda c: c["answers"][0].update(ms=-1), "ms is -1"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES, ids=[words for _, words in DAMAGES])
def test_answers_that_are_not_whole_are_refused(
    tmp_path: Path, damage: Callable[[dict[str, Any]], Any], words: str
) -> None:
    key, _ = written(tmp_path / "s", pictures())
    content = answers(key, "r", lambda trial: 0.5, np.random.default_rng(0))
    damage(content)
    file = tmp_path / "answers.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InvalidInputError, match=words) as error:
        analyse_answers([file], tmp_path / "s")
    assert str(file) in str(error.value)
    assert not (tmp_path / "s" / "analysis.json").exists()


def test_nobody_counts_twice(tmp_path: Path) -> None:
    key, _ = written(tmp_path / "s", pictures())
    rng = np.random.default_rng(0)
    first = answers(key, "r1", lambda trial: 0.5, rng)
    again = {**answers(key, "r1", lambda trial: 0.5, rng), "session": "another"}
    renamed = {**first, "rater": "r2"}
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(json.dumps(first))
    for content, words in ((again, "both by r1"), (renamed, "same sitting")):
        two.write_text(json.dumps(content))
        with pytest.raises(InvalidInputError, match=words):
            analyse_answers([one, two], tmp_path / "s")
    with pytest.raises(InvalidInputError, match="same sitting"):
        analyse_answers([one, one], tmp_path / "s")
    one.write_text(json.dumps(answers(key, "r1", lambda trial: 0.5, rng, attentive=0.0)))
    with pytest.raises(InvalidInputError, match="none of 1 raters"):
        analyse_answers([one], tmp_path / "s")
