"""`qhw doctor`: what this machine has and lacks for the package, line by line, and what to do about it."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import qhw_diffusion

State = Literal["ok", "note", "problem"]
OK: State = "ok"
NOTE: State = "note"
PROBLEM: State = "problem"
PACKAGE = "qhw-diffusion"
# libraries whose version is worth a line; those that the package does not require are not told of here
SHOWN = ("torch", "qiskit", "qiskit-aer", "qiskit-ibm-runtime", "llvmlite", "numpy", "scipy", "diffusers")
# extras for work on the package itself
INSIDE = ("all", "bench", "dev", "docs")
LITTLE_DISK, LITTLE_MEMORY = 2 * 2**30, 2 * 2**30


@dataclass(frozen=True)
class Line:
    """What was looked at, and what came of it.

    Attributes:
        state: "ok", "note" (works, worth knowing) or "problem" (something fails).
        what: what was looked at.
        text: what was found.
        do: what to do about it; empty where there is nothing to do.
    """

    state: State
    what: str
    text: str
    do: str = ""


def doctor(*, online: bool = False, ledger: Path | None = None, json_: bool = False) -> int:
    """Check what this machine has and lacks, and say what to do about it.

    Ends with code 1 where there is a problem, with 0 where there are notes alone.

    Args:
        online: connect to IBM Quantum with the account, too.
        ledger: folder of the ledger; without it $QHW_LEDGER, else runs/ledger.
        json_: JSON instead of text.
    """
    from qhw_diffusion.masking import without_tokens

    lines = [
        Line(line.state, line.what, without_tokens(line.text), without_tokens(line.do))
        for line in examined(online=online, ledger=ledger)
    ]
    if json_:
        print(json.dumps([asdict(line) for line in lines], indent=2, ensure_ascii=False))
    else:
        width = max(len(line.what) for line in lines)
        for line in lines:
            print(f"{line.state:<7}  {line.what:<{width}}  {line.text}")
            if line.do:
                print(f"{'':<7}  {'':<{width}}  → {line.do}")
    return int(any(line.state == PROBLEM for line in lines))


def examined(*, online: bool, ledger: Path | None) -> Iterator[Line]:
    """All lines. A check that fails itself is a problem of its own, and the others are made."""
    checks: dict[str, Callable[[], Iterator[Line]]] = {
        "Python": _python,
        "libraries": _libraries,
        "extras": _extras,
        "cores": _cores,
        "memory": _memory,
        "disk": _disk,
        "compiled loops": _loops,
        "account": lambda: _account(online),
        "ledger": lambda: _ledger(ledger),
    }
    for what, check in checks.items():
        try:
            yield from check()
        except Exception as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            yield Line(PROBLEM, what, f"could not be looked at ({told})", "mend what the message names, and try again")


def _python() -> Iterator[Line]:
    yield Line(OK, "package", f"{PACKAGE} {qhw_diffusion.__version__} in {Path(qhw_diffusion.__file__).parent}")
    number = platform.python_version()
    wanted = _metadata("Requires-Python")
    if wanted and not _fits(wanted, number):
        yield Line(PROBLEM, "Python", f"{number}; allowed: {wanted}", "install the package with another Python")
    else:
        yield Line(OK, "Python", f"{number} ({sys.executable})")


def _metadata(name: str) -> str | None:
    try:
        return (importlib.metadata.metadata(PACKAGE).get_all(name) or [None])[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def _fits(wanted: str, number: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(wanted).contains(number, prereleases=True)


def _requirements(extra: str | None) -> Iterator[tuple[str, str]]:
    """(package, versions allowed) of what the package requires, or of what one of its extras does besides."""
    from packaging.requirements import Requirement

    for text in importlib.metadata.requires(PACKAGE) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        needed = marker is None or marker.evaluate({"extra": ""})
        if needed if extra is None else not needed and marker is not None and marker.evaluate({"extra": extra}):
            yield requirement.name, str(requirement.specifier)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _libraries() -> Iterator[Line]:
    try:
        required = dict(_requirements(None))
    except importlib.metadata.PackageNotFoundError:
        yield Line(NOTE, "libraries", f"{PACKAGE} is not installed, but read from its folder", "pip install -e .")
        return
    for name, wanted in required.items():
        number = _version(name)
        if number is None:
            yield Line(PROBLEM, name, f"missing; needed: {wanted}", f"pip install '{name}{wanted}'")
        elif not _fits(wanted, number):
            yield Line(PROBLEM, name, f"{number}; needed: {wanted}", f"pip install '{name}{wanted}'")
    shown = {name: _version(name) for name in SHOWN if name in required}
    yield Line(OK, "libraries", ", ".join(f"{name} {number}" for name, number in shown.items() if number))


def _extras() -> Iterator[Line]:
    try:
        names = importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return
    found: list[str] = []
    missing: list[str] = []
    for extra in (name for name in names if name not in INSIDE):
        lacking = []
        for package, wanted in _requirements(extra):
            number = _version(package)
            if number is not None and not _fits(wanted, number):
                yield Line(
                    NOTE, f"extra {extra}", f"{package} {number}; needed: {wanted}", f"pip install '{package}{wanted}'"
                )
            lacking += [package] if number is None else []
        (missing if lacking else found).append(extra)
    if found:
        yield Line(OK, "extras", ", ".join(found))
    if missing:
        install = f"if you need one: pip install '{PACKAGE}[{','.join(missing)}]', or some of them"
        yield Line(NOTE, "extras", f"not installed: {', '.join(missing)}", install)


def _cores() -> Iterator[Line]:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    import torch

    from qhw_diffusion.config import is_thread_count

    told = [f"{allowed} cores to use of {os.cpu_count()}", f"torch takes {torch.get_num_threads()}"]
    for name in ("OMP_NUM_THREADS", "QHW_NUM_THREADS"):
        value = os.environ.get(name)
        if value is None:
            continue
        told.append(f"{name}={value}")
        if not is_thread_count(value):
            yield Line(PROBLEM, "cores", f"{name} is {value!r}; allowed: whole numbers from 1", f"unset {name}")
    yield Line(OK, "cores", "; ".join(told) + " (the qhw command sets OMP_NUM_THREADS=1 unless it is set)")
    if torch.cuda.is_available():
        yield Line(OK, "GPU", f"{torch.cuda.get_device_name()}; circuits are simulated on the CPU")


def _memory() -> Iterator[Line]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = None
    if Path("/proc/meminfo").exists():
        entries = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
        free = int(entries["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in entries else None
    text = f"{_size(total)}" + ("" if free is None else f", {_size(free)} of it free")
    if (total if free is None else free) < LITTLE_MEMORY:
        yield Line(NOTE, "memory", text, "close other programs; a study takes some GB for each worker (--workers 1)")
    else:
        yield Line(OK, "memory", text)


def _disk() -> Iterator[Line]:
    for what, place in (("disk", Path.cwd()), ("temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(place).free
        where = f"{_size(free)} free at {place}"
        if not os.access(place, os.W_OK):
            yield Line(NOTE, what, f"{place} cannot be written to", "work in a folder of your own, or give --out")
        elif free < LITTLE_DISK:
            yield Line(NOTE, what, where, "make room: a study or a training takes up to some GB")
        else:
            yield Line(OK, what, where)


def _loops() -> Iterator[Line]:
    """Whether the loops that simulate circuits compile."""
    import torch

    import qhw_diffusion as qhw

    policy = qhw.circuits.policy_circuit(n_qubits=2, depth=1, n_features=2)
    compiled = qhw.compile_circuit(
        policy.circuit,
        qhw.Device.load("fake_manila"),
        inputs=policy.inputs,
        weights=policy.weights,
        observables=policy.observables,
    )
    layer = qhw.QuantumLayer(compiled, "noisy")
    layer(torch.zeros(3, 2)).sum().backward()
    norm = torch.linalg.norm(layer.weight.grad)
    yield Line(OK, "compiled loops", f"a circuit was simulated (gradient {norm:.3g})")


def _account(online: bool) -> Iterator[Line]:
    from qhw_diffusion.devices import has_account
    from qhw_diffusion.devices.account import SETUP, account_file, connect, saved_accounts
    from qhw_diffusion.errors import QhwError

    if not has_account():
        yield Line(NOTE, "account", "no IBM Quantum account: everything runs on fake devices", SETUP)
        return
    where = "QISKIT_IBM_TOKEN" if os.environ.get("QISKIT_IBM_TOKEN") else str(account_file())
    if not os.environ.get("QISKIT_IBM_TOKEN") and not isinstance(saved_accounts(), dict):
        yield Line(PROBLEM, "account", f"{where} is damaged", f"delete it. {SETUP}")
    elif not online:
        yield Line(OK, "account", f"in {where}; not tried", "qhw doctor --online tries it")
    else:
        try:
            connect()
        except QhwError as error:
            yield Line(PROBLEM, "account", str(error), "mend what the message names; qhw devices asks again")
        else:
            yield Line(OK, "account", f"in {where}; IBM Quantum answers")


def _ledger(folder: Path | None) -> Iterator[Line]:
    from qhw_diffusion.errors import LedgerError
    from qhw_diffusion.hardware.ledger import Ledger, ledger_folder

    place = ledger_folder(folder)
    if not place.exists():
        if folder is not None or "QHW_LEDGER" in os.environ:
            yield Line(NOTE, "ledger", f"none in {place}", "check the path; the first job makes a new one there")
        else:
            yield Line(OK, "ledger", f"none in {place} yet: the first job makes it")
        return
    try:
        with Ledger.open(folder, create=False) as opened:
            rows = opened.rows()
    except LedgerError as error:
        yield Line(PROBLEM, "ledger", str(error), f"qhw ledger recover --ledger {place} looks for damage and mends it")
        return
    open_jobs = [row for row in rows if row.state in ("planned", "submitted")]
    text = f"{len(rows)} jobs in {place}"
    if open_jobs:
        yield Line(NOTE, "ledger", f"{text}, {len(open_jobs)} of them not settled", "qhw ledger list says what is next")
    else:
        yield Line(OK, "ledger", text)


def _size(count: float) -> str:
    """Bytes, in the unit that people read."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
