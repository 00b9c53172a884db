"""Training of the text-to-image model of the coloured digits: the autoencoder, then U-Net and text encoder together."""

from __future__ import annotations

import platform
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qhw_diffusion.checkpoints import load_checkpoint, restore_checkpoint, save_checkpoint
from qhw_diffusion.diffusion.loop import Optimisation
from qhw_diffusion.diffusion.text_to_image.images import NAME, draw, writers
from qhw_diffusion.diffusion.text_to_image.pipeline import TextToImageConfig, build_pipeline, save_pipeline
from qhw_diffusion.diffusion.text_to_image.prompts import ATTRIBUTE_TABLE, PROMPTS, TRAINED
from qhw_diffusion.errors import DamagedFileError, RunFolderError
from qhw_diffusion.runs import RunFolder, StopRequest, progress

_CHECKPOINT_EVERY = 250
_BANK_BATCH = 480  # images drawn and encoded at a time


def train_text_to_image(config: TextToImageConfig, run: RunFolder | None = None, *, resume: bool = False) -> Any:
    """Train the pipeline on the trained combinations of the training split; returns it frozen, in evaluation mode.

    The autoencoder minimises the mean squared error of fresh images plus `kl_weight` times the latents' divergence
    (Kingma & Welling 2014, arXiv 1312.6114); then latents are scaled to unit variance (Rombach et al. 2022, arXiv
    2112.10752), and U-Net and text encoder minimise the mean squared error of the U-Net's target at a uniform timestep.
    Kept are the averaged weights, in half precision. The same configuration gives the same weights bit for bit on one
    machine with the same number of torch threads, resumed or not.

    With a run folder, Ctrl-C saves a checkpoint and then raises KeyboardInterrupt; a second one does not wait.

    Args:
        config: architecture and recipe.
        run: where to log "losses/autoencoder", "losses/unet" and the learning rate every `log_every` steps, to keep a
            checkpoint, and to write `model/`.
        resume: continue from the run's checkpoint.

    Raises:
        MissingDependencyError: transformers is not installed.
        RunFolderError: `resume` without a run, without a checkpoint in it, or with another configuration or data.
    """
    training = _Training(config)
    if resume:
        if run is None:
            raise RunFolderError("resume needs the run folder to resume from")
        training.restore(run)
    guard = run.interruptible() if run is not None else nullcontext(StopRequest())
    with guard as stop:
        while True:
            training.go_through_phase(run, stop)
            if training.phase.name == "unet":
                break
            training.next_phase()
    if run is not None:
        save_pipeline(training.pipeline, Path(run.path) / "model", training.recipe())
    return training.pipeline


class _Phase(Optimisation):
    """One of the two optimisations.

    Attributes: those of `Optimisation`, `modules` (what is trained, by name).
    """

    name: str

    def __init__(
        self, config: TextToImageConfig, modules: dict[str, nn.Module], steps: int, learning_rate: float, seed: int
    ) -> None:
        self.config, self.modules = config, nn.ModuleDict(modules).requires_grad_(True)
        super().__init__(
            self.modules,
            steps=steps,
            learning_rate=learning_rate,
            weight_decay=config.weight_decay,
            warmup=config.warmup,
            ema_decay=config.ema_decay,
            seed=seed,
        )

    def finish(self) -> None:
        """Put the averaged weights into the modules, rounded as they are saved, and freeze them."""
        self.modules.load_state_dict(self.averaged())
        self.modules.eval().requires_grad_(False)


class _Autoencoder(_Phase):
    name = "autoencoder"

    def __init__(self, config: TextToImageConfig, pipeline: Any) -> None:
        steps, rate = config.autoencoder_steps, config.autoencoder_learning_rate
        super().__init__(config, {"vae": pipeline.vae}, steps, rate, config.seed + 1)

    def batch_loss(self) -> Tensor:
        """Loss of a fresh batch."""
        labels = TRAINED[torch.randint(len(TRAINED), (self.config.autoencoder_batch_size,), generator=self.generator)]
        images = draw(ATTRIBUTE_TABLE[labels], self.generator)
        vae: Any = self.modules["vae"]
        posterior = vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=self.generator)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return nn.functional.mse_loss(decoded, images) + self.config.kl_weight * divergence


