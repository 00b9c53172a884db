"""Policies to share: the saved folder with a model card, which says what was made how and what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qhw_diffusion.experiment.statistics import mean_interval
from qhw_diffusion.guidance.config import RewardConfig
from qhw_diffusion.guidance.policies import Policy, QuantumPolicy
from qhw_diffusion.guidance.saving import save_policy_model
from qhw_diffusion.masking import without_tokens
from qhw_diffusion.runs import atomic_write_text

CARD = "README.md"
TAGS = ("diffusers", "classifier-free-guidance", "reinforcement-learning")
_NOT_KNOWN = "not recorded"


def save_with_card(
    policy: Policy,
    folder: str | Path,
    settings: Mapping[str, Any],
    *,
    name: str | None = None,
    license: str = "apache-2.0",
) -> Path:
    """`save_policy_model` and README.md. The arguments are those of `model_card`; name: None for the folder's."""
    written = save_policy_model(policy, folder, settings)
    atomic_write_text(written / CARD, model_card(policy, settings, name or written.name, license=license))
    return written


def model_card(
    policy: Policy, settings: Mapping[str, Any], name: str, *, license: str = "apache-2.0", guider: bool = False
) -> str:
    """The card as Markdown with the Hub's YAML header.

    Args:
        policy: the policy.
        settings: what is saved with it: "guidance", "reward", "ppo", "policy" and "record", as far as known.
        name: what `from_pretrained` is given.
        license: of the weights.
        guider: whether the folder is that of a `PolicyGuidance`, which holds the policy.
    """
    from huggingface_hub import ModelCardData

    quantum, embedded = isinstance(policy, QuantumPolicy), policy.embedding is not None
    record: Mapping[str, Any] = settings.get("record", {})
    data = ModelCardData(
        license=license, library_name="qhw-diffusion", tags=[*TAGS, *(["quantum", "qiskit"] if quantum else [])]
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {_title(policy)}",
        "The policy sets the guidance scale g of classifier-free guidance at every sampling step of a diffusion model, "
        "for each image, from what the sampler shows: ε̂ = ε_∅ + g (ε_c − ε_∅). Made with "
        "qhw-diffusion (after arXiv 2509.14163).",
        _guider_use(name) if guider else _embedded_use(name) if embedded else _use(name),
        "## Policy\n\n" + _table(_policy_rows(policy)),
        "## Guidance\n\n" + _table(_guidance_rows(settings["guidance"])),
        "## Training\n\n" + _table(_training_rows(settings, record)),
        "## Results\n\n" + _results(record.get("evaluations", {}), settings["guidance"]["dataset"]),
        "## Limits\n\nThe policy is for the diffusion model, sampler and number of steps above. Its state is "
        "normalised with numbers measured there; on another model it runs, and nothing here says how well.",
    ]
    return without_tokens("\n\n".join(parts) + "\n")


def _title(policy: Policy) -> str:
    if not isinstance(policy, QuantumPolicy):
        return f"Guidance policy ({policy.kind}, {policy.parameter_counts()['total']:,} trainable parameters)"
    compiled = policy.layer.compiled
    return f"Quantum guidance policy ({policy.circuit.n_qubits} qubits, {compiled.device.name})"


def _use(name: str) -> str:
    return (
        "## Use\n\n```python\n"
        "from qhw_diffusion.guidance import PolicyGuidance, TrainedPolicy, policy_callback\n\n"
        f'trained = TrainedPolicy.from_pretrained("{name}")\n'
        "guider = PolicyGuidance(trained, scheduler=pipeline.scheduler)  # for a diffusers ModularPipeline\n"
        "callback = policy_callback(pipeline, trained)  # for a StableDiffusionPipeline\n```"
    )


def _embedded_use(name: str) -> str:
    return (
        "## Use\n\n```python\n"
        "from qhw_diffusion.guidance import sample\n\n"
        f'samples = sample(pipeline, "{name}", prompts, seed=0)  # a StableDiffusionPipeline\n```'
    )


def _guider_use(name: str) -> str:
    return (
        "## Use\n\n```python\n"
        "from qhw_diffusion.guidance import PolicyGuidance\n\n"
        f'guider = PolicyGuidance.from_pretrained("{name}", scheduler=pipeline.scheduler)\n'
        "pipeline.update_components(guider=guider)  # a diffusers ModularPipeline\n```"
    )


