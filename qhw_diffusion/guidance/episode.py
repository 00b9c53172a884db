"""One batch of guided sampling, step by step: the dynamics under the environment and under every evaluation rollout.

The two predictions at x_t are made before the guidance scale is chosen, and do not depend on it: one U-Net call per
step (conditional and unconditional in one batch), whoever steers.

The policy sees six or seven entries of the sampler at each step (arXiv 2509.14163):

| entry | meaning | range |
|---|---|---|
| 0 | t/T: share of the steps still to do | (0, 1] |
| 1 | ‖x_t‖/√d | ≥ 0, near 1 |
| 2 | ‖ε̂‖/√d of the last step | ≥ 0, near 1, grows with g |
| 3 | cos(x_t, ε̂) with the last step's ε̂ | [−1, 1] |
| 4 | a_{t−1}/limit | [−1, 1] |
| 5 | confidence p(y | x̂₀) of the last step by the scorer, softened | (0, 1) |
| 6 | ‖ε_c − ε_∅‖/√d at x_t (optional) | ≥ 0 |

With `pooled_features` the state carries, behind these entries, the pooled features of the U-Net at x_t
(`diffusion.pooled`), which a policy takes in by its learned embedding.

Before the first step the prediction at the base scale stands in for "the last step"; it costs no further evaluation.
Of a model that works on latents, x_t, ε̂ and x̂₀ are latents, and the scorer sees the decoded images. With a diffusers
scheduler x_t is what the network sees (√ᾱ x₀ + √(1−ᾱ) ε) and ε̂ is derived from the network's output by the scheduler's
prediction type, so the entries mean the same whatever the scheduler.

The raw entries live on very different scales (the norms move by a few per cent), so the policy sees
(entry − centre) / width with fixed numbers measured once per backbone; nothing is clipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qhw_diffusion.diffusion import check_labels, decoded, latent_shape_of, pooled_width, sampler_of
from qhw_diffusion.diffusion.sampler import dtype_of, scale_dtype
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance.config import GuidanceConfig
from qhw_diffusion.guidance.scorers import Score, Scorer, check_scorer_fit, score

if TYPE_CHECKING:
    from qhw_diffusion.diffusion import Denoiser


STATE_NAMES = ("time", "x_norm", "eps_norm", "cosine", "last_action", "confidence", "guidance_norm")
SATURATION = 2.0
"""A normalised entry beyond ± this (four standard deviations of the calibration) counts as saturated."""


def rms(x: Tensor) -> Tensor:
    """‖x‖/√d per sample: [B, …] → [B]."""
    return x.flatten(1).pow(2).mean(1).sqrt()


def raw_state(
    *,
    remaining: float,
    x: Tensor,
    eps_last: Tensor,
    action_last: Tensor,
    confidence: Tensor,
    eps_difference: Tensor | None = None,
    pooled: Tensor | None = None,
) -> Tensor:
    """The state entries before normalisation.

    Args:
        remaining: t/T, the share of the steps still to do.
        x: x_t, [B, …], images or latents.
        eps_last: guided prediction of the last step, [B, …].
        action_last: last action in units of the action limit, [B].
        confidence: softened probability of the label, [B].
        eps_difference: ε_c − ε_∅ at x, [B, …]; adds the seventh entry.
        pooled: pooled features at x, [B, F]; they go behind the entries.

    Returns:
        [B, 6] or [B, 7], + F with pooled features.
    """
    if x.shape != eps_last.shape:
        raise InvalidInputError(f"x has shape {tuple(x.shape)} and the last prediction {tuple(eps_last.shape)}")
    flat_x, flat_eps = x.flatten(1), eps_last.flatten(1)
    entries = [
        torch.full_like(confidence, remaining),
        rms(x),
        rms(eps_last),
        torch.nn.functional.cosine_similarity(flat_x, flat_eps, dim=1),
        action_last,
        confidence,
    ]
    if eps_difference is not None:
        entries.append(rms(eps_difference))
    state = torch.stack(entries, dim=1)
    return state if pooled is None else torch.cat([state, pooled], dim=1)


def measured_normalisation(raw: Tensor, n_entries: int | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Centre (mean) and width (two standard deviations) of each entry of raw states [N, n_state].

    Args:
        raw: the states.
        n_entries: how many of the columns are entries, the others pooled features; None: all.

    Raises:
        InvalidInputError: an entry is constant: a policy cannot learn from it, and scaling would only blow up rounding
            noise.
    """
    values = raw.detach().to(torch.float64).reshape(-1, raw.shape[-1])
    centre, deviation = values.mean(0), values.std(0)
    for name, spread in zip(STATE_NAMES[:n_entries], deviation.tolist(), strict=False):
        if not spread > 1e-6:
            raise InvalidInputError(
                f"state entry {name!r} is constant (standard deviation {spread:.1e}) over the calibration rollouts; "
                f"use more steps or environments, or a wider guidance range"
            )
    width = 2.0 * deviation
    if n_entries is not None:  # a channel of the network may be dead: its feature stays at 0
        width[n_entries:] = torch.where(width[n_entries:] > 2e-6, width[n_entries:], 1.0)
    return tuple(centre.tolist()), tuple(width.tolist())


