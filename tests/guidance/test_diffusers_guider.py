"""Policies inside diffusers' own pipelines: the guider of modular ones, the callback of classic ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pipelines
import pytest
import torch
from torch import Tensor, nn

from qhw_diffusion.errors import InvalidInputError, MissingDataError
from qhw_diffusion.guidance import GuidanceConfig, MLPPolicy
from qhw_diffusion.guidance.diffusers_guider import PolicyGuidance, policy_callback, scorer_confidence
from qhw_diffusion.guidance.steering import Levels

PROMPTS = ["a red seven", "b"]
STEPS = 4
CENTRE, WIDTH = (0.6, 1.0, 1.0, 0.0, 0.0, 0.5, 0.2), (0.4, 0.2, 0.4, 0.5, 0.5, 0.3, 0.2)
BOUNDS: dict[str, Any] = {
    "n_steps": STEPS,
    "g0": 3.0,
    "g_min": 0.0,
    "g_max": 8.0,
    "action_limit": 4.0,
    "spacing": "trailing",
}
SIX = GuidanceConfig(**BOUNDS, state_centre=CENTRE[:6], state_width=WIDTH[:6], confidence_entry=False)
SEEN = SIX.replace(confidence_entry=True)
SEVEN = GuidanceConfig(**BOUNDS, extra_state=True, state_centre=CENTRE, state_width=WIDTH, confidence_entry=False)


def lively(n_features: int = 6, *, offset: float = 0.0) -> MLPPolicy:
    """A policy whose action depends on every entry of the state."""
    policy = MLPPolicy((16, 8), n_features=n_features, gain=2.0, seed=4)
    with torch.no_grad():
        policy.head.layers[-1].bias[0] = offset  # type: ignore[union-attr, index, operator]
    return policy.eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="module")
def xl(place: Path) -> Any:
    return pipelines.modular_xl(place)


@pytest.fixture(scope="module")
def sd(place: Path) -> Any:
    return pipelines.stable_diffusion(place)


def sample(pipeline: Any, guider: Any, prompts: Any = None, **settings: Any) -> Tensor:
    pipeline.update_components(guider=guider)
    call: dict[str, Any] = {"prompt": prompts or PROMPTS, "num_inference_steps": STEPS, "output_type": "pt"}
    images: Tensor = pipeline(**{**call, **settings}, generator=torch.Generator().manual_seed(1), output="images")
    return images


class Calls:
    """Inputs and outputs of a network, in the order of its calls."""

    def __init__(self, network: nn.Module) -> None:
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self._handle = network.register_forward_hook(self._see, with_kwargs=True)

    def _see(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.inputs.append((args[0] if args else kwargs["hidden_states"]).clone())
        self.outputs.append(output[0].clone())

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *failure: object) -> None:
        self._handle.remove()


def by_hand(
    policy: Any,
    config: GuidanceConfig,
    xs: list[Tensor],
    conds: list[Tensor],
    nulls: list[Tensor],
    first: float | None = None,
    total: int = STEPS,
) -> list[Tensor]:
    """The scales [B] of each step from the definition of the state, entry by entry.

    xs: √ᾱ x₀ + √(1−ᾱ) ε; conds, nulls: noise predictions; first: g of the first step; total: predictions of the run.
    """
    found: list[Tensor] = []
    limit, batch = config.action_limit, len(xs[0])
    last, action = nulls[0] + config.g0 * (conds[0] - nulls[0]), torch.zeros(batch)
    for i, (x, cond, null) in enumerate(zip(xs, conds, nulls, strict=True)):
        rows = []
        for b in range(batch):
            xb, eb, d = x[b].flatten(), last[b].flatten(), x[b].numel()
            cosine = float(xb @ eb / (xb.norm() * eb.norm()))
            entries = [(total - i) / total, float(xb.norm()) / d**0.5, float(eb.norm()) / d**0.5, cosine]
            entries += [float(action[b]) / limit, config.state_centre[5]]
            if config.extra_state:
                entries.append(float((cond[b] - null[b]).norm()) / d**0.5)
            rows.append([(e - c) / w for e, c, w in zip(entries, config.state_centre, config.state_width, strict=True)])
        wanted = policy(torch.tensor(rows))[0][:, 0].detach().clamp(-limit, limit)
        if i == 0 and first is not None:
            wanted = torch.full((batch,), first - config.g0)
        g = (config.g0 + wanted).clamp(config.g_min, config.g_max)
        found.append(g)
        action = wanted
        last = null + g.view(-1, 1, 1, 1) * (cond - null)
    return found


# -- the guider -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("g", [7.5, 1.0, 0.5, 0.0])
@pytest.mark.parametrize("kind", ["ddim", "euler"])
def test_a_constant_is_diffusers_own_guidance_bit_for_bit(xl: Any, kind: str, g: float) -> None:
    from diffusers import ClassifierFreeGuidance

    xl.update_components(scheduler=pipelines.scheduler(kind))
    theirs = sample(xl, ClassifierFreeGuidance(guidance_scale=g))
    guider = PolicyGuidance(g)
    assert torch.equal(sample(xl, guider), theirs)
    assert torch.equal(sample(xl, PolicyGuidance([g] * STEPS)), theirs) or g == 1.0  # there no prediction is left out
    assert guider.g.tolist() == [[g, g]] * STEPS
    xl.update_components(scheduler=pipelines.scheduler())


def test_a_constant_on_a_transformer_too(place: Path) -> None:
    from diffusers import ClassifierFreeGuidance

    sd3 = pipelines.modular_sd3(place)
    theirs = sample(sd3, ClassifierFreeGuidance(guidance_scale=4.0), negative_prompt="")
    assert torch.equal(sample(sd3, PolicyGuidance(4.0), negative_prompt=""), theirs)
    assert not torch.equal(sample(sd3, PolicyGuidance(3.0), negative_prompt=""), theirs)
    guider = PolicyGuidance(lively(7), sd3.scheduler, SEVEN)
    with Calls(sd3.transformer) as calls:
        sample(sd3, guider, negative_prompt="")
    xs, conds, nulls = calls.inputs[::2], calls.outputs[::2], calls.outputs[1::2]
    sigmas = sd3.scheduler.sigmas[:STEPS]  # x = (1 − σ) x₀ + σ ε, and the network predicts ε − x₀
    seen = [x / ((1 - s) ** 2 + s**2).sqrt() for x, s in zip(xs, sigmas, strict=True)]
    noises = [[x + (1 - s) * v for x, v, s in zip(xs, vs, sigmas, strict=True)] for vs in (conds, nulls)]
    wanted = by_hand(lively(7), SEVEN, seen, *noises)
    torch.testing.assert_close(guider.g, torch.stack(wanted), rtol=1e-5, atol=1e-5)


def test_without_unconditional_embeddings_there_is_nothing_to_guide_by(place: Path) -> None:
    """Diffusers' own guider then guides by a difference of zero, silently."""
    from diffusers.modular_pipelines import BlockState

    guider = PolicyGuidance(4.0)
    with pytest.raises(InvalidInputError, match=r"no unconditional embeddings.*negative_prompt=''"):
        sample(pipelines.modular_sd3(place), guider)
    x = torch.ones(1)
    fields = {"embeds": ("prompt_embeds", "negative_prompt_embeds")}
    with pytest.raises(InvalidInputError, match="no unconditional"):
        guider.prepare_inputs_from_block_state(BlockState(prompt_embeds=x, negative_prompt_embeds=None), fields)
    made = guider.prepare_inputs_from_block_state(BlockState(prompt_embeds=x, negative_prompt_embeds=-x), fields)
    assert [float(state.embeds) for state in made] == [1.0, -1.0]
    guider.prepare_inputs({"embeds": (x, -x), "image_embeds": (None, None), "ids": x})
    with pytest.raises(InvalidInputError, match="no unconditional"):
        guider.prepare_inputs({"embeds": (x, None), "ids": x})


