"""Masks the user's own credentials: where they are kept, and every way in which text can spell them."""

from __future__ import annotations

import base64
import functools
import html
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from qhw_diffusion.masking.shapes import MASK, is_name, values_in

# A shorter text is no credential that could be told from a word
_SHORTEST = 4
# Below, it is masked as a word by itself only: a part of another word would say nothing
_SHORT = 8
# Of variables whose name alone says that they hold a credential
_SHORTEST_OF_OTHERS = 12
_BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_=%")

_remembered: set[str] = set()


def remember(secret: object) -> None:
    """Mask this credential from now on, wherever it occurs: one that this process was handed. None is ignored."""
    if isinstance(secret, str) and len(secret) >= _SHORTEST:
        _remembered.add(secret)


def account_file() -> Path:
    """Where IBM's client keeps saved accounts."""
    return Path(os.path.expanduser("~")) / ".qiskit" / "qiskit-ibm.json"


def saved_accounts() -> Any:
    """What the client's file holds: accounts by name; {} without a file; its text where that is no such thing."""
    try:
        text = account_file().read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    try:
        accounts = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return accounts if isinstance(accounts, dict) else text


def without_own(text: str, *, least: int = _SHORTEST) -> str:
    """`text` without the user's own credentials in plain, escaped, address-coded, hexadecimal and base64 form.

    Args:
        text: any.
        least: shorter credentials are let through.
    """
    for secret in sorted(own_credentials(), key=len, reverse=True):
        if len(secret) < least:
            continue
        for spelling in _spellings(secret):
            if spelling not in text:
                continue
            if len(secret) >= _SHORT:
                text = text.replace(spelling, MASK)
            else:
                text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(spelling)}(?![A-Za-z0-9])", lambda _: MASK, text)
        for core in _in_base64(secret):
            text = _without_run(text, core)
    return text


def own_credentials() -> set[str]:
    """Those of the environment, of saved accounts, and those that were `remember`-ed."""
    found = {os.environ.get("QISKIT_IBM_TOKEN", ""), *_remembered, *_saved(*_state_of_file())}
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_OF_OTHERS and is_name(name):
            found.add(value)
    return {secret for secret in found if len(secret) >= _SHORTEST}


def _state_of_file() -> tuple[str, int, int]:
    """The account file as it is now, so that it is read again only when it has changed."""
    path = account_file()
    try:
        state = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), state.st_mtime_ns, state.st_size


@functools.lru_cache(maxsize=8)
def _saved(path: str, changed: int, size: int) -> frozenset[str]:
    accounts = saved_accounts() if size else {}
    return frozenset(values_in(accounts) if isinstance(accounts, str) else _named_values(accounts))


def _named_values(document: Any) -> Iterator[str]:
    """Texts of a JSON document whose name says that they are credentials."""
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _named_values(value)
        elif isinstance(value, str) and is_name(name):
            yield value


@functools.lru_cache(maxsize=64)
def _spellings(secret: str) -> tuple[str, ...]:
    """The longest first, so that none is left half masked."""
    data = secret.encode()
    coded = [quote(secret, safe=""), quote(secret), quote_plus(secret), "".join(f"%{byte:02X}" for byte in data)]
    escaped = [json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]]
    spellings = [
        secret,
        *coded,
        *(re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), text) for text in coded),
        *escaped,
        *(json.dumps(text)[1:-1] for text in escaped),
        repr(secret)[1:-1],
        repr(data)[2:-1],
        html.escape(secret),
        data.hex(),
        data.hex().upper(),
    ]
    return tuple(sorted(set(spellings), key=len, reverse=True))


@functools.lru_cache(maxsize=64)
def _in_base64(secret: str) -> tuple[str, ...]:
    """What stays of the credential in base64 whatever stands around it, at each of the three places in a group."""
    data, cores = secret.encode(), set()
    for before in range(3):
        coded = base64.b64encode(b"\0" * before + data).decode()
        # A character takes six bits; those with bits of a neighbour are left out
        core = coded[-(-8 * before // 6) : 8 * (before + len(data)) // 6]
        if len(core) >= _SHORT:
            cores |= {
                core,
                core.replace("+", "-").replace("/", "_"),
                quote(core, safe=""),
                quote(core, safe="").lower(),
            }
    return tuple(sorted(cores))


def _without_run(text: str, core: str) -> str:
    """`text` without the whole base64 words in which `core` stands."""
    parts, done, at = [], 0, text.find(core)
    while at >= 0:
        start, end = at, at + len(core)
        while start > done and text[start - 1] in _BASE64:
            start -= 1
        while end < len(text) and text[end] in _BASE64:
            end += 1
        parts += [text[done:start], MASK]
        done = end
        at = text.find(core, done)
    return "".join([*parts, text[done:]])
