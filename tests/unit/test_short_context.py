"""A Moshi-class policy may be made to look back less far than it was published with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from align.config import load_config
from align.loading import load_policy
from align.policies.checks import check_fork_continues_identically, check_streaming_equals_scoring
from align.policies.moshi.policy import MoshiPolicy
from envs.errors import UptakeError
from launch.checkup import run_checkup
from launch.cli import app
from launch.terminal import make_console
from tests.tiny_checkpoint import tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Published with 200 frames."""
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def test_it_streams_as_it_scores_and_is_exported_as_what_it_is(folder, tmp_path):
    policy = load_policy(str(folder), context=10)
    assert isinstance(policy, MoshiPolicy) and policy.spec.context == 10
    check_streaming_equals_scoring(policy, 24)  # its window slides
    check_fork_continues_identically(policy, 24)
    assert policy._stream.rows.cache[0].shape[3] == 10
    policy.export(tmp_path / "short")
    assert json.loads((tmp_path / "short" / "config.json").read_text())["context"] == 10
    assert load_policy(str(tmp_path / "short")).spec.context == 10


def test_without_a_wish_it_is_the_published_one(folder):
    assert load_policy(str(folder)).spec.context == 200
    assert load_config("quickstart").context == 0


def test_one_that_no_weight_has_learned_is_refused(folder):
    with pytest.raises(UptakeError, match=r"context = 201: .* looks back 200 frames; give 1 to 200, or 0"):
        load_policy(str(folder), context=201)
    with pytest.raises(UptakeError, match="the context of a CascadePolicy cannot be set"):
        load_policy("cascade", context=5)
    with pytest.raises(UptakeError, match="context = -1: must be 0 or more"):
        load_config("quickstart", ["context=-1"])


def test_the_doctor_says_how_far_it_looks_back(folder, capsys):
    assert run_checkup(str(folder), 25, make_console())
    assert "looks back 25 frames (2 s)" in " ".join(capsys.readouterr().out.split())
    assert CliRunner().invoke(app, ["doctor", "--context", "25"]).exit_code == 2