@pytest.mark.parametrize(
    ("kind", "prediction_type"),
    [("euler", "epsilon"), ("euler", "v_prediction"), ("dpm", "sample"), ("pndm", "v_prediction")],
)
def test_the_state_means_the_same_whatever_the_scheduler(xl: Any, kind: str, prediction_type: str) -> None:
    scheduler = pipelines.scheduler(kind, prediction_type=prediction_type)
    xl.update_components(scheduler=scheduler)
    guider = PolicyGuidance(lively(7), scheduler, SEVEN)
    with Calls(xl.unet) as calls:
        sample(xl, guider)
    xs, pairs = calls.inputs[::2], [calls.outputs[::2], calls.outputs[1::2]]
    alphas = scheduler.alphas_cumprod[scheduler.timesteps.long()]
    if prediction_type == "v_prediction":
        pairs = [[a**0.5 * v + (1 - a) ** 0.5 * x for x, v, a in zip(xs, vs, alphas, strict=True)] for vs in pairs]
    elif prediction_type == "sample":
        pairs = [
            [(x - a**0.5 * x0) / (1 - a) ** 0.5 for x, x0, a in zip(xs, x0s, alphas, strict=True)] for x0s in pairs
        ]
    wanted = torch.stack(by_hand(lively(7), SEVEN, xs, *pairs, total=len(scheduler.timesteps)))
    assert len(wanted) == STEPS + (kind == "pndm")
    torch.testing.assert_close(guider.g, wanted, rtol=1e-3, atol=1e-3)
    xl.update_components(scheduler=pipelines.scheduler())