def _policy_rows(policy: Policy) -> Iterable[tuple[str, Any]]:
    counts = policy.parameter_counts()
    yield "kind", policy.kind
    yield "trainable parameters", ", ".join(f"{name} {count:,}" for name, count in counts.items())
    if policy.embedding is not None:
        yield (
            "embedding",
            f"{policy.embedding.size} entries of {policy.embedding.n_pooled} pooled features of the U-Net",
        )
    if not isinstance(policy, QuantumPolicy):
        return
    layer, circuit = policy.layer, policy.circuit
    compiled = layer.compiled
    yield "circuit", f"{circuit.ansatz}, {circuit.n_qubits} qubits, {circuit.depth} layers, {circuit.entanglement}"
    if compiled.adaptive is not None:
        local = max(map(len, compiled.adaptive.windows))
        yield (
            "observables",
            f"{compiled.n_values} trained, on {local} qubits, in {len(compiled.measurement_groups)} bases",
        )
    yield "compiled", f"depth {compiled.depth}, {compiled.two_qubit_gates} two-qubit gates"
    yield "physical qubits", ", ".join(map(str, compiled.physical_qubits))
    yield "device", compiled.device.name
    yield "engine (noise)", layer.engine.label
    yield "transpiler", f"seed {compiled.seed}, optimisation level {compiled.optimization_level}"


def _guidance_rows(guidance: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    yield "diffusion model and data", guidance["dataset"]
    yield "steps", f"{guidance['n_steps']}, spacing {guidance['spacing']}"
    base = "base" if guidance.get("base_schedule") else f"{guidance['g0']:g}"
    yield "scale", f"g = clip({base} + ΔCFG, {guidance['g_min']:g}, {guidance['g_max']:g})"
    if guidance.get("base_schedule"):
        yield "base of each step", ", ".join(f"{g:g}" for g in guidance["base_schedule"])
    yield "largest ΔCFG", f"{guidance['action_limit']:g}"
    yield "state entries", 7 if guidance["extra_state"] else 6
    yield "scorer of the confidence entry", guidance["scorer"] if guidance.get("confidence_entry", True) else "none"


def _training_rows(settings: Mapping[str, Any], record: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for part in ("ppo", "pathwise"):
        if part in settings:
            values = settings[part]
            yield "method", part
            yield "seed", values["seed"]
            yield "iterations", values["num_iterations"]
    if "policy" in settings:
        trained_on = settings["policy"]
        yield "trained as", trained_on["kind"]
        if trained_on["kind"] in ("quantum", "frozen", "unentangled"):
            yield "trained on", f"{trained_on['device']}, engine {trained_on['engine']}"
    if "reward" in settings:
        reward = settings["reward"]
        weights = {n: reward.get(n, 0.0) for n in RewardConfig.weights()}
        named = [f"{n} {w:g}" for n, w in weights.items() if w] + list(reward.get("extra", ()))
        yield "reward", ", ".join(named)
    for name, value in record.get("models", {}).items():
        if value is not None:
            yield f"models: {name}", value
    yield "command", f"`{record['command']}`" if record.get("command") else _NOT_KNOWN
    yield "date", record.get("created", _NOT_KNOWN)
    versions = {"qhw-diffusion": record.get("qhw_diffusion"), **record.get("packages", {})}
    kept = ("qhw-diffusion", "torch", "qiskit", "diffusers")
    yield "versions", ", ".join(f"{n} {versions[n]}" for n in kept if versions.get(n)) or _NOT_KNOWN
    yield "commit", record.get("commit", _NOT_KNOWN)


def _results(evaluations: Mapping[str, Any], dataset: str) -> str:
    if not evaluations:
        return "None recorded: `qhw evaluate guidance RUN` measures a run, and saving it then states the result."
    blocks = []
    for found in evaluations.values():
        known = {"energy": "energy ↓", "fd": "FD ↓", "accuracy": "accuracy", "return": "return"}
        names = [n for n in known if all(n in metrics for metrics in found["values"].values())]
        head = ["policy", *(known[n] for n in names)]
        rows = [
            [player, *(mean_interval(metrics[name]).format(3) for name in names)]
            for player, metrics in found["values"].items()
        ]
        blocks.append(
            f"{found['seeds']} seeds of {found['images']} images each, mean [95 % interval], measured against held-out "
            f"images of {dataset} by the evaluation classifier, which training did not see:\n\n" + _grid(head, rows)
        )
    return "\n\n".join(blocks)


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    return _grid(["", ""], [[name, str(value)] for name, value in rows])


def _grid(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in row) + " |" for row in lines
    )
