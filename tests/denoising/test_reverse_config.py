from __future__ import annotations

import json
from dataclasses import fields

import pytest

from qhw_diffusion.config import Config, field_docs
from qhw_diffusion.denoising import AutoencoderConfig, ForwardConfig, TrainConfig
from qhw_diffusion.denoising.config import ReverseConfig
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import Noisy


@pytest.mark.parametrize("cls", [ReverseConfig, TrainConfig, ForwardConfig, AutoencoderConfig])
def test_every_field_is_documented_and_settings_come_back_from_json(cls: type[Config]) -> None:
    docs = field_docs(cls)
    assert set(docs) == {f.name for f in fields(cls)}
    assert all(text and not text.startswith("of ") for text in docs.values())
    assert cls.from_dict(json.loads(json.dumps(cls().to_dict()))) == cls()


def test_round_trip_through_json() -> None:
    config = ReverseConfig(
        n_qubits=3, kind="measured", feed_forward=True, ancillas=2, conditioning="weights", n_labels=4
    )
    assert ReverseConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(("n_labels", "qubits"), [(2, 1), (3, 2), (4, 2), (5, 3), (10, 4)])
def test_label_qubits_hold_the_label_in_binary(n_labels: int, qubits: int) -> None:
    config = ReverseConfig(conditioning="qubits", n_labels=n_labels, ancillas=1)
    assert (config.label_qubits, config.n_outcomes) == (qubits, 2 ** (qubits + 1))


def test_conditioning_angles_are_on_where_ancilla_angles_carry_something() -> None:
    assert ReverseConfig(weight_sharing="time_embedding").conditioning_angles
    assert ReverseConfig(conditioning="angles", n_labels=2).conditioning_angles
    assert not ReverseConfig(conditioning="weights", n_labels=2).conditioning_angles
    assert not ReverseConfig(weight_sharing="hypernetwork").conditioning_angles


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "postelected"}, "postselected"),
        ({"weight_sharing": "none"}, "weight_sharing"),
        ({"conditioning": "qubit"}, "qubits"),
        ({"ansatz": "xyz"}, "ansatz"),
        ({"engine": "bogus"}, "unknown engine 'bogus'"),
        ({"engine": "noisy+zen"}, "mitigation strategy 'zen'"),
    ],
)
def test_unknown_names_list_what_there_is(settings: dict, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        ReverseConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "shots:64"}, "engine 'shots:64' holds no states"),
        ({"engine": "noisy+readout"}, "holds no states"),
        ({"engine": Noisy()}, "holds text, here 'noisy'"),
        ({"n_qubits": 0}, "n_qubits is 0"),
        ({"n_steps": 2.5}, "n_steps is 2.5"),
        ({"depth": True}, "depth is True"),
        ({"n_labels": "2"}, "n_labels is '2'"),
        ({"ancillas": -1}, "ancillas"),
        ({"ancillas": 1.5}, "ancillas"),
        ({"outer": "1"}, "outer"),
        ({"init_scale": -0.1}, "init_scale"),
        ({"init_scale": float("nan")}, "init_scale"),
        ({"kind": "unitary"}, "neither ancillas nor label qubits"),
        ({"kind": "unitary", "ancillas": 0, "conditioning": "qubits", "n_labels": 2}, "neither ancillas"),
        ({"kind": "measured", "ancillas": 0}, "at least one"),
        ({"kind": "reset", "feed_forward": True}, "feed_forward needs outcomes"),
        ({"n_labels": 2}, "give a conditioning"),
        ({"conditioning": "weights"}, "n_labels=1"),
        ({"kind": "unitary", "ancillas": 0, "weight_sharing": "time_embedding"}, "ancillas=1 or more"),
    ],
)
def test_settings_that_do_not_fit(settings: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        ReverseConfig(**settings)
    with pytest.raises(InvalidInputError, match=message):
        ReverseConfig.from_dict(settings)


def test_dictionaries_that_are_no_configuration() -> None:
    with pytest.raises(UnknownNameError, match="ReverseConfig setting 'qubits'; did you mean n_qubits"):
        ReverseConfig.from_dict({"qubits": 3})
    for data in ([1], "n_qubits"):
        with pytest.raises(InvalidInputError, match="read from a mapping"):
            ReverseConfig.from_dict(data)  # type: ignore[arg-type]
