"""A diffusers text-to-image pipeline as a denoiser: its text encoder, U-Net, scheduler and VAE under our own loop.

The loop makes the operations of the pipeline's own call in their order, so at a constant guidance scale its images come
out bit for bit. Beyond that, every image has a guidance scale of its own, any number, at every step.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.diffusion.checks import check_labels
from qhw_diffusion.diffusion.pooled import middle_channels, watching_middle
from qhw_diffusion.diffusion.scheduler_sampler import check_scheduler
from qhw_diffusion.diffusion.weights import SHIPPED
from qhw_diffusion.errors import (
    DamagedFileError,
    InvalidInputError,
    MissingDataError,
    MissingDependencyError,
    reason_of,
)

INDEX = "model_index.json"
"""The file that makes a folder a diffusers pipeline."""
PROMPTS_FILE = "prompts.txt"
"""A table of prompts, one a line: in the folder of a run, and of a pipeline that brings its own table."""
SUPPORTED = (
    "supported is StableDiffusionPipeline (Stable Diffusion 1.x and 2.x, and models of your own saved as one). A "
    "modular pipeline (SDXL, Stable Diffusion 3 …) takes a policy as its guider, guidance.PolicyGuidance"
)
_ENCODED_AT_ONCE = 64  # prompts


def check_transformers() -> None:
    """Check that the package transformers is there, which text encoders and tokenizers come from.

    Raises:
        MissingDependencyError: it is not.
    """
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "text-to-image pipelines need the package transformers: pip install 'qhw-diffusion[pipelines]'"
        ) from error


def pipeline_folder(name_or_path: str | Path) -> Path:
    """The diffusers folder of a pipeline.

    Args:
        name_or_path: the name of a pipeline that comes with the package, a folder in diffusers' format, or a run folder
            that holds one as ``model``.

    Raises:
        MissingDataError: there is none.
    """
    for folder in (SHIPPED / str(name_or_path), Path(name_or_path), Path(name_or_path) / "model"):
        if (folder / INDEX).is_file():
            return folder
    shipped = sorted(path.parent.name for path in SHIPPED.glob(f"*/{INDEX}"))
    modular = " (a modular pipeline takes a policy as its guider, guidance.PolicyGuidance)"
    raise MissingDataError(
        f"no pipeline in {name_or_path}: need a folder in diffusers' format, with {INDEX}"
        f"{modular * (Path(name_or_path) / 'modular_model_index.json').is_file()}; with the package come: "
        f"{', '.join(shipped) or 'none'}. A model of the Hub becomes a folder by: hf download NAME --local-dir FOLDER"
    )


def load_pipeline(name_or_path: str | Path, *, device: str | torch.device | None = None) -> Any:
    """A diffusers pipeline from a folder, in single precision, its networks frozen.

    Args:
        name_or_path: see `pipeline_folder`.
        device: where it computes; None: the GPU where torch finds one, else the CPU.

    Raises:
        MissingDependencyError: transformers is not installed.
        MissingDataError: there is no pipeline.
        InvalidInputError: a pipeline that `PipelineDenoiser` does not take.
        DamagedFileError: a folder that diffusers cannot read.
    """
    check_transformers()
    folder = pipeline_folder(name_or_path)
    try:
        kind = json.loads((folder / INDEX).read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFileError(f"{folder / INDEX} does not describe a pipeline ({reason_of(error)})") from error
    if kind != "StableDiffusionPipeline":
        raise InvalidInputError(f"the pipeline in {folder} is a {kind}; {SUPPORTED}")
    from diffusers import StableDiffusionPipeline

    try:
        with quiet():
            pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DamagedFileError(f"diffusers cannot read the pipeline in {folder}: {error}") from error
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        if part is not None:
            part.eval().requires_grad_(False)
            if part.dtype != torch.float32:  # of a file in half precision transformers makes half precision
                part.float()
    pipeline.set_progress_bar_config(disable=True)
    check_pipeline(pipeline)
    return pipeline.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def check_pipeline(pipeline: Any) -> None:
    """Check that a pipeline is one that `PipelineDenoiser` takes; nothing is computed.

    Raises:
        MissingDependencyError: transformers is not installed.
        InvalidInputError: it is of another class, lacks a part, has its guidance distilled into the network, or takes
            more than a prompt; the message names what is supported.
    """
    check_transformers()
    from diffusers import StableDiffusionPipeline

    who = f"pipeline {type(pipeline).__name__}"
    distilled = "so there is no prediction without the prompt, and no guidance scale to set"
    if _setting(pipeline, "transformer", "guidance_embeds"):
        raise InvalidInputError(f"{who} has its guidance distilled into the network (guidance_embeds), {distilled}")
    if _setting(pipeline, "unet", "time_cond_proj_dim") is not None:
        raise InvalidInputError(f"{who} has its guidance distilled into the network (time_cond_proj_dim), {distilled}")
    if not isinstance(pipeline, StableDiffusionPipeline):
        textless = getattr(pipeline, "text_encoder", None) is None
        why = " without a text encoder, and so without unconditional embeddings" * textless
        raise InvalidInputError(f"{who} is of a class{why} that is not driven part by part; {SUPPORTED}")
    missing = [n for n in ("text_encoder", "tokenizer", "unet", "vae", "scheduler") if getattr(pipeline, n) is None]
    if missing:
        raise InvalidInputError(
            f"{who} has no {', '.join(missing)}: prompts, and the empty prompt that guidance leads away from, cannot "
            "be made into images"
        )
    channels, latents = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
    if channels != latents:
        raise InvalidInputError(
            f"the U-Net of {who} takes {channels} channels and the latents have {latents}: it wants another image "
            f"beside the prompt (inpainting, say); {SUPPORTED}"
        )
    if _setting(pipeline, "unet", "encoder_hid_dim_type") is not None:
        raise InvalidInputError(f"{who} has an adapter that takes an image beside the prompt; unload it first")
    check_scheduler(pipeline.scheduler)


def read_prompts(file: str | Path) -> tuple[str, ...]:
    """The prompts in a text file, one a line; empty lines are left out.

    Raises:
        MissingDataError: there is no such file.
        InvalidInputError: it holds no prompt, or no text.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise MissingDataError(f"there is no file of prompts {file}; it holds one prompt a line") from error
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{file} is no text file of prompts, one a line ({error})") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise InvalidInputError(f"the file of prompts {file} is empty; write one prompt a line")
    return prompts


