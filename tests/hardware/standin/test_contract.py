"""What the stand-in assumes of qiskit-ibm-runtime, most of it undocumented: each assumption by itself.

If one fails after an update of the client, the message says what changed and which file of the stand-in depends on it.
"""

from __future__ import annotations

import base64
import inspect
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import qiskit_ibm_runtime
from qiskit import QuantumCircuit, qpy
from qiskit.primitives import DataBin, PrimitiveResult, PubResult
from small_jobs import pub, sampler_pub

from qhw_diffusion.hardware.standin import ENDPOINTS, INSTANCE, StandIn
from qhw_diffusion.hardware.standin.faults import endpoint_of
from qhw_diffusion.hardware.standin.programs import SCHEMA
from qhw_diffusion.hardware.standin.records import JobRecord, Records

WRITTEN_FOR = ("0", "51")


def expect(held: bool, what: str, where: str) -> None:
    """Fail with a message for whoever updates the client."""
    version = qiskit_ibm_runtime.__version__
    assert held, (
        f"qiskit-ibm-runtime {version} is not what the stand-in was written for ({'.'.join(WRITTEN_FOR)}): {what}. "
        f"Adapt qhw_diffusion/hardware/standin/{where}, and then this test"
    )


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    with StandIn("fake_manila") as running, running.as_account():
        yield running


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What clients post as jobs from here on."""
    seen: list[dict[str, Any]] = []
    original = Records.add_job

    def add_job(self: Records, body: dict[str, Any], params: str, *, wait: float) -> JobRecord:
        seen.append(body)
        return original(self, body, params, wait=wait)

    monkeypatch.setattr(Records, "add_job", add_job)
    return seen


def test_version() -> None:
    version = tuple(qiskit_ibm_runtime.__version__.split(".")[:2])
    expect(version == WRITTEN_FOR, "another version; run all tests of tests/hardware and read what fails", "*.py")


def test_environment_variables(standin: StandIn) -> None:
    """The client takes its account, and every address, from the environment: nothing else on the network is asked."""
    from qiskit_ibm_runtime import QiskitRuntimeService
    from qiskit_ibm_runtime.accounts import account, management
    from qiskit_ibm_runtime.api import auth

    where = "service.py (StandIn.environment)"
    source = "".join(inspect.getsource(module) for module in (account, management, auth))
    for name in standin.environment():
        expect(f'"{name}"' in source, f"it no longer reads {name}", where)
    standin.reset()
    service = QiskitRuntimeService()
    given = service.active_account() or {}
    expect(given.get("url") == standin.url, f"it uses {given.get('url')} in place of the address it was given", where)
    expect(given.get("instance") == INSTANCE, "it uses another instance than the one it was given", where)
    expect(standin.requests["token"] > 0, "it no longer asks the identity service at IAM_URL", where)


def test_an_address_with_experimental_in_it_is_used_as_it_is() -> None:
    from qiskit_ibm_runtime.api.utils import default_runtime_url_resolver

    url = "http://127.0.0.1:1/experimental"
    expect(default_runtime_url_resolver(url, INSTANCE) == url, "it rewrites the service's address", "service.py (url)")


def test_addresses_of_requests() -> None:
    from qiskit_ibm_runtime.api.rest.cloud_backend import CloudBackend
    from qiskit_ibm_runtime.api.rest.program_job import ProgramJob
    from qiskit_ibm_runtime.api.rest.runtime import Runtime
    from qiskit_ibm_runtime.api.rest.runtime_session import RuntimeSession

    known = {
        "token": ("POST", "/identity/token"),
        "backends": ("GET", Runtime.URL_MAP["backends"]),
        "configuration": ("GET", "/backends/ibm_x" + CloudBackend.URL_MAP["configuration"]),
        "properties": ("GET", "/backends/ibm_x" + CloudBackend.URL_MAP["properties"]),
        "status": ("GET", "/backends/ibm_x" + CloudBackend.URL_MAP["status"]),
        "usage": ("GET", Runtime.URL_MAP["cloud_usage"]),
        "jobs_post": ("POST", Runtime.URL_MAP["jobs"]),
        "jobs_get": ("GET", Runtime.URL_MAP["jobs"]),
        "job_get": ("GET", "/jobs/x" + ProgramJob.URL_MAP["self"]),
        **{name: ("GET", "/jobs/x" + ProgramJob.URL_MAP[name]) for name in ("results", "metrics", "logs")},
        "cancel": ("POST", "/jobs/x" + ProgramJob.URL_MAP["cancel"]),
        "tags": ("PUT", "/jobs/x" + ProgramJob.URL_MAP["tags"]),
        "sessions_post": ("POST", "/sessions"),
        "session_get": ("GET", "/sessions/x" + RuntimeSession.URL_MAP["self"]),
        "session_patch": ("PATCH", "/sessions/x" + RuntimeSession.URL_MAP["self"]),
        "session_close": ("DELETE", "/sessions/x" + RuntimeSession.URL_MAP["close"]),
    }
    assert set(known) == set(ENDPOINTS)
    for name, (method, path) in known.items():
        found = endpoint_of(method, path)
        expect(found is not None and found[0] == name, f"{name} is asked for as {method} {path}", "faults.py")


def test_what_the_estimator_posts(standin: StandIn, posted: list[dict[str, Any]]) -> None:
    from qiskit_ibm_runtime import EstimatorV2

    with pytest.warns(DeprecationWarning, match="EstimatorV2"):
        estimator = EstimatorV2(mode=backend(), options={"environment": {"job_tags": ["a", "b"]}})
    estimator.options.max_execution_time = 50
    estimator.run([pub().as_tuple()]).result()
    (body,) = posted
    envelope(body, "estimator")
    keys = {"pubs", "options", "version", "support_qiskit"}
    expect(keys <= set(body["params"]), f"its parameters are {sorted(body['params'])}", "programs.py (_estimator)")
    circuit, observables, _, precision = body["params"]["pubs"][0]
    coded = circuit.get("__value__", "")
    (read,) = qpy.load(io.BytesIO(zlib.decompress(base64.standard_b64decode(coded))))
    expect(isinstance(read, QuantumCircuit), "circuits are not base64 of zlib of QPY", "programs.py (_estimator)")
    expect(set(observables[0][0]) == {"Z"}, f"observables are {observables}", "programs.py (_expectation_values)")
    expect(precision == pytest.approx(0.1), f"the fourth entry of a PUB is {precision}", "programs.py (_estimator)")


def test_what_the_executor_posts(standin: StandIn, posted: list[dict[str, Any]]) -> None:
    from qiskit_ibm_runtime.executor_estimator import Estimator

    estimator = Estimator(mode=backend(), options={"environment": {"job_tags": ["a", "b"]}})
    estimator.options.max_execution_time = 50
    estimator.run([pub().as_tuple()]).result()
    (body,) = posted
    envelope(body, "executor")
    version = body["params"].get("schema_version")
    expect(version == SCHEMA, f"it posts jobs of schema {version}, not {SCHEMA}", "programs.py (SCHEMA, _executor)")


def test_what_the_sampler_posts(standin: StandIn, posted: list[dict[str, Any]]) -> None:
    from qiskit_ibm_runtime import SamplerV2

    with pytest.warns(DeprecationWarning, match="SamplerV2"):
        sampler = SamplerV2(mode=backend(), options={"environment": {"job_tags": ["a", "b"]}})
    sampler.options.max_execution_time = 50
    sampler.run([sampler_pub().as_tuple()]).result()
    (body,) = posted
    envelope(body, "sampler")
    expect({"pubs", "options"} <= set(body["params"]), f"its parameters are {sorted(body['params'])}", "programs.py")
    _, values, shots = body["params"]["pubs"][0]
    expect(shots == 100, f"the third entry of a PUB is {shots}", "programs.py (_sampler)")
    expect("ndarray" in json.dumps(values), f"values are {values}", "programs.py (_sampler)")


def test_what_the_executors_sampler_posts(standin: StandIn, posted: list[dict[str, Any]]) -> None:
    """The same program as for an estimator; what it was is said in the program, and comes back with the answer."""
    from qiskit_ibm_runtime.decoders.executor_sampler.decoder import ClientSideSamplerResultDecoder
    from qiskit_ibm_runtime.executor_sampler import Sampler

    sampler = Sampler(mode=backend(), options={"environment": {"job_tags": ["a", "b"]}})
    sampler.options.max_execution_time = 50
    sampler.run([sampler_pub().as_tuple()]).result()
    (body,) = posted
    envelope(body, "executor")
    role = ClientSideSamplerResultDecoder.SEMANTIC_ROLE
    expect(role in json.dumps(body["params"]), f"its program does not say {role!r}", "programs.py (_executor)")
    expect(json.loads(standin.jobs[-1].result or "{}")["semantic_role"] == role, "the role is elsewhere", "programs.py")


def envelope(body: dict[str, Any], program: str) -> None:
    where = "records.py (Records.add_job)"
    expect(body.get("program_id") == program, f"the program's name is {body.get('program_id')}", where)
    expect(body.get("backend") == "ibm_standin", "the device's name is not in 'backend'", where)
    expect(body.get("tags") == ["a", "b"], "the tags are not in 'tags'", where)
    expect(body.get("cost") == 50, "the maximum execution time is not in 'cost'", where)


def test_runtime_encoder_and_decoder() -> None:
    from qiskit_ibm_runtime import RuntimeDecoder, RuntimeEncoder

    data = DataBin(evs=np.array([0.5]), stds=np.array([0.1]), shape=(1,))
    text = json.dumps(PrimitiveResult([PubResult(data, {"shots": 7})], {"version": 2}), cls=RuntimeEncoder)
    back = json.loads(text, cls=RuntimeDecoder)
    held = isinstance(back, PrimitiveResult) and back[0].data.evs[0] == 0.5 and back[0].metadata["shots"] == 7
    expect(held, "RuntimeDecoder does not read what RuntimeEncoder wrote of a result", "programs.py (_estimator)")


def test_hooks_of_the_executor() -> None:
    from ibm_quantum_schemas.executor.version_2_0 import models
    from qiskit_ibm_runtime.decoders.executor import decoder
    from qiskit_ibm_runtime.executor.executor import Executor
    from qiskit_ibm_runtime.fake_provider.executor.broadcast_sample import broadcast_sample
    from qiskit_ibm_runtime.quantum_program import QuantumProgram
    from qiskit_ibm_runtime.quantum_program.converters.converters_2_0 import passthrough_data_to_2_0
    from qiskit_ibm_runtime.quantum_program.params_converters import QUANTUM_PROGRAM_PARAMS_CONVERTERS

    where = "programs.py (_executor)"
    expect(Executor._SCHEMA_VERSION == SCHEMA, f"its schema is {Executor._SCHEMA_VERSION}", where)
    converter = QUANTUM_PROGRAM_PARAMS_CONVERTERS.get(SCHEMA)
    expect(converter is not None, f"QUANTUM_PROGRAM_PARAMS_CONVERTERS has no {SCHEMA}", where)
    expect(hasattr(converter.model, "model_validate_json"), "the converter's model is no pydantic model", where)
    expect(SCHEMA in decoder.AVAILABLE_DECODERS, f"it reads no answers of schema {SCHEMA}", where)
    names = list(inspect.signature(broadcast_sample).parameters)
    expect(names == ["samplex", "samplex_arguments", "shape", "rng"], f"broadcast_sample takes {names}", where)
    expect(len(inspect.signature(passthrough_data_to_2_0).parameters) == 1, "passthrough_data_to_2_0 changed", where)
    expect("_semantic_role" in vars(QuantumProgram(1, [])), "QuantumProgram has no _semantic_role", where)
    fields = set(models.QuantumProgramResultModel.model_fields)
    wanted = {"schema_version", "data", "metadata", "passthrough_data", "semantic_role"}
    expect(wanted <= fields, f"a result's fields are {sorted(fields)}", where)


def test_the_tests_fail_with_a_message_for_the_reader() -> None:
    with pytest.raises(
        AssertionError, match=r"not what the stand-in was written for \(0\.51\): tags moved\. Adapt qhw"
    ):
        expect(False, "tags moved", "records.py")


def backend() -> Any:
    from qiskit_ibm_runtime import QiskitRuntimeService

    return QiskitRuntimeService().backend("ibm_standin")