@pytest.mark.parametrize("config", [SIX, SEVEN], ids=["six entries", "seven entries"])
def test_the_scales_are_the_policys_and_the_step_is_made_with_them(xl: Any, config: GuidanceConfig) -> None:
    policy = lively(config.n_state)
    guider = PolicyGuidance(policy, xl.scheduler, config)
    for _ in range(2):  # a second run starts anew
        with Calls(xl.unet) as calls:
            sample(xl, guider)
        xs, conds, nulls = calls.inputs[::2], calls.outputs[::2], calls.outputs[1::2]
        wanted = torch.stack(by_hand(policy, config, xs, conds, nulls))
        assert guider.g.shape == (STEPS, 2)
        torch.testing.assert_close(guider.g, wanted, rtol=1e-5, atol=1e-5)
    assert float(wanted.std(0).min()) > 0.05  # the test can fail: steps and images differ
    assert float((wanted[:, 0] - wanted[:, 1]).abs().max()) > 0.01
    scheduler = pipelines.scheduler()
    scheduler.set_timesteps(STEPS)
    for i in range(STEPS - 1):
        guided = nulls[i] + guider.g[i].view(-1, 1, 1, 1) * (conds[i] - nulls[i])
        after = scheduler.step(guided, scheduler.timesteps[i], xs[i]).prev_sample
        torch.testing.assert_close(xs[i + 1], after, rtol=1e-5, atol=1e-5)
    assert not xl.unet._forward_pre_hooks  # nothing stays behind


def test_an_image_does_not_depend_on_the_one_beside_it(xl: Any) -> None:
    guider = PolicyGuidance(lively(), xl.scheduler, SIX)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    alone = sample(xl, guider, ["b"], latents=latents)
    g = guider.g[:, 0]
    both = sample(xl, guider, ["a red seven", "b"], latents=torch.cat([torch.ones_like(latents), latents]))
    torch.testing.assert_close(guider.g[:, 1], g, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[1], alone[0], rtol=1e-3, atol=1e-4)
    assert float((guider.g[:, 0] - g).abs().max()) > 0.05


def test_half_precision(xl: Any) -> None:
    guider = PolicyGuidance(lively(), xl.scheduler, SIX)
    sample(xl, guider)
    g = guider.g
    guider.set_state(0, STEPS, xl.scheduler.timesteps[0])
    pair = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    guider._input = pair[0]
    output = guider.forward(pair[0], pair[1])
    assert output.pred.dtype == torch.bfloat16
    assert guider.g.dtype == g.dtype == torch.float32


class RedAmount:
    """A scorer of pictures: label 0 wants them red, label 1 dark."""

    def probability(self, images: Tensor, labels: Tensor) -> Tensor:
        red = images[:, 0].mean((1, 2)).sigmoid()
        return torch.where(labels == 0, red, 1.0 - images.mean((1, 2, 3)).sigmoid())