class _Denoising(_Phase):
    name = "unet"

    def __init__(self, config: TextToImageConfig, pipeline: Any, scale: float | None = None) -> None:
        """With the latents' scale, if it is known: encoding the images then waits until a step needs them."""
        modules = {"unet": pipeline.unet, "text": pipeline.text_encoder}
        super().__init__(config, modules, config.steps, config.learning_rate, config.seed + 2)
        self.alphas = pipeline.scheduler.alphas_cumprod
        texts = pipeline.tokenizer([*PROMPTS, ""], padding="max_length", return_tensors="pt")
        self.tokens: Tensor = texts.input_ids  # the last row: the empty prompt
        self.vae = pipeline.vae
        self.labels = TRAINED.repeat(config.latents_per_prompt)
        self.latents: Tensor | None = None
        if scale is None:
            self.latents = self.encoded()
            scale = 1 / float(self.latents.std())
            self.latents *= scale
        self.scale = scale
        self.vae.register_to_config(scaling_factor=self.scale)

    @torch.no_grad()
    def encoded(self) -> Tensor:
        """Latents [N, c, h, w], not yet scaled, of images of every trained prompt."""
        generator = torch.Generator().manual_seed(self.config.seed + 3)
        batches = progress(self.labels.split(_BANK_BATCH), desc="encoding images")
        images = (draw(ATTRIBUTE_TABLE[batch], generator) for batch in batches)
        return torch.cat([self.vae.encode(some).latent_dist.mean for some in images])

    def batch_loss(self) -> Tensor:
        """Loss of a fresh batch."""
        config, generator = self.config, self.generator
        if self.latents is None:  # resumed
            self.latents = self.encoded() * self.scale
        chosen = torch.randint(len(self.labels), (config.batch_size,), generator=generator)
        dropped = torch.rand(config.batch_size, generator=generator) < config.prompt_dropout
        tokens = self.tokens[self.labels[chosen].masked_fill(dropped, len(PROMPTS))]
        latents = self.latents[chosen]
        t = torch.randint(config.n_train_timesteps, (config.batch_size,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        signal = self.alphas[t].sqrt().view(-1, 1, 1, 1)
        spread = (1 - self.alphas[t]).sqrt().view(-1, 1, 1, 1)
        target = signal * noise - spread * latents if config.prediction_type == "v_prediction" else noise
        text = self.modules["text"](tokens)[0]
        output = self.modules["unet"](signal * latents + spread * noise, t, text, return_dict=False)[0]
        return nn.functional.mse_loss(output, target)


class _Training:
    """The phase that is on, and the pipeline it works on: what is saved and put back."""

    def __init__(self, config: TextToImageConfig) -> None:
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)  # the constructors draw from the global generator
            self.pipeline = build_pipeline(config)
        self.pipeline.set_progress_bar_config(disable=True)
        self.history: dict[str, list[dict[str, float]]] = {"autoencoder": [], "unet": []}
        self.phase: _Phase = _Autoencoder(config, self.pipeline)

    def go_through_phase(self, run: RunFolder | None, stop: StopRequest) -> None:
        phase, config = self.phase, self.config
        before = config.autoencoder_steps if phase.name == "unet" else 0
        with progress(total=phase.steps, initial=phase.step, desc=f"{phase.name} {NAME}") as bar:
            while phase.step < phase.steps:
                phase.one_step()
                bar.update()
                if phase.step % config.log_every == 0 or phase.step == phase.steps:
                    loss = phase.interval_loss()
                    self.history[phase.name].append({"step": phase.step, "loss": loss})
                    bar.set_postfix(loss=f"{loss:.4f}")
                    if run is not None:
                        rate = phase.optimizer.param_groups[0]["lr"]
                        values = {f"losses/{phase.name}": loss, "charts/learning_rate": rate}
                        run.log(before + phase.step, values)
                last = phase.step == phase.steps
                if run is not None and (stop.requested or last or phase.step % _CHECKPOINT_EVERY == 0):
                    self.save(run)
                if stop.requested:
                    raise KeyboardInterrupt
        phase.finish()

    def next_phase(self, scale: float | None = None) -> None:
        self.phase = _Denoising(self.config, self.pipeline, scale)

    def recipe(self) -> dict[str, Any]:
        import diffusers
        import transformers

        pipeline = self.pipeline
        sizes = {name: getattr(pipeline, name) for name in ("text_encoder", "vae", "unet")}
        return {
            "config": self.config.to_dict(),
            "n_parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in sizes.items()},
            "history": self.history,
            "provenance": {
                "data_fingerprint": writers("train").fingerprint,
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "transformers": transformers.__version__,
                "python": platform.python_version(),
            },
        }

    def save(self, run: RunFolder) -> None:
        phase = self.phase
        state = {"phase": phase.name, "step": phase.step, "recent": phase.recent, "history": self.history}
        if isinstance(phase, _Denoising):
            state["scale"] = phase.scale
        save_checkpoint(run, self._parts(), state | self._identity())

    def restore(self, run: RunFolder) -> None:
        tensors, meta = load_checkpoint(run)
        for key, own in self._identity().items():
            given = meta.get(key)
            if given != own:
                raise RunFolderError(f"the checkpoint in {run.path} has {key} {given}, not {own}: not the same run")
        try:
            if meta["phase"] == "unet":
                vae = {k.removeprefix("vae."): v for k, v in tensors.items() if k.startswith("vae.")}
                self.pipeline.vae.load_state_dict(vae)
                self.pipeline.vae.eval().requires_grad_(False)
                self.next_phase(meta["scale"])
            restore_checkpoint(run, self._parts())
            self.phase.step, self.phase.recent = int(meta["step"]), list(meta["recent"])
            self.history = {name: list(meta["history"][name]) for name in self.history}
        except (KeyError, TypeError, RuntimeError) as error:
            if isinstance(error, DamagedFileError):
                raise
            raise DamagedFileError(f"the checkpoint in {run.path} does not fit its configuration ({error})") from error
        done = self.phase.step + (self.config.autoencoder_steps if self.phase.name == "unet" else 0)
        run.truncate_metrics(done + 1)

    def _parts(self) -> dict[str, Any]:
        phase = self.phase
        parts = phase.parts()
        if phase.name == "unet":
            parts["vae"] = self.pipeline.vae
        return parts

    def _identity(self) -> dict[str, Any]:
        return {"config": self.config.to_dict(), "data": writers("train").fingerprint}
