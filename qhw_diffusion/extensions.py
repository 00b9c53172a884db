"""Objects of a user's own, named on the command line or in a configuration as ``module:name`` or ``file.py:name``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from qhw_diffusion.errors import InvalidInputError, QhwError

# Where this package's code and installed code lie
_NOT_OWN = tuple(
    os.path.join(folder, "")
    for folder in (os.path.dirname(__file__), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
)


def is_extension(text: object) -> bool:
    """Whether a text names an object of a user's own: ``module:name`` or ``file.py:name``."""
    if not isinstance(text, str):
        return False
    place, colon, name = text.rpartition(":")
    module = place.endswith(".py") or all(part.isidentifier() for part in place.split("."))
    return bool(colon) and name.isidentifier() and bool(place) and module


def load_extension(text: str, *, what: str) -> Any:
    """The object that a text names.

    Modules are looked for as `import` does, and in the current folder.

    Args:
        text: ``module:name`` or ``path/to/file.py:name``.
        what: what the object is to be ("reward term"), for messages.

    Raises:
        InvalidInputError: there is no such module, file or name in it, or the module fails when it is imported.
    """
    if not is_extension(text):
        raise InvalidInputError(f"{what} {text!r} is neither module:name nor file.py:name")
    place, _, name = text.rpartition(":")
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else _from_name(place)
    except QhwError as error:
        raise InvalidInputError(f"{what} {text!r}: {error}") from error
    except ModuleNotFoundError as error:
        missing = error.name == place or place.startswith(f"{error.name}.")
        reason = f"there is no module {place}" if missing else f"importing {place} fails: {error}"
        raise InvalidInputError(f"{what} {text!r}: {reason}") from error
    except (Exception, SystemExit) as error:
        reason = f"importing {place} fails: {raised_text(error)}"
        raise InvalidInputError(f"{what} {text!r}: {reason}") from error
    try:
        return getattr(module, name)
    except AttributeError:
        public = [word for word, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise InvalidInputError(
            f"{what} {text!r}: {place} has no {name!r}; it has {', '.join(public[:12]) or 'nothing of its own'}"
        ) from None


def raised_text(error: BaseException) -> str:
    """An error of a user's own code as a message quotes it: ``ValueError: … (mine.py, line 12)``.

    The place is the last line on the way that is neither of this package nor of anything installed; an error that was
    raised on none such has none.
    """
    text, place, step = f"{type(error).__name__}: {error}", "", error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if not file.startswith((*_NOT_OWN, "<")):
            place = f" ({os.path.basename(file)}, line {step.tb_lineno})"
        step = step.tb_next
    return text + place


def extension_text(given: Any) -> str | None:
    """The text by which a function or class is found again: ``module:name``, or ``file.py:name`` of a script.

    The file's path is relative to the current folder.

    Returns:
        None for what has no such name: an instance, a lambda, a nested function, one typed in a notebook.
    """
    name, module = getattr(given, "__qualname__", ""), sys.modules.get(getattr(given, "__module__", None) or "")
    if module is None or not name.isidentifier() or getattr(module, name, None) is not given:
        return None
    specification, file = getattr(module, "__spec__", None), getattr(module, "__file__", None) or ""
    if module.__name__.startswith("qhw_extension_") or (module.__name__ == "__main__" and not specification):
        return f"{os.path.relpath(file)}:{name}" if file.endswith(".py") else None
    return f"{specification.name if specification else module.__name__}:{name}"


def _from_name(name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # as `python -m` does; last, so that nothing installed is hidden
    return importlib.import_module(name)


class _FromSource(importlib.machinery.SourceFileLoader):
    """Compiles a file as it stands; kept bytecode would also stand for an edit of its size in the same second."""

    def path_stats(self, path: str | bytes) -> Any:  # type: ignore[override]
        """None are told: without them nothing kept is read, and nothing is kept."""
        raise OSError("bytecode of a user's own file is not kept")


def _from_file(path: Path) -> ModuleType:
    resolved = path.resolve()
    if not resolved.is_file():
        here = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise InvalidInputError(f"there is no file {path}{here}")
    main = sys.modules.get("__main__")
    if main is not None and Path(getattr(main, "__file__", None) or "").resolve() == resolved:
        return main  # the script that is running: loaded again, its classes would be others
    name = f"qhw_extension_{resolved.stem}_{hashlib.sha256(str(resolved).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        loader = _FromSource(name, str(resolved))
        specification = importlib.util.spec_from_file_location(name, resolved, loader=loader)
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module  # before it runs: dataclasses look their module up
        try:
            specification.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