class RedOfPrompts(RedAmount):
    def for_prompts(self, prompts: Any) -> Any:
        rows = torch.tensor([["red", "dark"].index(text) for text in prompts])
        return lambda images, labels: self.probability(images, rows[labels])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_confidence_is_of_the_last_steps_estimate(xl: Any, prediction_type: str) -> None:
    """x̂₀ against what diffusers' scheduler says it is."""
    xl.update_components(scheduler=pipelines.scheduler(prediction_type=prediction_type))
    confidence = scorer_confidence(xl, RedAmount(), [0, 1])
    told: list[Tensor] = []

    def kept(x0: Tensor) -> Tensor:
        told.append(confidence(x0))
        return told[-1]

    guider = PolicyGuidance(lively(), xl.scheduler, SEEN, confidence=kept)
    with Calls(xl.unet) as calls:
        sample(xl, guider)
    assert len(told) == STEPS  # the base scale before the first step, and every step but the last
    scheduler = pipelines.scheduler(prediction_type=prediction_type)
    scheduler.set_timesteps(STEPS)
    for i in range(STEPS):
        step, g = max(0, i - 1), torch.full((2,), SEEN.g0) if i == 0 else guider.g[i - 1]
        cond, null = calls.outputs[2 * step], calls.outputs[2 * step + 1]
        prediction = null + g.view(-1, 1, 1, 1) * (cond - null)
        x0 = scheduler.step(prediction, scheduler.timesteps[step], calls.inputs[2 * step]).pred_original_sample
        images = xl.vae.decode(x0 / xl.vae.config.scaling_factor).sample.detach().clamp(-1, 1)
        p = RedAmount().probability(images, torch.tensor([0, 1]))
        torch.testing.assert_close(told[i], ((p / (1 - p)).log() / 4.0).sigmoid(), rtol=1e-4, atol=1e-5)
    xl.update_components(scheduler=pipelines.scheduler())


def test_the_confidence_of_flow_matching(place: Path) -> None:
    sd3 = pipelines.modular_sd3(place)
    sd3.scheduler.set_timesteps(STEPS)
    x0, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = float(sd3.scheduler.sigmas[2])
    levels = Levels(sd3.scheduler)
    x = (1 - sigma) * x0 + sigma * noise
    torch.testing.assert_close(levels.estimate(x, 2, noise - x0), x0, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(levels.noise(x, 2, noise - x0), noise, rtol=1e-4, atol=1e-5)
    images = sd3.vae.decode(x0 / sd3.vae.config.scaling_factor + 0.1).sample.detach().clamp(-1, 1)
    p = RedAmount().probability(images, torch.tensor([0, 1]))
    looked = scorer_confidence(sd3, RedAmount(), [0, 1])
    with torch.no_grad():  # as every block of a pipeline
        torch.testing.assert_close(looked(x0), ((p / (1 - p)).log() / 4.0).sigmoid(), rtol=1e-4, atol=1e-5)
        named = scorer_confidence(sd3, RedOfPrompts(), ["red", "dark"])
        assert torch.equal(named(x0), looked(x0))
    with pytest.raises(InvalidInputError, match="2 images are sampled, 1 labels"):
        scorer_confidence(sd3, RedAmount(), [0])(x0)
    with pytest.raises(InvalidInputError, match="'RedAmount' has no for_prompts"):
        scorer_confidence(sd3, RedAmount(), ["red", "dark"])
    with pytest.raises(InvalidInputError, match="no VAE"):
        scorer_confidence(object(), RedAmount(), [0])


def test_a_confidence_is_never_left_out_silently(xl: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"sixth state entry.*confidence='centre'"):
        PolicyGuidance(lively(), xl.scheduler, SEEN)
    with pytest.raises(InvalidInputError, match="trained without the confidence"):
        PolicyGuidance(lively(), xl.scheduler, SIX, confidence="centre")
    with pytest.raises(InvalidInputError, match="'middle'; allowed: 'centre'"):
        PolicyGuidance(lively(), xl.scheduler, SEEN, confidence="middle")
    held, without = (
        PolicyGuidance(lively(), xl.scheduler, SEEN, confidence="centre"),
        PolicyGuidance(lively(), xl.scheduler, SIX),
    )
    assert torch.equal(sample(xl, held), sample(xl, without))


@pytest.mark.slow
def test_guiders_come_back_from_their_folder(xl: Any, tmp_path: Path) -> None:
    held = PolicyGuidance(lively(), xl.scheduler, SEEN, confidence="centre")
    for name, guider in {
        "policy": held,
        "number": PolicyGuidance(2.5),
        "schedule": PolicyGuidance(torch.tensor([4.0, 3.0, 2.0, 1.0])),
    }.items():
        images = sample(xl, guider)
        guider.save_pretrained(str(tmp_path / name))
        again = PolicyGuidance.from_pretrained(str(tmp_path / name), scheduler=xl.scheduler)
        assert torch.equal(sample(xl, again), images)
        assert torch.equal(again.g, guider.g)
        assert {name: again.config[name] for name in ("policy", "confidence")}.items() <= guider.config.items()
        assert torch.equal(sample(xl, guider.new()), images)
    card = (tmp_path / "policy" / "README.md").read_text()
    assert 'PolicyGuidance.from_pretrained("policy", scheduler=pipeline.scheduler)' in card
    other = held.new(policy=1.0)
    assert torch.equal(sample(xl, other), sample(xl, PolicyGuidance(1.0)))
    again = PolicyGuidance.from_pretrained(tmp_path / "policy", scheduler=xl.scheduler)
    again.save_pretrained(tmp_path / "again")  # from a folder into another
    for third in (
        PolicyGuidance.from_pretrained(tmp_path / "again", scheduler=xl.scheduler),
        PolicyGuidance(tmp_path / "again" / "policy", xl.scheduler, confidence="centre"),
    ):
        assert torch.equal(sample(xl, third), sample(xl, held))
    with pytest.raises(InvalidInputError, match="holds no saved guider"):
        PolicyGuidance.from_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match="no policy's weights"):
        PolicyGuidance.from_config(held.config)
    assert float(PolicyGuidance.from_config(PolicyGuidance(2.5).config).config["policy"]) == 2.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"policy": lively()}, "refer to settings that are not given"),
        ({"policy": lively(), "guidance": SIX.replace(state_centre=(), state_width=())}, "calibrated"),
        ({"policy": lively(7), "guidance": SIX}, "sees 7 state entries, the settings make 6"),
        ({"policy": lively(), "guidance": SIX}, r"give scheduler=pipeline\.scheduler"),
        ({"policy": lively(), "guidance": SIX, "scheduler": object()}, "no diffusers scheduler"),
        (
            {"policy": lively(), "guidance": SIX.replace(spacing="leading"), "scheduler": pipelines.scheduler()},
            r"spaced 'leading'.*spaces 'trailing'.*timestep_spacing='leading'\)",
        ),
        ({"policy": 3.0, "guidance": SIX}, "needs neither guidance settings"),
        ({"policy": torch.ones(2, 3)}, r"\[n_steps\], got \[2, 3\]"),
        ({"policy": [1.0, float("nan")]}, "finite"),
        ({"policy": object()}, "a object steers nothing"),
    ],
)
def test_what_steers_nothing_is_refused(given: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        PolicyGuidance(**given)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="no such folder"):
        PolicyGuidance(str(tmp_path / "nothing"))