def state_metrics(states: Tensor, n_entries: int) -> dict[str, float]:
    """Spread and saturation of normalised states [..., n_state], for the log and the diagnostics.

    Args:
        states: the states.
        n_entries: how many of their columns are entries, told one by one; the pooled features behind are told together.
    """
    flat = states.reshape(-1, states.shape[-1])
    out: dict[str, float] = {}
    for j in range(n_entries):
        out[f"state/{STATE_NAMES[j]}_std"] = float(flat[:, j].std(correction=0))
        out[f"state/{STATE_NAMES[j]}_saturated"] = float((flat[:, j].abs() > SATURATION).float().mean())
    if flat.shape[1] > n_entries:
        pooled = flat[:, n_entries:]
        out["state/pooled_std"] = float(pooled.std(0, correction=0).mean())
        out["state/pooled_saturated"] = float((pooled.abs() > SATURATION).float().mean())
    return out


class GuidedEpisode:
    """One batch of images being sampled: x_t, the predictions at x_t, and what the last step left behind.

    Attributes:
        x: x_t, [B, *latent_shape]; after the last step what the images are decoded from.
        x0: the last step's estimate x̂₀ of that, [B, *latent_shape].
        images: the images that `x0` is decoded to, [B, C, H, W] in [−1, 1]; before the end the denoiser's preview of
            them, where it has one.
        score: what the scorer says of `images` (None without a scorer).
        labels: int64 [B].
        n_steps: steps of the episode, each with a prediction.
        step_index: steps taken.
        pooled: pooled features of the last prediction, [B, F]; None where the state does without.
    """

    def __init__(self, backbone: Denoiser, config: GuidanceConfig, scorer: Scorer | None) -> None:
        """Prepare the sampler.

        Args:
            backbone: makes the predictions.
            config: sampler and guidance range.
            scorer: whose confidence is a state entry; None where no state is wanted (open-loop schedules), which saves
                its evaluations, and decoding.

        Raises:
            InvalidInputError: a scorer of other images or classes than the backbone, steps that do not start in
                noise, or pooled features that the backbone does not give or gives in another number.
        """
        if scorer is not None:
            check_scorer_fit(backbone=backbone, reward_classifier=scorer)
        self.backbone, self.config, self.scorer = backbone, config, scorer
        self.sampler = sampler_of(backbone, config.n_steps, spacing=config.spacing)
        if config.pooled_features:
            width = pooled_width(backbone)
            if config.calibrated and width != config.n_pooled:
                raise InvalidInputError(
                    f"the state was calibrated with {config.n_pooled} pooled features, and the middle block of this "
                    f"U-Net has {width} channels: it is another model than the policy's"
                )
            self.sampler.pools = True
        self.pooled: Tensor | None = None
        self.n_steps = self.sampler.n_steps
        self._bases: list[float] = config.base_scales(self.n_steps).tolist()
        self.step_index = 0
        self._images: Tensor | None = None
        self._normalisation: dict[torch.dtype, tuple[Tensor, Tensor]] = {}  # centre and width, [n_state] each
        self.labels = torch.empty(0, dtype=torch.int64)
        self.score: Score | None = None

    def begin(self, labels: Tensor, noise: Tensor) -> None:
        """Start at x_T. labels: int64 [B]; noise: standard normal [B, *latent_shape]."""
        check_initial_noise(self.backbone, labels, noise)
        if not bool(torch.isfinite(noise).all()):
            raise InvalidInputError("noise holds NaN or infinity")
        self.step_index, self.labels = 0, labels
        self.x = self.sampler.begin(noise)
        self.action_last = torch.zeros(labels.shape[0], device=noise.device, dtype=scale_dtype(noise))
        self._predict()
        output = self.sampler.guided(self.cond, self.null, self.base)
        self.eps_last = self.sampler.noise(self.x, 0, output)
        self._estimated(self.sampler.estimate(self.x, 0, output))

    @property
    def base(self) -> float:
        """Base scale of the step to be taken."""
        return self._bases[self.step_index]

    @property
    def done(self) -> bool:
        """Whether all steps have been taken; then `x` holds the images."""
        return self.step_index == self.n_steps

    @property
    def images(self) -> Tensor:
        """What `x0` is decoded to, [B, C, H, W]; decoded when it is first asked for."""
        if self._images is None:
            self._images = decoded(self.backbone, self.x0, preview=not self.done)
        return self._images

    def advance(self, g: Tensor, action: Tensor | None = None) -> None:
        """One step at guidance scale g [B]; `action` [B] (ΔCFG) is remembered for the next state."""
        if self.done:
            raise InvalidInputError("the episode is over: call begin(labels, noise) first")
        output = self.sampler.guided(self.cond, self.null, g.to(self.x.device))
        self.eps_last = self.sampler.noise(self.x, self.step_index, output)
        self.x, x0 = self.sampler.step(self.x, self.step_index, output)
        self.step_index += 1
        if action is not None:
            self.action_last = action.to(self.x.device)
        if not self.done:
            self._predict()
        # at the end the image itself is what rewards and evaluations look at
        self._estimated(self.x if self.done else x0)

    def _estimated(self, x0: Tensor) -> None:
        self.x0, self._images = x0, None
        self._score()

    def _score(self) -> None:
        if self.scorer is not None:
            self.score = score(self.scorer, self.images, self.labels, self.config.confidence_temperature)

    def _predict(self) -> None:
        self.cond, self.null = self.sampler.predict(self.x, self.step_index, self.labels)
        self.pooled = self.sampler.pooled

    def raw_state(self) -> Tensor:
        """State entries before normalisation, [B, n_state]. Needs a scorer, except without the confidence entry.

        After the last step there is no further prediction; the seventh entry, as the pooled features, is then that of
        the last one made.
        """
        return raw_state(
            remaining=(self.n_steps - self.step_index) / self.n_steps,
            x=_at_least_single(self.sampler.seen(self.x, self.step_index)),
            eps_last=_at_least_single(self.eps_last),
            action_last=self.action_last / self.config.action_limit,
            confidence=self._confidence(),
            eps_difference=self._eps_difference() if self.config.extra_state else None,
            pooled=self.pooled,
        )

    def _confidence(self) -> Tensor:
        if self.score is not None:
            return self.score.confidence
        if self.config.confidence_entry or not self.config.calibrated:
            raise InvalidInputError("the state needs a scorer: GuidedEpisode(backbone, config, scorer)")
        return torch.full_like(self.action_last, self.config.state_centre[STATE_NAMES.index("confidence")])

    def _eps_difference(self) -> Tensor:
        """ε_c − ε_∅ of the last prediction made; ε is linear in the output, so x falls out."""
        i = min(self.step_index, self.n_steps - 1)
        return _at_least_single(self.sampler.noise(torch.zeros_like(self.x), i, self.cond - self.null))

    def state(self) -> Tensor:
        """Normalised state [B, n_state], what policies see. Needs a calibrated configuration."""
        if not self.config.calibrated:
            raise InvalidInputError("the state's centre and width are unknown: pass the config through calibrate_state")
        raw = self.raw_state().cpu()  # where policies are
        if raw.dtype not in self._normalisation:
            known = self.config.state_centre, self.config.state_width
            self._normalisation[raw.dtype] = raw.new_tensor(known[0]), raw.new_tensor(known[1])
        centre, width = self._normalisation[raw.dtype]
        state = (raw - centre) / width
        if not self.config.confidence_entry:
            state[:, STATE_NAMES.index("confidence")] = 0.0
        return state

    def guidance(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Applied ΔCFG and guidance scale g, [B] each, of actions [B] (`GuidanceConfig.applied`, `scale`)."""
        return self.config.applied(action), self.config.scale(action, self.base)

    # the two predictions stand in files under the names that they had when all outputs were ε
    _STATE = ("x", "eps_cond", "eps_null", "eps_last", "action_last", "x0", "labels", "pooled")
    _ATTRIBUTES = {"eps_cond": "cond", "eps_null": "null"}  # noqa: RUF012 (never changed)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to go on mid-episode, bit for bit."""
        named = {name: getattr(self, self._ATTRIBUTES.get(name, name), None) for name in self._STATE}
        tensors = {name: value.clone() for name, value in named.items() if value is not None}
        sampler = {f"sampler.{name}": value for name, value in self.sampler.state_dict().items()}
        return {**tensors, **sampler, "step_index": torch.tensor(self.step_index)}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        for name in self._STATE:
            if name in tensors:
                setattr(self, self._ATTRIBUTES.get(name, name), tensors[name].clone())
        self.step_index = int(tensors["step_index"])
        own = {name.removeprefix("sampler."): v for name, v in tensors.items() if name.startswith("sampler.")}
        self.sampler.load_state_dict(own, self.step_index)
        self._images = None
        self._score()


def _at_least_single(x: Tensor) -> Tensor:
    return x.to(scale_dtype(x))


def check_initial_noise(backbone: Denoiser, labels: Tensor, noise: Tensor) -> None:
    """Check that there is one label (the null label is none) for each image of initial noise.

    Args:
        backbone: whose labels and latent shape are wanted.
        labels: int64 [B], B ≥ 1.
        noise: [B, *latent_shape].

    Raises:
        InvalidInputError: it is not so; the message says what was given.
    """
    shape = latent_shape_of(backbone)
    if not isinstance(noise, Tensor) or tuple(noise.shape[1:]) != shape:
        given = list(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
        raise InvalidInputError(f"noise is {given}, need a tensor [B, {', '.join(map(str, shape))}]")
    check_labels(labels, backbone.n_classes, len(noise), null_label=getattr(backbone, "null_label", None))


def draw_episode(
    backbone: Denoiser, batch: int, generator: torch.Generator, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Labels and initial noise of a batch of episodes.

    Args:
        backbone: for whose labels and latent shape is drawn.
        batch: number of images.
        generator: CPU generator.
        device: where the tensors are put.

    Returns:
        Labels, int64 [batch], every class as often as the others, to within one, in random order; standard normal
        noise, [batch, *latent_shape].
    """
    labels = torch.randperm(batch, generator=generator) % backbone.n_classes
    noise = torch.randn((batch, *latent_shape_of(backbone)), generator=generator)
    return labels.to(device), noise.to(device, dtype_of(backbone))


@torch.no_grad()
def calibrate_state(
    config: GuidanceConfig, backbone: Denoiser, scorer: Scorer, *, seed: int = 0, batch: int = 128
) -> GuidanceConfig:
    """The configuration with centre and width of the state entries measured on one batch with random actions.

    Actions are uniform on [−limit, limit], one draw per step and sample, so the widths cover what a policy can reach.

    Args:
        config: one that is already calibrated is returned as it is.
        backbone: makes the predictions.
        scorer: whose confidence is a state entry.
        seed: seed of labels, noise and actions.
        batch: images sampled.

    Returns:
        The calibrated configuration.

    Raises:
        InvalidInputError: a state entry is constant over these rollouts.
    """
    if config.calibrated:
        return config
    generator = torch.Generator().manual_seed(seed)
    device = backbone.alphas_cumprod.device
    labels, noise = draw_episode(backbone, batch, generator, device)
    episode = GuidedEpisode(backbone, config, scorer)
    episode.begin(labels, noise)
    states = []
    while not episode.done:
        states.append(episode.raw_state())
        draw = (2.0 * torch.rand(batch, generator=generator) - 1.0).to(device) * config.action_limit
        action, g = episode.guidance(draw)
        episode.advance(g, action)
    centre, width = measured_normalisation(torch.cat(states), config.n_entries)
    return config.replace(state_centre=centre, state_width=width)
