"""Credentials out of text: every shape they take, every spelling of the user's own; words that only sound like it."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import json
import logging
import pickle
import random
import string
import sys
import time
import traceback
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest

from qhw_diffusion.errors import JobError, MissingDataError, QhwError
from qhw_diffusion.masking import (
    MASK,
    mask_logs,
    own,
    remember,
    shown_cause,
    traceback_of,
    without_own_tokens,
    without_tokens,
)

CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:5f6e7d8c-0000-4000-8000-123456789abc::"
HASH = "9db1796ae5d63c0ffee0123456789abcdef0123456789abcdef0123456789abc"
SIMPLE = string.ascii_letters + string.digits + "_-"
ANY = string.ascii_letters + string.digits + string.punctuation + "äß€"


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No account, nothing remembered."""
    monkeypatch.delenv("QISKIT_IBM_TOKEN", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(own, "_remembered", set())


def unmistakable(generator: random.Random) -> str:
    """A token with small and capital letters and digits in its midst."""
    parts = [drawn(generator, string.ascii_letters + string.digits) for _ in range(2)]
    return f"{parts[0]}a7B{parts[1]}"


def drawn(generator: random.Random, alphabet: str) -> str:
    """A token of 17 to 49 characters that is no word."""
    return "".join(generator.choices(alphabet, k=generator.randint(16, 48))) + generator.choice("0123456789")


def quoted(text: str, levels: int = 1) -> str:
    """The text as a JSON string in a JSON string in …"""
    for _ in range(levels):
        text = json.dumps(text)
    return text


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# What a stranger's token looks like where it may hold no space, quote, comma or ampersand
BARE: dict[str, Callable[[str], str]] = {
    "access token": lambda t: f"access_token={t}",
    "token": lambda t: f"token={t}",
    "spaces": lambda t: f"apiToken = {t}",
    "apiToken": lambda t: f"Account(apiToken={t}, instance={CRN})",
    "api key": lambda t: f"api_key: {t}",
    "API key": lambda t: f"API key: {t}",
    "header": lambda t: f"X-API-Key: {t}",
    "refresh": lambda t: f"refresh_token={t}&grant_type=refresh_token",
    "password": lambda t: f"password={t}",
    "secret": lambda t: f"client-secret={t}; then",
    "environment": lambda t: f"PATH=/bin\nQISKIT_IBM_TOKEN={t}\nHOME=/root",
    "export": lambda t: f"export QISKIT_IBM_TOKEN='{t}'",
    "curl": lambda t: f"curl -s -u me:{t} https://host/v1/jobs",
    "option with a quote": lambda t: f"--user='me:{t}'",
    "called": lambda t: f"client(ApiKey('{t}'), {CRN})",
    "address": lambda t: f"GET https://host/v1/jobs?token={t}&limit=5 HTTP/1.1",
    "userinfo": lambda t: f"proxy https://user:{t}@proxy.example:8080/path refused",
    "token as user": lambda t: f"https://{t}@github.example/x.git",
    "coded userinfo": lambda t: f"url=https%3A%2F%2Fuser%3A{t}%40host%2Fpath",
    "bearer": lambda t: f"Authorization: Bearer {t}",
    "scheme of IBM": lambda t: f"authorization: apikey {t} was refused",
    "basic": lambda t: f"Authorization: Basic {b64('user:' + t)}",
    "basic alone": lambda t: f"sent Basic {b64('apikey:' + t)}, refused",
    "bearer alone": lambda t: f"sent bearer {t}.",
    "digest": lambda t: f'Authorization: Digest username="u", realm="r", response="{t}"\nAccept: x',
    "cookie": lambda t: f"Set-Cookie: session={t}; Path=/; HttpOnly",
    "wire": lambda t: rf"send: b'GET / HTTP/1.1\r\nAuthorization: Bearer {t}\r\nAccept: */*'",
    "form": lambda t: f"grant_type=urn%3Aibm%3Aparams&apikey={t}&response_type=cloud_iam",
    "form of parts": lambda t: f'Content-Disposition: form-data; name="password"\r\n\r\n{t}\r\n--x',
    "coded": lambda t: f"q=token%3D{t}%26limit%3D5",
    "option": lambda t: f"qhw devices --token {t} --json",
    "option =": lambda t: f"qhw devices --api-key={t} --json",
    "arguments": lambda t: repr(["qhw", "--token", t, "--json"]),
    "web token": lambda t: f"got eyJ{t.replace('.', '')}.eyJ{t[:9]}.{t} for us",
    "private key": lambda t: f"-----BEGIN RSA PRIVATE KEY-----\n{t.replace('-', 'x')}\n-----END RSA PRIVATE KEY-----",
}
# Where neither a sign nor quotes tie it to its name: next to the name stands something that can only be a credential
NEAR: dict[str, Callable[[str], str]] = {
    "YAML block": lambda t: f"token: |\n  {t}\n",
    "YAML folded": lambda t: f"api_key: >-\n    {t}\n",
    "YAML list": lambda t: f"tokens:\n  - {t}\n",
    "YAML tag": lambda t: f"token: !!str {t}",
    "TOML": lambda t: f'token = """\n{t}"""',
    "next line": lambda t: f"The token:\r\n{t}\r\nis wrong",
    "continued line": lambda t: f"qhw devices --token \\\n    {t}",
    "folded": lambda t: f"token: {t[:8]}\r\n {t[8:]}{t}",
    "string of parts": lambda t: f'token = ("{t[:8]}"\n    "{t[8:]}{t}")',
    "XML": lambda t: f"<token>{t}</token>",
    "form field": lambda t: f'<input name="token" value="{t}">',
    "netrc": lambda t: f"machine host login user password {t}",
    "table": lambda t: f"| api key   | {t} |",
    "columns": lambda t: f"QISKIT_IBM_TOKEN\t{t}",
    "shell": lambda t: f"setenv QISKIT_IBM_TOKEN {t}",
    "manifest": lambda t: f"- name: QISKIT_IBM_TOKEN\n  value: {t}",
    "arrow": lambda t: f"token -> {t}",
    "index": lambda t: f'account["token"] = "{t}"',
    "plural": lambda t: json.dumps({"apikeys": [t]}),
    "value": lambda t: json.dumps({"tokenValue": t}),
    "credentials": lambda t: f"credentials: {t}",
    "auth": lambda t: f"auth={t}",
    "colours": lambda t: f"\x1b[0;31mtoken\x1b[0m\x1b[38;5;241m=\x1b[39m\x1b[33m'{t}'\x1b[39m",
    "sentence": lambda t: f"Your API key {t} was not found",
    "sentence with quotes": lambda t: f"the token '{t}' was rejected",
    "is": lambda t: f"the token is {t}, which is wrong",
    "bytes of a pickle": lambda t: repr(pickle.dumps({"token": t})),
    "coded twice": lambda t: urllib.parse.quote(urllib.parse.quote(f"?token={t}&n=5", safe=""), safe=""),
    "base64 of JSON": lambda t: b64(json.dumps({"n": 1, "token": t})),
    "base64 in lines": lambda t: base64.encodebytes(json.dumps({"n": 1, "apikey": t}).encode() * 3).decode(),
    "curl": lambda t: f"curl -s -u user:{t} https://host/jobs",
    "curl in quotes": lambda t: f"curl --proxy-user 'user:{t}' https://host/jobs",
    "curl's cookie": lambda t: f"curl https://host/jobs -b 'session={t}; a=b'",
    "signed address": lambda t: f"GET https://host/a.json?X-Amz-Date=20261121&X-Amz-Signature={t}&n=5",
}
# And where quotes hold it together, whatever it is made of
QUOTED: dict[str, Callable[[str], str]] = {
    "JSON": lambda t: json.dumps({"apikey": t, "instance": CRN}),
    "indented JSON": lambda t: json.dumps({"token": t, "n": 1}, indent=2),
    "compact JSON": lambda t: json.dumps({"n": 1, "access_token": t}, separators=(",", ":")),
    "plain JSON": lambda t: json.dumps({"token": t}, ensure_ascii=False),
    "JSON in JSON": lambda t: json.dumps({"body": json.dumps({"token": t, "n": 1})}),
    "three times": lambda t: quoted(json.dumps({"token": t, "n": [1]}), 2),
    "repr of JSON": lambda t: repr(json.dumps({"token": t})),
    "bytes of JSON": lambda t: repr(json.dumps({"token": t}).encode()),
    "dictionary": lambda t: repr({"headers": {"Authorization": "Bearer " + t, "Accept": "*/*"}, "password": t}),
    "dictionary of bytes": lambda t: repr({b"X-API-Key": t.encode()}),
    "pairs": lambda t: repr([("X-API-Key", t), ("Accept", "*/*")]),
    "pairs of bytes": lambda t: repr(((b"authorization", b"Bearer " + t.encode()), (b"accept", b"*/*"))),
    "lists": lambda t: repr({"token": [t, t]}),
    "parsed address": lambda t: repr(urllib.parse.parse_qs(urllib.parse.urlencode({"token": t}))),
    "arguments of a call": lambda t: f"save_account(token={t!r}, instance={CRN!r})",
    "nested": lambda t: json.dumps({"token": {"value": t, "expires": 5}}),
    "HAR": lambda t: json.dumps({"name": "X-Api-Key", "value": t}),
    "HTML": lambda t: html.escape(json.dumps({"token": t})),
    "coded JSON": lambda t: "q=" + urllib.parse.quote(json.dumps({"apikey": t, "n": 1})),
    "coded form": lambda t: urllib.parse.urlencode({"apikey": t, "n": 1}),
    "coded address": lambda t: f"GET https://host/jobs?token={urllib.parse.quote(t, safe='')}&limit=5",
    "YAML": lambda t: f"token: {json.dumps(t)}",
    "cut off": lambda t: json.dumps({"n": 1, "token": t})[:-2],
}


def spellings(token: str) -> set[str]:
    """Forms in which the token could still be read from a text."""
    return {
        token,
        json.dumps(token)[1:-1],
        repr(token)[1:-1],
        repr(token.encode())[2:-1],
        urllib.parse.quote(token, safe=""),
        urllib.parse.quote_plus(token),
        html.escape(token),
        json.dumps(json.dumps(token)[1:-1])[1:-1],
    }


@pytest.mark.slow
@pytest.mark.parametrize("shape", [*BARE, *QUOTED])
def test_a_stranger_s_token_is_masked_in_every_shape(shape: str) -> None:
    generator = random.Random(shape)
    for _ in range(60):
        token = drawn(generator, SIMPLE if shape in BARE else ANY)
        text = (BARE.get(shape) or QUOTED[shape])(token)
        for around in (text, f"request {text} failed with 401", f"job d1k2 said:\n{text}\nfor {HASH}"):
            masked = without_tokens(around)
            assert MASK in masked
            assert not any(form in masked for form in spellings(token)), (around, masked)
            assert b64("user:" + token) not in masked
            assert without_tokens(masked) == masked


@pytest.mark.slow
@pytest.mark.parametrize("shape", NEAR)
def test_what_can_only_be_a_credential_is_masked_next_to_its_name(shape: str) -> None:
    generator = random.Random(shape)
    for _ in range(60):
        token = unmistakable(generator)
        text = NEAR[shape](token)
        for around in (text, f"request {text} failed with 401", f"job d1k2 said:\n{text}\nfor {HASH}"):
            masked = without_tokens(around)
            assert MASK in masked
            assert token not in masked, (around, masked)
            assert token[8:] not in masked, (around, masked)
            assert not any(b64("x" * n + token)[8:20] in masked for n in range(3))
            assert without_tokens(masked) == masked


@pytest.mark.parametrize("shape", sorted(BARE.keys() - {"digest", "cookie", "private key", "wire"}))
def test_what_stands_around_a_masked_value_stays(shape: str) -> None:
    token = drawn(random.Random(shape), SIMPLE)
    kept, _, rest = BARE[shape](token).partition(token)
    masked = without_tokens(f"job d1k2 {BARE[shape](token)} on ibm_x: 401 for {HASH} of {CRN}")
    assert masked.startswith("job d1k2 ")
    assert masked.endswith(f" on ibm_x: 401 for {HASH} of {CRN}")
    assert "Account" not in kept or rest in masked


@pytest.mark.slow
def test_pictures_and_other_data_in_base64_stay() -> None:
    data = random.Random(1).randbytes(400_000)
    for text in (base64.b64encode(data).decode(), base64.encodebytes(data).decode(), data.hex()):
        assert without_tokens(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "invalid token given",
        "tokens: 5",
        "no API key found",
        "token: expired",
        "API key: missing",
        "n_tokens=77, max_tokens=5",
        "the credentials are refused. The API key is wrong, expired or disabled",
        "bearer of good news, Basic authentication",
        "Unable to retrieve IBM Cloud access token. API Key will be used instead. Error: no, Status code: 400",
        'QiskitRuntimeService.save_account(token="…", instance="…", set_as_default=True, overwrite=True)',
        "set QISKIT_IBM_TOKEN and QISKIT_IBM_INSTANCE",
        "export QISKIT_IBM_TOKEN=",
        "token=None, password=None, api_key=''",
        f"job d10b61d6522bd4935ad9 of {CRN}, key {HASH}, key={HASH}, seal: {HASH}",
        "token 5 of 12",
        "token: 5",
        "PWD=/srv/somebody OLDPWD=/srv",
        "Unexpected token '<' at 3",
        "unexpected settings: ['token', 'instance']",
        "https://quantum.cloud.ibm.com/docs/guides/job-limits#a@b and mail a@b.c",
        "http://127.0.0.1:8080/experimental/jobs?limit=5",
        '{"token_type": "Bearer", "expires_in": 3600, "tokenizer": "clip"}',
        "usage: qhw --token TOKEN [--secret NAME]",
        "get a token: https://quantum.cloud.ibm.com",
        "a basic 2x2 grid, basic re-uploading-2",
        "broken: yes; bypass=5; secretary: Ann",
        'S.save_account(token=getpass("API key: "), instance=input("CRN: "), set_as_default=True)',
        "    token=self._account.token,\n    api_key=api_key,\n    access_token = self.manager.get_token()",
        'token = os.getenv("QISKIT_IBM_TOKEN")',
        "token: IBM Cloud API key",
        "the token of job d10b61d6522bd4935ad9, secret of fake_marrakesh-2025-02-26.json.gz",
        "API key for QiskitRuntimeServiceV2, token (FakeMarrakeshEstimatorV2)",
        "no credentials: QISKIT_IBM_TOKEN and QISKIT_IBM_INSTANCE are not set, nor SAVED_ACCOUNT_NUMBER_2",
        "credentials: ~/.qiskit/qiskit-ibm.json, secrets in /Users/Ann/Work2026/Secrets/notes",
        f"the API key does not fit {CRN}, and credentials of {CRN} neither",
        b64("a sentence with spaces in base64, which names no credential at all"),
        "curl -s -o out.json https://host/a -u",
    ],
)
def test_words_that_only_sound_like_it_stay(text: str) -> None:
    assert without_tokens(text) == text