def test_another_number_of_steps_and_another_scheduler_are_refused(xl: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"for 4 steps and the pipeline makes 5: pass num_inference_steps=4"):
        sample(xl, PolicyGuidance(lively(), xl.scheduler, SIX), num_inference_steps=5)
    with pytest.raises(InvalidInputError, match="holds 4 scales and this run makes 5 predictions"):
        sample(xl, PolicyGuidance([2.0] * STEPS), num_inference_steps=5)
    with pytest.raises(InvalidInputError, match=r"step 0 of 4 .* not the pipeline's"):
        sample(xl, PolicyGuidance(lively(), pipelines.scheduler(), SIX))
    other = pipelines.scheduler("euler", timestep_spacing="linspace")
    other.set_timesteps(STEPS)
    with pytest.raises(InvalidInputError, match="step 1 of 4 is at timestep"):
        sample(xl, PolicyGuidance(lively(), other, SIX.replace(spacing="linspace")))
    sample(xl, PolicyGuidance(lively(), xl.scheduler, SIX))  # nothing is left of the failed runs


def test_distilled_networks_are_refused(place: Path) -> None:
    distilled = pipelines.modular_xl(place, unet_settings={"time_cond_proj_dim": 8})
    with pytest.raises(InvalidInputError, match=r"distilled.*time_cond_proj_dim"):
        sample(distilled, PolicyGuidance(3.0))
    guider, network = PolicyGuidance(4.0), nn.Identity()
    network.config = {"guidance_embeds": True}  # type: ignore[assignment]
    guider.set_state(0, STEPS, torch.tensor(999))
    with pytest.raises(InvalidInputError, match=r"Identity is distilled.*guidance_embeds"):
        guider.prepare_models(network)


# -- the callback -----------------------------------------------------------------------------------------------------


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))


def call(pipeline: Any, callback: Any, noise: Tensor, prompt: Any = "a red seven", **settings: Any) -> Tensor:
    given: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": callback.guidance_scale}
    latents: Tensor = pipeline(
        prompt, latents=noise, output_type="latent", callback_on_step_end=callback, **{**given, **settings}
    ).images
    return latents


