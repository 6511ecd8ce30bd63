"""The command line's half of a fleet: refusals in one line; what a fleet does is in tests/latency/fleet."""

import sys

import pytest
from click.testing import CliRunner, Result

from pruning.cli import cli


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def _base(tmp_path, residual_space) -> None:
    (tmp_path / "base.onnx").write_bytes(residual_space.model.SerializeToString())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["worker", "--scheduler", "here"], "'here' is not tcp://HOST:PORT or tls://HOST:PORT"),
        (["worker", "--scheduler", "tls://h:1"], "needs all of --tls-ca, --tls-cert and --tls-key"),
        (["worker", "--scheduler", "tcp://127.0.0.1:1", "--cores", "4096"], "--cores 4096 are not all there"),
        (["profile", "--out", ".", "--device", "pi-3"], "belong to a fleet: give --scheduler too"),
        (["profile", "--out", ".", "--tls-ca", "x.pem"], "belong to a fleet: give --scheduler too"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(arguments, message):
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_cores_are_numbers():
    done = invoke("worker", "--scheduler", "tcp://127.0.0.1:1", "--cores", "0,first")
    assert done.exit_code == 2
    assert "'0,first' is no list of core numbers" in done.stderr


def test_without_dask_the_extra_is_named(tmp_path, monkeypatch):
    for name in [module for module in sys.modules if module.startswith("latency.fleet.fleet_bench")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "distributed", None)
    done = invoke("profile", "--scheduler", "tcp://127.0.0.1:1", "--out", tmp_path)
    assert done.exit_code == 3
    assert "pip install 'trimms[fleet]'" in done.stderr


def test_an_open_fleet_is_called_a_danger_before_it_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("latency.fleet.fleet_bench.CONNECT_S", 0.3)
    done = invoke("profile", "--scheduler", "tcp://192.0.2.1:1", "--out", tmp_path)
    assert done.exit_code == 3
    danger, refusal = done.stderr.strip().splitlines()
    assert "neither encrypted nor authenticated" in danger
    assert "cannot be reached" in refusal
