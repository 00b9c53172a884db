"""Engines from one line of text, ``shots:4096:seed=3+readout+zne``, and the text of an engine. The one grammar."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qhw_diffusion.errors import InvalidInputError, QhwError, UnknownNameError
from qhw_diffusion.execution.engine import Engine
from qhw_diffusion.execution.exact import Ideal, Noisy
from qhw_diffusion.execution.shots import Shots

ENGINES: dict[str, type[Engine]] = {"ideal": Ideal, "noisy": Noisy, "shots": Shots}
# (engine, texts of strategies) → engine. Mitigation lies above this package and fills it in when it is imported.
Wrap = Callable[[Engine, Sequence[str]], Engine]
_wraps: list[Wrap] = []


def wrap_with(wrap: Wrap) -> None:
    """Let `engine_of` understand what follows a ``+``; the latest one given is used."""
    _wraps.append(wrap)


def engine_of(engine: str | Engine) -> Engine:
    """The engine of that text, or the engine given.

    A text is ``ideal``, ``noisy`` or ``shots[:N][:seed=S][:ideal]`` (N shots; seed of the outcomes; ``ideal`` without
    the device's noise), and behind it any number of mitigation strategies, each after a ``+``, the one next to the
    engine first (`qhw_diffusion.mitigation`). `Engine.spec` writes these texts.

    Raises:
        UnknownNameError: no such engine or strategy, or no such name among its settings.
        InvalidInputError: a setting that is no number where one is needed, or too many of them.
    """
    if isinstance(engine, Engine):
        return engine
    head, *strategies = str(engine).split("+")
    name, *settings = head.strip().split(":")
    if name not in ENGINES:
        raise UnknownNameError.of("engine", head.strip(), [*ENGINES, "shots:4096"])
    base = ENGINES[name].from_settings(settings)
    if not strategies:
        return base
    if not _wraps:
        import qhw_diffusion

        _ = qhw_diffusion.mitigation  # loaded by the top level; it calls `wrap_with`
    return _wraps[-1](base, strategies)


def check_engine_text(engine: str) -> str:
    """`engine` if `engine_of` understands it: for configurations, which hold text and not engines.

    Raises:
        UnknownNameError, InvalidInputError: as `engine_of`; InvalidInputError for anything but text.
    """
    if not isinstance(engine, str):
        text = engine.spec if isinstance(engine, Engine) else None
        raise InvalidInputError(
            f"engine is {engine!r}; a configuration holds text, " + (f"here {text!r}" if text else "such as 'noisy'")
        )
    engine_of(engine)
    return engine


def spec_of(engine: Engine) -> str:
    """The text that makes an equal engine again.

    Raises:
        InvalidInputError: there is none: the engine holds something live (a primitive, a ledger's runner), or it or
            one of its strategies is not the package's own.
    """
    spec = engine.spec
    try:
        if spec is not None and engine_of(spec) == engine:
            return spec
    except QhwError:
        pass
    raise InvalidInputError(
        f"engine {engine.label!r} ({type(engine).__name__}) cannot be saved: no text makes it again. Move to one that "
        "can first, with layer.with_engine('noisy') or actor.on(engine='noisy'), and give this one again after loading"
    )