# -- the user's own ----------------------------------------------------------------------------------------------------

OWN: dict[str, Callable[[str], str]] = {
    "literal": lambda t: t,
    "coded": lambda t: urllib.parse.quote(t, safe=""),
    "lower-case codes": lambda t: urllib.parse.quote(t, safe="").lower() if t.islower() else urllib.parse.quote(t),
    "plus": urllib.parse.quote_plus,
    "form": lambda t: urllib.parse.urlencode({"k": t}),
    "JSON": lambda t: json.dumps({"k": t}),
    "JSON in JSON": lambda t: json.dumps(json.dumps({"k": t})),
    "plain JSON": lambda t: json.dumps({"k": t}, ensure_ascii=False),
    "repr": repr,
    "bytes": lambda t: repr(t.encode()),
    "HTML": html.escape,
    "base64": b64,
    "base64 behind one": lambda t: b64("u" + t),
    "Basic": lambda t: b64("us:" + t),
    "base64 in the middle": lambda t: b64(f"user:{t}:more"),
    "base64 for addresses": lambda t: base64.urlsafe_b64encode(f"apikey:{t}".encode()).decode(),
    "coded base64": lambda t: urllib.parse.quote(b64("apikey:" + t), safe=""),
    "hexadecimal": lambda t: t.encode().hex(),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", OWN)
@pytest.mark.parametrize("source", ["environment", "file", "damaged file", "remembered", "another variable"])
def test_the_user_s_own_token_is_masked_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str, source: str
) -> None:
    generator = random.Random(how + source)
    for alphabet in (SIMPLE, string.ascii_letters + string.digits + "/+=%&'\\\"<ä"):
        token = drawn(generator, alphabet)
        if source in ("environment", "another variable"):
            monkeypatch.setenv("QISKIT_IBM_TOKEN" if source == "environment" else "SOMEBODYS_API_KEY", token)
        elif source == "remembered":
            remember(token)
        else:
            if source == "damaged file":
                token = drawn(generator, SIMPLE)
            file = tmp_path / ".qiskit" / "qiskit-ibm.json"
            file.parent.mkdir(exist_ok=True)
            text = json.dumps({"mine": {"channel": "ibm", "token": token, "instance": CRN}})
            file.write_text(text if source == "file" else text[:-2])
        spelled = OWN[how](token)
        for around in (
            spelled,
            f"before{spelled}after",
            f"word {spelled} word {spelled}",
            "x" * generator.randint(0, 99) + spelled,
        ):
            for mask in (without_tokens, without_own_tokens):
                masked = mask(around)
                assert MASK in masked, (token, around, masked)
                assert spelled not in masked
                assert mask(masked) == masked


