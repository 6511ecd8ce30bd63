import errno
from pathlib import Path

import numpy as np
import onnx
import pytest

from latency import number_formats
from latency.errors import EnvironmentFailure, ModelFileError, UnsupportedGraphError
from latency.number_formats import base_in, metadata_of, model_in, space_in
from latency.space import PRECISION_KEY, STRUCTURE_KEY, SearchSpace
from tests.nets import NETS


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.onnx"
    onnx.save(NETS["residual"]().model, path)
    return path


def test_fp32_is_the_base_itself(base: Path) -> None:
    space = SearchSpace.load(base)
    assert base_in(base, "fp32") == base
    assert space_in(space, "fp32") is space
    assert space.precision == "fp32"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_converted_base_is_written_once_and_says_what_it_is(base: Path, precision: str) -> None:
    path = base_in(base, precision)
    written = path.stat().st_mtime_ns
    assert path.name == f"base.{precision}.onnx"
    assert metadata_of(path)[PRECISION_KEY] == precision
    assert SearchSpace.load(path).structure_hash == SearchSpace.load(base).structure_hash
    assert base_in(base, precision) == path
    assert path.stat().st_mtime_ns == written
    assert sorted(file.name for file in base.parent.iterdir()) == [f"base.{precision}.onnx", "base.onnx"]


def test_a_base_with_other_weights_is_converted_again(base: Path) -> None:
    before = SearchSpace.load(base_in(base, "int8")).structure.graph.constants["fc.weight_scale"]
    model = onnx.load(base)
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == "fc.weight"]
    doubled = 2 * onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(doubled, weight.name))
    onnx.save(model, base)
    after = SearchSpace.load(base_in(base, "int8")).structure.graph.constants["fc.weight_scale"]
    np.testing.assert_allclose(after, 2 * before, rtol=1e-5)


def test_a_damaged_converted_base_is_made_again(base: Path) -> None:
    path = base_in(base, "int8")
    path.write_bytes(path.read_bytes()[:100])
    assert SearchSpace.load(base_in(base, "int8")).precision == "int8"


def test_an_fp32_network_cannot_name_another_hash_than_its_own(base: Path) -> None:
    model = onnx.load(base)
    model.metadata_props.add(key=STRUCTURE_KEY, value="0" * 64)
    assert SearchSpace.from_model(model).structure_hash == SearchSpace.load(base).structure_hash


def test_only_fp32_can_be_converted(base: Path) -> None:
    int8 = space_in(SearchSpace.load(base), "int8")
    with pytest.raises(ModelFileError, match=r"Only a network in fp32 can be converted; this one is in int8"):
        model_in(int8, "fp16")


def test_a_folder_that_cannot_be_written_is_told(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        EnvironmentFailure, match=r"Cannot write .*base\.int8\.onnx \(No space left on device\)"
    ):
        base_in(base, "int8")


def test_a_missing_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"There is no ONNX file .*base\.onnx"):
        base_in(tmp_path / "base.onnx", "int8")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("depthwise", "channels of 'a' are tied otherwise"),
        ("several_outputs", "tied otherwise|groups in fp32"),
    ],
)
def test_a_network_whose_channels_are_tied_otherwise_afterwards_is_refused(
    base: Path, monkeypatch: pytest.MonkeyPatch, other: str, message: str
) -> None:
    monkeypatch.setattr(number_formats, "model_in", lambda space, precision: NETS[other]().model)
    with pytest.raises(UnsupportedGraphError, match=message):
        space_in(SearchSpace.load(base), "int8")
