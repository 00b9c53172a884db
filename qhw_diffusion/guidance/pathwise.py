"""Training by the exact gradient of the mean reward, in one linear file: the counterpart of `ppo`.

Sampler, diffusion model, scorer and the policy's circuit with its device noise are differentiable, so the gradient of
the reward of final images runs through all sampling steps into the policy's weights (as in DRaFT, arXiv 2309.17400,
whose weights are the network's). The reward is the same object that PPO uses; its distribution term is there the fall
of the class-conditional kernel distance of the whole batch, whose gradient is that of the distance itself.

**The policy acts by its mean action.** That is what is evaluated, and it needs no exploration: the gradient tells the
direction. Reparametrised noise would only blur the objective. The log σ of a policy is therefore left as it was.

**Clipped actions keep the gradient that leads back inside** (`clamp_inward`). The plain derivative of clipping is zero
outside the bounds, so a policy that once steps outside never returns; passing the gradient on unchanged lets it run
further and further out.

A free open-loop schedule (`FreeSchedule`) is trained by the same loop: one scale a step, or one for every class and
step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qhw_diffusion.checkpoints import restore_checkpoint, save_checkpoint
from qhw_diffusion.errors import InvalidInputError, RunFolderError
from qhw_diffusion.guidance.config import GuidanceConfig, PathwiseConfig
from qhw_diffusion.guidance.episode import GuidedEpisode, draw_episode, state_metrics
from qhw_diffusion.guidance.policies import Policy
from qhw_diffusion.guidance.ppo import History, action_reversals, gradient_norm
from qhw_diffusion.guidance.rewards import Reward, StepView, term_values
from qhw_diffusion.guidance.scorers import score, scorer_name
from qhw_diffusion.runs import RunFolder, StopRequest, progress

if TYPE_CHECKING:
    from qhw_diffusion.diffusion import Denoiser

POLICY = "policy"


class FreeSchedule(nn.Module):
    """An open-loop schedule with a free guidance scale for every step, or for every class and step.

    Attributes:
        g: the scales, [T] or [K, T].
    """

    def __init__(self, n_steps: int, g0: float | Tensor, n_classes: int | None = None) -> None:
        """Start at a constant, or at a schedule.

        Args:
            n_steps: T (of a diffusers scheduler: `GuidedEpisode.n_steps`).
            g0: the constant, or scales [T].
            n_classes: K, for scales of every class; None: the same for all.
        """
        super().__init__()
        shape = (n_steps,) if n_classes is None else (n_classes, n_steps)
        self.g = nn.Parameter(torch.as_tensor(g0, dtype=torch.get_default_dtype()).expand(shape).clone())

    def scales(self, labels: Tensor) -> Tensor:
        """Scales [T, B] for labels int64 [B], what `rollout` takes as a schedule; the gradient runs through them."""
        if self.g.ndim == 1:
            return self.g[:, None].expand(-1, len(labels))
        return self.g[labels].T

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The scales, which have a learning rate of their own."""
        return {"schedule": [self.g]}


class _ClampInward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,), (gradient,), (low, high) = ctx.saved_tensors, gradients, ctx.bounds
        # a loss falls against its gradient: a positive one moves x down, which is inwards from above
        keeps = ((x <= high) | (gradient > 0)) & ((x >= low) | (gradient < 0))
        return gradient * keeps, None, None


def clamp_inward(x: Tensor, low: float, high: float) -> Tensor:
    """Clip x to [low, high]; outside, the gradient of a loss to be lowered passes where it leads back inside.

    Args:
        x: floats of any shape.
        low: lower bound.
        high: upper bound.
    """
    clipped: Tensor = _ClampInward.apply(x, low, high)
    return clipped