def test_every_credential_of_the_account_file_counts(tmp_path: Path) -> None:
    (tmp_path / ".qiskit").mkdir()
    account = {
        "token": "SavedToken-123456",
        "instance": CRN,
        "proxies": {"password_ntlm": "ntlm-pass", "username_ntlm": "name"},
    }
    (tmp_path / ".qiskit" / "qiskit-ibm.json").write_text(json.dumps({"mine": account}))
    masked = without_tokens(f"SavedToken-123456 and ntlm-pass of name at {CRN}")
    assert masked == f"{MASK} and {MASK} of name at {CRN}"


def test_a_short_password_is_masked_as_a_word_only_and_never_in_data() -> None:
    remember("abcd")
    assert without_tokens("abcd, xabcdx") == f"{MASK}, xabcdx"
    assert without_own_tokens("abcd") == "abcd"
    remember("abc")
    assert without_tokens("abc") == "abc"


def test_an_empty_or_absent_token_masks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "")
    remember(None)
    remember("")
    assert without_tokens("a text of words") == "a text of words"


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "\\",
        '"',
        "'",
        " ",
        "-",
        ".",
        "token=",
        'token="',
        '"token": [',
        'token=["',
        "--token ",
        "--a",
        "Authorization: ",
        "eyJ",
        "eyJaaaaaaaa.",
        "http://",
        "://a@",
        "bearer ",
        "apikey=",
        "token=a,",
        ",a=",
        '\\"',
        "%22token%22%3A",
        'token="" ',
        "token=((",
        "-----BEGIN PRIVATE KEY-----",
        "cookie: ",
        "&quot;",
        '"token":\n',
        "api ",
        '"token", ',
        "0123456789abcdef",
        "Basic dTpw ",
    ],
)
def test_time_grows_with_the_length_and_no_faster(monkeypatch: pytest.MonkeyPatch, piece: str) -> None:
    """Quadratic time would be many seconds."""
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "Own-Token-0123456789")
    for opening in ("", "token=", 'token="', '"token": ["', "://", "eyJaaaaaaaa."):
        text = opening + piece * (30_000 // len(piece))
        started = time.process_time()
        without_tokens(text)
        assert time.process_time() - started < 0.45, opening  # it takes some hundredths


def test_a_line_of_a_megabyte() -> None:
    text = json.dumps({"n": list(range(130_000)), "token": "abcDEF123456", "rest": "x y, z: " * 20_000})
    assert len(text) > 1_000_000
    started = time.process_time()
    masked = without_tokens(text)
    assert time.process_time() - started < 5.0
    assert masked == text.replace("abcDEF123456", MASK)


# -- where text leaves -------------------------------------------------------------------------------------------------


def test_an_error_of_the_package_cannot_show_one() -> None:
    remember("Own-Token-0123456789")
    for kind in (QhwError, JobError, MissingDataError):
        error = kind("401 for Own-Token-0123456789; Authorization: Bearer abcDEF123456, job d1k2")
        assert str(error) == f"401 for {MASK}; Authorization: Bearer {MASK}, job d1k2"
        assert "0123456789" not in repr(error) + repr(error.args)
    assert JobError("x", 5).args == ("x", 5)


def test_a_chained_cause_is_shown_masked_or_as_it_is() -> None:
    harmless = ValueError("no such qubit")
    assert shown_cause(harmless) is harmless
    try:
        try:
            raise KeyError("token=abcDEF123456")
        except KeyError as inner:
            raise ValueError("outer") from inner
    except ValueError as error:
        told = error
    cause = shown_cause(told)
    assert "abcDEF123456" not in "".join(traceback.format_exception(cause))
    assert "outer" in str(cause)
    assert "abcDEF123456" not in traceback_of(told)


def test_log_records_are_masked_whenever_the_logger_is_made(caplog: pytest.LogCaptureFixture) -> None:
    before = logging.getLogRecordFactory()
    try:
        mask_logs()
        mask_logs()
        remember("Own-Token-0123456789")
        caplog.set_level(logging.DEBUG)
        for name in ("qiskit_ibm_runtime.made_later", "urllib3.connectionpool", "requests", "py.warnings"):
            logger = logging.getLogger(name)
            logger.debug("header %s, body %r", {"Authorization": "apikey abcDEF123456"}, b"Own-Token-0123456789")
            logger.info("bad %d arguments of Own-Token-0123456789", "x")
            try:
                raise ValueError("inner Own-Token-0123456789")
            except ValueError:
                logger.exception("went wrong", stack_info=True)
            logger.info("no exception", exc_info=True)
        logging.getLogger("somebody.else").info("%s stays %s", "hers", "token=abcDEF123456")
        ours = [record for record in caplog.records if record.name != "somebody.else"]
        shown = " ".join(f"{record.__dict__}" for record in ours)
        assert "0123456789" not in shown
        assert "abcDEF123456" not in shown
        assert shown.count("inner (token hidden)") >= 4
        assert caplog.records[-1].getMessage() == "hers stays token=abcDEF123456"
    finally:
        logging.setLogRecordFactory(before)


class _FailsToFormat(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        raise KeyError(f"no field token=abcDEF123456 in {record.getMessage()}")


def _failing(kind: str) -> logging.StreamHandler:
    """A handler that fails as it writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    if kind == "closed":
        stream.close()
    elif kind == "encoding":
        handler = logging.StreamHandler(io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    elif kind == "full":
        handler = logging.StreamHandler(Path("/dev/full").open("w", buffering=1))  # noqa: SIM115 - fails as it is closed
    else:
        handler.setFormatter(_FailsToFormat())
    return handler


@pytest.mark.parametrize("kind", ["closed", "encoding", "full", "format"])
@pytest.mark.parametrize("name", ["qiskit_ibm_runtime.made_later", "somebody.else"])
def test_what_logging_tells_of_a_handler_that_fails_is_masked(
    kind: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = logging.getLogRecordFactory()
    monkeypatch.setattr(logging.Handler, "handleError", logging.Handler.handleError)
    logger, handler = logging.getLogger(name), _failing(kind)
    logger.addHandler(handler)
    try:
        mask_logs()
        remember("Own-Token-0123456789")
        try:
            raise ValueError("inner Own-Token-0123456789")
        except ValueError:
            logger.exception("… went wrong with %s", "Own-Token-0123456789")
        told = capsys.readouterr().err
        assert "--- Logging error ---" in told
        assert ("Own-Token-0123456789" in told) == (name == "somebody.else")
        assert ("inner (token hidden)" in told) == (name != "somebody.else")
        monkeypatch.setattr(logging, "raiseExceptions", False)
        logger.error("went wrong")
        monkeypatch.setattr(logging, "raiseExceptions", True)
        monkeypatch.setattr(sys, "stderr", None)
        logger.error("went wrong")
        assert capsys.readouterr().err == ""
    finally:
        logger.removeHandler(handler)
        with contextlib.suppress(OSError, ValueError):
            handler.stream.close()
        logging.setLogRecordFactory(before)