def unknown_words(tokenizer: Any, prompts: Iterable[str]) -> list[str]:
    """Words of prompts that a tokenizer does not know, each once: it makes them its unknown token.

    A tokenizer that tells its words, as that of the coloured digits does, knows no others, though it would spell them.
    """
    known = getattr(tokenizer, "init_kwargs", {}).get("words")
    found: dict[str, None] = {}
    for word in (word for text in prompts for word in text.lower().split()):
        if known is None:
            ids = tokenizer(word, add_special_tokens=False).input_ids
            strange = tokenizer.unk_token_id in ids and word != tokenizer.unk_token
        else:
            strange = word not in known
        if strange:
            found[word] = None
    return list(found)


def check_prompts(tokenizer: Any, prompts: Sequence[str]) -> None:
    """Check that a tokenizer knows the words of prompts and cuts none of them.

    Raises:
        InvalidInputError: a word it does not know, or a prompt longer than it takes; the message names them.
    """
    if strange := unknown_words(tokenizer, prompts):
        known = getattr(tokenizer, "init_kwargs", {}).get("words")
        hint = f"; it knows {', '.join(known)}" if known else ""
        raise InvalidInputError(f"the pipeline's tokenizer does not know {', '.join(map(repr, strange))}{hint}")
    for text in prompts:
        length = len(tokenizer(text, verbose=False).input_ids)
        if length > tokenizer.model_max_length:
            raise InvalidInputError(
                f"the prompt {text!r} has {length} tokens with its start and end, the pipeline's tokenizer cuts after "
                f"{tokenizer.model_max_length}: shorten it"
            )