class Recomputing:
    """A denoiser whose activations are not kept for the backward pass but computed again, one step at a time."""

    def __init__(self, denoiser: Any) -> None:
        self._denoiser = denoiser
        if callable(getattr(denoiser, "decode", None)):
            self.decode = lambda x: checkpoint(denoiser.decode, x, use_reentrant=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def predict(self, x: Tensor, t: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As the denoiser's."""
        found: tuple[Tensor, Tensor] = checkpoint(self._denoiser.predict, x, t, labels, use_reentrant=False)
        return found

    def predict_pooled(self, x: Tensor, t: Any, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the denoiser's."""
        found: tuple[Tensor, Tensor, Tensor] = checkpoint(
            self._denoiser.predict_pooled, x, t, labels, use_reentrant=False
        )
        return found


@dataclass(frozen=True)
class Played:
    """One batch of episodes with its graph.

    Attributes:
        terms: every term's weighted share of the return, [B] each; the return is their sum.
        images: final images, [B, C, H, W].
        actions: ΔCFG that the policy asked for, before clipping, [T, B].
        g: guidance scales used, [T, B].
        states: normalised states, [T, B, n_state]; None for a schedule.
    """

    terms: dict[str, Tensor]
    images: Tensor
    actions: Tensor
    g: Tensor
    states: Tensor | None

    @property
    def returns(self) -> Tensor:
        """Return of each episode, [B]."""
        return torch.stack(list(self.terms.values())).sum(0)


def play(
    denoiser: Denoiser,
    config: GuidanceConfig,
    reward: Reward,
    policy: Policy | FreeSchedule,
    labels: Tensor,
    noise: Tensor,
    *,
    truncate_steps: int | None = None,
    gradient_checkpointing: bool = False,
) -> Played:
    """Sample one image per label with the policy's mean action, keeping the graph of the rewards.

    Args:
        denoiser: makes the predictions.
        config: calibrated configuration.
        reward: the reward, with the scorer of the state.
        policy: a policy or a free schedule.
        labels: int64 [B].
        noise: standard normal, as `draw_episode` gives it.
        truncate_steps: last steps K that the graph holds; None: all.
        gradient_checkpointing: whether activations of the denoiser are computed again in the backward pass.

    Returns:
        Rewards and what led to them.
    """
    closed_loop = isinstance(policy, Policy)
    model: Any = Recomputing(denoiser) if gradient_checkpointing else denoiser
    sees = closed_loop and config.confidence_entry
    episode = GuidedEpisode(model, config, reward.scorer if sees else None)
    with torch.no_grad():  # nothing of the policy's is in the first state
        episode.begin(labels, noise)
    first = 0 if truncate_steps is None else max(0, episode.n_steps - truncate_steps)
    # the images of the last step alone are decoded where nothing looks at the others
    looks = sees or any(term.per_step for _, term in reward.terms)
    kept: dict[str, list[Tensor]] = {"actions": [], "g": [], "states": []}
    terms: dict[str, Tensor] = {}
    while not episode.done:
        with torch.no_grad() if episode.step_index < first else nullcontext():
            last = episode.step_index == episode.n_steps - 1
            before = (episode.images, episode.score) if looks or last else None
            if isinstance(policy, Policy):
                state = episode.state()
                action = policy(state)[0][:, 0]
                kept["states"].append(state.detach())
            else:
                action = policy.scales(labels)[episode.step_index].to(noise) - episode.base
            applied = clamp_inward(action, -config.action_limit, config.action_limit) if closed_loop else action
            g = clamp_inward(episode.base + applied, config.g_min, config.g_max)
            episode.advance(g, applied)
            kept["actions"].append(action.detach())
            kept["g"].append(g.detach())
            if before is None:
                continue
            view = StepView(
                last=last,
                x0=episode.images,
                x0_previous=before[0],
                labels=labels,
                action=applied,
                scorer=reward.scorer,
                known_scores=(before[1], episode.score),
            )
            for weight, term in reward.terms:
                share = weight * term_values(term, view)
                terms[term.name] = terms[term.name] + share if term.name in terms else share
    states = torch.stack(kept["states"]) if kept["states"] else None
    return Played(terms, episode.images, torch.stack(kept["actions"]), torch.stack(kept["g"]), states)


def check_differentiable(reward: Reward, denoiser: Denoiser, *, closed_loop: bool = True) -> None:
    """Refuse a scorer or a reward term that has no gradient, by a call on a few random images.

    Args:
        reward: the reward with its scorer.
        denoiser: whose images, labels, device and dtype are taken.
        closed_loop: whether the scorer is part of the state, and so of the gradient's path.

    Raises:
        InvalidInputError: one has none; the message names it and says what to do.
    """
    batch = max(4, reward.smallest_batch(denoiser.n_classes))
    generator = torch.Generator().manual_seed(0)
    like = denoiser.alphas_cumprod
    after, before = (
        (2.0 * torch.rand((batch, *denoiser.image_shape), generator=generator) - 1.0).to(like) for _ in range(2)
    )
    labels = (torch.arange(batch) % denoiser.n_classes).to(like.device)
    action = torch.linspace(-1.0, 1.0, batch).to(like)
    with torch.enable_grad():
        after.requires_grad_(), action.requires_grad_()
        view = StepView(True, after, before, labels, action, reward.scorer)
        asked: list[tuple[str, Callable[[], Tensor]]] = [
            (f"reward term {term.name!r}", partial(term_values, term, view)) for _, term in reward.terms
        ]
        if closed_loop:
            name = f"scorer {scorer_name(reward.scorer)!r}"
            asked.insert(0, (name, lambda: score(reward.scorer, after, labels).probability))
        for name, values in asked:
            try:
                has_gradient = values().requires_grad
            except (InvalidInputError, RuntimeError) as error:
                if "requires grad" not in str(error):
                    raise
                has_gradient = False  # it leaves torch: "Can't call numpy() on Tensor that requires grad"
            if not has_gradient:
                raise InvalidInputError(
                    f"{name} has no gradient, which pathwise training follows: compute it by differentiable torch "
                    "operations (no detach, no comparison, no numpy, no torch.no_grad()), leave it out, or train by "
                    "PPO (--method ppo), which takes any reward"
                )


def train_pathwise(
    denoiser: Denoiser,
    reward: Reward,
    guidance: GuidanceConfig,
    policy: Policy | FreeSchedule,
    config: PathwiseConfig,
    *,
    run: RunFolder | None = None,
    resume: bool = False,
    on_update: Callable[[int, dict[str, float]], None] | None = None,
) -> History:
    """Train a policy or a free schedule in place; returns one dict of metrics per iteration.

    Ctrl-C ends after the present iteration, with a checkpoint.

    Metrics, by the names of `train_ppo`: charts/ (episodic_return, episodic_return_std, delta_g_abs, action_mean,
    mean_action_spread, action_reversals, g_mean, g_std, learning_rate_*, SPS: sampling steps a second), losses/
    (pathwise_loss: the negative mean return), gradients/ (norms before clipping of circuit and head, or of the
    schedule), reward/ (each term's share per episode), state/ (spread and saturation of each entry).

    Args:
        denoiser: makes the predictions.
        reward: the reward, with the scorer of the state; calibrated.
        guidance: calibrated configuration.
        policy: trained in place.
        config: settings.
        run: where metrics and checkpoints go; None: nowhere.
        resume: continue from the run's checkpoint, bit for bit.
        on_update: called with (iteration, metrics) after each iteration.

    Returns:
        The metrics of every iteration.

    Raises:
        InvalidInputError: a policy, scorer or reward term without gradient, too few images for the reward, or a
            gradient that is not finite.
        RunFolderError: an impossible resume.
    """
    check_pathwise(denoiser, reward, guidance, policy, config)
    groups = policy.parameter_groups()
    rates = {name: getattr(config, f"learning_rate_{name}") for name in groups}
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": rates[name], "name": name} for name, parameters in groups.items() if parameters],
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
    )
    trainable = [parameter for parameters in groups.values() for parameter in parameters]
    generator = torch.Generator().manual_seed(config.seed)
    parts = {POLICY: policy, "optimizer": optimizer, "generator": generator}
    history: History = []
    first = 0
    if resume:
        if run is None:
            raise RunFolderError("resuming needs the run folder that holds the checkpoint")
        meta, _ = restore_checkpoint(run, parts)
        first = int(meta["updates"])
        run.truncate_metrics(first)
        history = [{k: v for k, v in row.items() if k != "step"} for row in run.metrics()]

    started = time.perf_counter()
    stop_context = run.interruptible() if run is not None else nullcontext(StopRequest())
    bar = progress(total=config.num_iterations, initial=first, desc="pathwise", unit="update")
    with bar, stop_context as stop:
        for update in range(first, config.num_iterations):
            for group in optimizer.param_groups:
                group["lr"] = rates[group["name"]] * config.learning_rate_factor(update)

            # -- one batch, its gradient and the update -----------------------------------------------------------
            labels, noise = draw_episode(denoiser, config.num_images, generator, denoiser.alphas_cumprod.device)
            played = play(
                denoiser,
                guidance,
                reward,
                policy,
                labels,
                noise,
                truncate_steps=config.truncate_steps,
                gradient_checkpointing=config.gradient_checkpointing,
            )
            returns = played.returns
            loss = -returns.mean()
            optimizer.zero_grad()
            loss.backward()
            norms = {f"gradients/{name}": gradient_norm(p) for name, p in groups.items()}
            nn.utils.clip_grad_norm_(trainable, config.max_grad_norm, error_if_nonfinite=True)
            optimizer.step()

            # -- log ----------------------------------------------------------------------------------------------
            returns = returns.detach()
            ended = torch.zeros(played.actions.shape)
            ended[-1] = 1.0
            metrics = {
                "charts/episodic_return": float(returns.mean()),
                "charts/episodic_return_std": float(returns.std()),
                "charts/action_mean": float(played.actions.mean()),
                "charts/delta_g_abs": float(played.actions.abs().mean()),
                "charts/mean_action_spread": float(played.actions.std(correction=0)),
                "charts/action_reversals": action_reversals(played.actions[..., None].cpu(), ended),
                "charts/g_mean": float(played.g.mean()),
                "charts/g_std": float(played.g.std()),
                "charts/SPS": (update + 1 - first) * played.g.numel() / (time.perf_counter() - started),
                "losses/pathwise_loss": float(loss.detach()),
                **{f"charts/learning_rate_{g['name']}": g["lr"] for g in optimizer.param_groups},
                **norms,
                **{f"reward/{name}": float(share.detach().mean()) for name, share in played.terms.items()},
            }
            if played.states is not None:
                metrics |= state_metrics(played.states, guidance.n_entries)
            history.append(metrics)
            bar.update(1)
            bar.set_postfix(
                reward=f"{metrics['charts/episodic_return']:.3f}", dCFG=f"{metrics['charts/delta_g_abs']:.2f}"
            )
            if run is not None:
                run.log(update, metrics)
            if on_update is not None:
                on_update(update, metrics)
            last = update + 1 == config.num_iterations
            stopping = not last and stop.requested  # read once: what stops the loop has been saved
            due = stopping or last or (update + 1) % config.checkpoint_every == 0
            if run is not None and due:
                save_checkpoint(run, parts, {"updates": update + 1})
            if stopping:
                break
    return history


def check_pathwise(
    denoiser: Denoiser,
    reward: Reward,
    guidance: GuidanceConfig,
    policy: Policy | FreeSchedule,
    config: PathwiseConfig,
) -> None:
    """Raise what `train_pathwise` would for parts that do not fit, before anything is sampled or written."""
    smallest = reward.smallest_batch(denoiser.n_classes)
    if config.num_images < smallest:
        raise InvalidInputError(
            f"num_images is {config.num_images}, at least {smallest} are needed (a term of the reward compares the "
            "images of a batch with each other)"
        )
    n_steps = GuidedEpisode(denoiser, guidance, None).n_steps
    if config.truncate_steps is not None and config.truncate_steps > n_steps:
        raise InvalidInputError(f"truncate_steps is {config.truncate_steps}, more than the {n_steps} sampling steps")
    if getattr(policy, "choices", ()):
        raise InvalidInputError(
            "a policy with discrete actions has no gradient through its choice, which pathwise training follows; train "
            "it by PPO (--method ppo), or leave out discrete_actions"
        )
    layer = getattr(policy, "layer", None)
    if layer is not None and layer.gradient is None and not layer.engine.differentiable:
        raise InvalidInputError(
            f"engine {layer.engine.label!r} has no gradient, which pathwise training follows; allowed: ideal, noisy, "
            "shots, and these mitigated by strategies with a gradient; or give the layer a gradient method"
        )
    check_differentiable(reward, denoiser, closed_loop=isinstance(policy, Policy))