def own_loop(pipeline: Any, policy: Any, config: GuidanceConfig, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Sampling written out: the first step at g₀, then the policy; latents, and g [T]."""
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        prompt, empty = pipeline.encode_prompt("a red seven", torch.device("cpu"), 1, True)
        x, xs, conds, nulls = noise * scheduler.init_noise_sigma, [], [], []
        for t in scheduler.timesteps:
            given = scheduler.scale_model_input(x, t)
            rows = pipeline.unet(torch.cat([given] * 2), t, encoder_hidden_states=torch.cat([empty, prompt])).sample
            null, cond = rows.chunk(2)
            xs, conds, nulls = [*xs, given], [*conds, cond], [*nulls, null]
            g = by_hand(policy, config, xs, conds, nulls, config.g0, len(scheduler.timesteps))
            x = scheduler.step(null + g[-1].view(-1, 1, 1, 1) * (cond - null), t, x).prev_sample
    return x, torch.cat(g)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddim", "euler", "dpm", "pndm"])
def test_the_callback_is_our_loop_from_the_second_step_on(place: Path, noise: Tensor, kind: str) -> None:
    sd = pipelines.stable_diffusion(place, kind)
    policy = lively(offset=1.5)
    with policy_callback(sd, policy, guidance=SIX) as callback:
        for _ in range(2):  # a second call starts anew
            latents = call(sd, callback, noise)
            wanted, g = own_loop(sd, policy, SIX, noise)
            torch.testing.assert_close(callback.g[:, 0], g, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(latents, wanted, rtol=1e-3, atol=1e-3)
    assert float(g.min()) > 1.0
    assert float(g[1:].std()) > 0.05
    assert callback.floored == 0
    assert not sd.unet._forward_hooks


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["xl, ddim", "xl, euler", "sd3"])
def test_the_callback_steers_stable_diffusion_xl_and_3(place: Path, noise: Tensor, kind: str) -> None:
    """Against the definition of the state on the network's recorded calls, and the steps taken again by hand."""
    flow = kind == "sd3"
    made = pipelines.stable_diffusion_3(place) if flow else pipelines.stable_diffusion_xl(place, kind.split(", ")[1])
    network, policy = made.transformer if flow else made.unet, lively(offset=1.5)
    with policy_callback(made, policy, guidance=SIX) as callback:
        with Calls(network) as calls:
            latents = call(made, callback, noise)
        with pytest.raises(InvalidInputError, match=r"4 rows.*one prompt and one image"):
            call(made, callback, noise.expand(2, -1, -1, -1), PROMPTS)
        skipped: dict[str, Any] = {"skip_guidance_layers": [0], "skip_layer_guidance_stop": 1.0}
        other: dict[str, Any] = skipped if flow else {"guidance_rescale": 0.5}
        with pytest.raises(InvalidInputError, match="leave it out"):
            call(made, callback, noise, **other)
        assert torch.equal(call(made, callback, noise), latents)  # nothing is left of the failed runs
    xs = [x[:1] for x in calls.inputs]
    nulls, conds = ([one.chunk(2)[i] for one in calls.outputs] for i in (0, 1))
    scheduler = type(made.scheduler).from_config(made.scheduler.config)
    scheduler.set_timesteps(STEPS)
    if flow:  # x = (1 − σ) x₀ + σ ε, and the network predicts ε − x₀
        sigmas = scheduler.sigmas[:STEPS]
        seen = [x / ((1 - s) ** 2 + s**2).sqrt() for x, s in zip(xs, sigmas, strict=True)]
        noises = [[x + (1 - s) * v for x, v, s in zip(xs, vs, sigmas, strict=True)] for vs in (conds, nulls)]
    else:
        seen, noises = xs, [conds, nulls]
    g = torch.cat(by_hand(policy, SIX, seen, *noises, SIX.g0))
    torch.testing.assert_close(callback.g[:, 0], g, rtol=1e-4, atol=1e-4)
    assert float(g.min()) > 1.0
    assert float(g[1:].std()) > 0.05
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for t, null, cond, scale in zip(scheduler.timesteps, nulls, conds, callback.g[:, 0], strict=True):
        x = scheduler.step(null + scale * (cond - null), t, x).prev_sample
    torch.testing.assert_close(latents, x, rtol=1e-4, atol=1e-4)
    plain = made("a red seven", latents=noise, num_inference_steps=STEPS, guidance_scale=3.0, output_type="latent")
    assert torch.equal(call(made, policy_callback(made, [3.0] * STEPS), noise), plain.images)


def test_numbers_and_schedules_are_the_pipelines_own(sd: Any, noise: Tensor) -> None:
    plain = sd("a red seven", latents=noise, num_inference_steps=STEPS, guidance_scale=3.0, output_type="latent").images
    assert torch.equal(call(sd, policy_callback(sd, 3.0), noise), plain)
    assert torch.equal(call(sd, policy_callback(sd, [3.0] * STEPS), noise), plain)
    callback = policy_callback(sd, [3.0, 2.0, 4.0, 5.0])
    assert not torch.equal(call(sd, callback, noise), plain)
    assert callback.g[:, 0].tolist() == [3.0, 2.0, 4.0, 5.0]


def test_scales_of_one_or_less_are_held_above_one_and_counted(sd: Any, noise: Tensor) -> None:
    with policy_callback(sd, lively(offset=-30.0), guidance=SIX) as callback:
        call(sd, callback, noise)
        assert callback.floored == STEPS - 1
        assert callback.g[1:, 0].tolist() == pytest.approx([1.0] * (STEPS - 1), abs=1e-5)
        call(sd, callback, noise)
        assert callback.floored == STEPS - 1


def test_what_a_callback_cannot_do_is_said(sd: Any, xl: Any, noise: Tensor) -> None:
    with pytest.raises(InvalidInputError, match=r"none of the pipelines.*update_components\(guider=PolicyGuidance"):
        policy_callback(xl, 3.0)
    with pytest.raises(InvalidInputError, match="a object is none of the pipelines"):
        policy_callback(object(), 3.0)
    with pytest.raises(InvalidInputError, match="seventh state entry"):
        policy_callback(sd, lively(7), guidance=SEVEN)
    with pytest.raises(InvalidInputError, match=r"first step is at 0\.8"):
        policy_callback(sd, lively(), guidance=SIX.replace(g0=0.8))
    with pytest.raises(InvalidInputError, match="schedule falls to 1:"):
        policy_callback(sd, [3.0, 1.0, 2.0, 2.0])
    with pytest.raises(InvalidInputError, match="first step is at 1:"):
        policy_callback(sd, 1.0)
    assert not sd.unet._forward_hooks
    with policy_callback(sd, lively(), guidance=SIX) as callback:
        with pytest.raises(InvalidInputError, match=r"guidance_scale=7\.5.*guidance_scale=3\.0"):
            call(sd, callback, noise, guidance_scale=7.5)
        with pytest.raises(InvalidInputError, match=r"called on 4 rows.*one prompt and one image"):
            call(sd, callback, noise.expand(2, -1, -1, -1), PROMPTS)
        with pytest.raises(InvalidInputError, match="the pipeline makes 5"):
            call(sd, callback, noise, num_inference_steps=5)
        with pytest.raises(InvalidInputError, match="needs the latents"):
            call(sd, callback, noise, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    with pytest.raises(InvalidInputError, match="closed"):
        call(sd, callback, noise)


def test_a_distilled_or_another_pipeline(place: Path, sd: Any, noise: Tensor) -> None:
    distilled = pipelines.stable_diffusion(place, unet_settings={"time_cond_proj_dim": 8})
    with pytest.raises(InvalidInputError, match="distilled"):
        policy_callback(distilled, 3.0)
    other = pipelines.stable_diffusion(place)
    with policy_callback(other, lively(), guidance=SIX) as callback, pytest.raises(InvalidInputError, match="another"):
        call(sd, callback, noise)
    with policy_callback(other, lively(), guidance=SIX) as callback:
        other.scheduler = pipelines.scheduler("euler")
        with pytest.raises(InvalidInputError, match="another scheduler than when"):
            call(other, callback, noise)


def test_the_callback_looks_through_a_scorer_too(sd: Any, noise: Tensor) -> None:
    with policy_callback(
        sd, lively(offset=1.5), guidance=SEEN, confidence=scorer_confidence(sd, RedAmount(), [0])
    ) as callback:
        call(sd, callback, noise)
        seen = callback.g.clone()
    with policy_callback(sd, lively(offset=1.5), guidance=SEEN, confidence="centre") as callback:
        call(sd, callback, noise)
    assert torch.equal(seen[0], callback.g[0])
    assert not torch.allclose(seen[1:], callback.g[1:], atol=1e-4)
