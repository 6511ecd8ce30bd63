from dataclasses import replace
from pathlib import Path

import pytest

from pruning.errors import SettingError
from pruning.run import RunDirectory, RunSettings

SETTINGS = RunSettings(model="net.py:net", data="digits", input_shape=(1, 3, 16, 16), seed=3)


def test_settings_survive_writing_and_reading(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")

    run.begin(SETTINGS)

    assert run.settings() == SETTINGS
    assert run.settings().image_size == (3, 16, 16)


def test_a_run_is_continued_with_the_same_settings_only(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.begin(SETTINGS)
    run.file("base.onnx").touch()

    run.begin(SETTINGS)
    with pytest.raises(SettingError, match=r"holds a run with data 'digits', not 'npz:a\.npz'"):
        run.begin(replace(SETTINGS, data="npz:a.npz"))


def test_a_run_that_was_refused_before_anything_was_made_can_begin_anew(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.begin(SETTINGS)

    run.begin(replace(SETTINGS, train_epochs=12))

    assert run.settings().train_epochs == 12


def test_a_directory_without_a_run_says_how_to_begin_one(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="holds no run; begin one with `trimms trace`"):
        RunDirectory(tmp_path).settings()


@pytest.mark.parametrize("content", ["{", "[]", '{"model": 3}', ""])
def test_a_damaged_run_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)

    with pytest.raises(SettingError, match="is damaged"):
        RunDirectory(tmp_path).settings()


def test_a_stage_is_finished_for_its_inputs_only(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.finished("fit", {"seed": 0}) is None

    run.finish("fit", {"seed": 0, "shape": (1, 2)}, {"mape": 0.01})

    assert run.finished("fit", {"seed": 0, "shape": (1, 2)}) == {"mape": 0.01}
    assert run.finished("fit", {"seed": 1, "shape": (1, 2)}) is None
    assert run.result("fit", "run `trimms fit`") == {"mape": 0.01}


def test_a_missing_result_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="has no result of stage 'prune'; run `trimms prune` first"):
        RunDirectory(tmp_path).result("prune", "run `trimms prune` first")


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 3, 0, 16), (1, 3, 16, 16, 2)])
def test_an_input_shape_that_is_none_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match="is not batch x channels x height x width"):
        RunSettings(model="m", data="digits", input_shape=shape)  # type: ignore[arg-type]