class PipelineDenoiser:
    """A `StableDiffusionPipeline` over a table of prompts: label i asks for prompts[i].

    A `LatentDenoiser`: what is denoised are the VAE's latents, by the pipeline's own scheduler. The prompts are encoded
    once. The pipeline stays as it is; its networks are used where they lie and in their precision.

    Attributes: `pipeline`, `prompts`, `name`, `n_classes` (number of prompts), `image_shape`, `latent_shape`, `dtype`,
    `device`, `batch`.
    """

    def __init__(
        self,
        pipeline: Any,
        prompts: Sequence[str],
        *,
        negative_prompt: str = "",
        name: str | None = None,
        batch: int | None = None,
    ) -> None:
        """Check the pipeline and encode the prompts.

        A prompt that the tokenizer cuts is told by a warning.

        Args:
            pipeline: the pipeline.
            prompts: the table of prompts.
            negative_prompt: what guidance leads away from, for all images.
            name: name for records and messages; None: the folder that the pipeline came from, or its class.
            batch: images, at most, that a network is given at once; None: all there are. Less takes less memory.

        Raises:
            MissingDependencyError: transformers is not installed.
            InvalidInputError: see `check_pipeline`; no prompts, or something that is none.
        """
        check_pipeline(pipeline)
        if isinstance(prompts, str) or not prompts or not all(isinstance(text, str) for text in prompts):
            raise InvalidInputError(f"prompts is {prompts!r}, need a list of one text or more")
        if batch is not None and batch < 1:
            raise InvalidInputError(f"batch must be at least 1, got {batch}")
        self.pipeline, self.prompts, self.batch = pipeline, tuple(prompts), batch
        self.device = _device(pipeline)
        self.name = name or str(getattr(pipeline, "name_or_path", "") or type(pipeline).__name__)
        self.n_classes = len(self.prompts)
        size = pipeline.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        factor = pipeline.vae_scale_factor
        self.latent_shape: tuple[int, int, int] = (pipeline.unet.config.in_channels, height, width)
        self.image_shape: tuple[int, int, int] = (pipeline.vae.config.out_channels, factor * height, factor * width)
        cut = cut_prompts(pipeline, [*self.prompts, negative_prompt])
        for message in cut:
            warnings.warn(message, stacklevel=2)
        with quiet() if cut else nullcontext():  # the pipeline would say it again
            self._cond, self._null = self._encoded(negative_prompt)
        self.dtype = self._cond.dtype
        self._of: tuple[Tensor, Tensor] | None = None  # the last labels and their embeddings

    @property
    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipeline.scheduler

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ of each training timestep, float32 [n_train_timesteps], where the pipeline computes."""
        return self.pipeline.scheduler.alphas_cumprod.to(self.device, torch.float32)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _encoded(self, negative_prompt: str) -> tuple[Tensor, Tensor]:
        """Embeddings of the prompts [K, L, D], and of the negative prompt, [1, L, D] or one for each."""
        parts = []
        for start in range(0, len(self.prompts), _ENCODED_AT_ONCE):
            texts = list(self.prompts[start : start + _ENCODED_AT_ONCE])
            negative = [negative_prompt] * len(texts)
            parts.append(self.pipeline.encode_prompt(texts, self.device, 1, True, negative_prompt=negative))
        cond, null = (torch.cat([part[side] for part in parts]) for side in (0, 1))
        # rows of one batch are rounded alike, as a rule; where they are not, each keeps its own
        return cond, null[:1].clone() if bool((null == null[:1]).all()) else null

    def predict(self, x_t: Tensor, t: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The U-Net's outputs with the prompts and with the negative one, each [B, C, h, w]: one call on 2B rows.

        Args:
            x_t: [B, C, h, w], scaled by the scheduler.
            t: an entry of the scheduler's timesteps.
            labels: int64 [B], rows of the table of prompts.

        Raises:
            InvalidInputError: labels that are none.
        """
        if self._of is None or self._of[0] is not labels:
            check_labels(labels, self.n_classes, len(x_t))
            rows = labels.to(self._cond.device)
            null = self._null.expand(len(rows), -1, -1) if len(self._null) == 1 else self._null[rows]
            self._of = labels, torch.stack([null, self._cond[rows]])
        embeddings = self._of[1]
        parts = []
        step = self.batch or len(x_t)
        for start in range(0, len(x_t), step):
            x = x_t[start : start + step]
            output = self.pipeline.unet(
                torch.cat([x] * 2),
                t,
                encoder_hidden_states=embeddings[:, start : start + step].flatten(0, 1),
                timestep_cond=None,
                cross_attention_kwargs=None,
                added_cond_kwargs=None,
                return_dict=False,
            )[0]
            parts.append(output.chunk(2))
        if len(parts) == 1:
            null, cond = parts[0]
        else:
            null, cond = (torch.cat([part[side] for part in parts]) for side in (0, 1))
        return cond, null

    @property
    def n_pooled(self) -> int:
        """Number F of pooled features; raises InvalidInputError for a U-Net without a middle block."""
        return middle_channels(self.pipeline.unet)

    def predict_pooled(self, x_t: Tensor, t: Any, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `predict`, and the pooled features of the prediction with the prompts, [B, F] (`diffusion.pooled`)."""
        with watching_middle(self.pipeline.unet) as seen:
            cond, null = self.predict(x_t, t, labels)
        return cond, null, torch.cat([rows.chunk(2)[1] for rows in seen])  # each call: without the prompts, with

    def raw_decode(self, x: Tensor) -> Tensor:
        """What the VAE makes of latents [B, C, h, w]: images [B, 3, H, W] whose pixels may lie beyond ±1."""
        vae = self.pipeline.vae
        step = self.batch or len(x)
        parts = [vae.decode(part / vae.config.scaling_factor, return_dict=False)[0] for part in x.split(step)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def decode(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [−1, 1], at least single precision, of latents [B, C, h, w]; differentiable."""
        images = self.raw_decode(x)
        return images.to(torch.promote_types(images.dtype, torch.float32)).clamp(-1.0, 1.0)


def cut_prompts(pipeline: Any, prompts: Sequence[str]) -> list[str]:
    """A sentence for each prompt that is longer than the pipeline's tokenizer takes."""
    tokenizer = pipeline.tokenizer
    longest, found = tokenizer.model_max_length, []
    for text in dict.fromkeys(prompts):
        ids = tokenizer(pipeline.maybe_convert_prompt(text, tokenizer), verbose=False).input_ids
        if len(ids) > longest:
            rest = tokenizer.decode(ids[longest - 1 : -1]).strip()
            found.append(
                f"the tokenizer takes {longest} tokens and cuts the prompt {text!r} of {len(ids)}: {rest!r} is not seen"
            )
    return found


def _device(pipeline: Any) -> torch.device:
    """Where a pipeline computes. Only where parts move is the pipeline asked, which looks through all its modules."""
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    if any(hasattr(part, name) for part in parts for name in ("_hf_hook", "_diffusers_hook")):
        return torch.device(pipeline._execution_device)
    return next(pipeline.unet.parameters()).device


def _setting(pipeline: Any, part: str, name: str) -> Any:
    """A setting in the configuration of a part of a pipeline; None where there is no such part or setting."""
    return getattr(getattr(getattr(pipeline, part, None), "config", None), name, None)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' progress bars and advice: what concerns the user is told here."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    before = [(lib, lib.get_verbosity(), lib.is_progress_bar_enabled()) for lib in (of_diffusers, of_transformers)]
    for lib, _, _ in before:
        lib.set_verbosity_error()
        lib.disable_progress_bar()
    try:
        yield
    finally:
        for lib, verbosity, shown in before:
            lib.set_verbosity(verbosity)
            if shown:
                lib.enable_progress_bar()
