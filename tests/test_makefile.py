"""What a person meets who types `make` on a machine that is not ready for it."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def checkout(tmp_path):
    """A folder with the Makefile, and a PATH that holds nothing but a shell's needs and `bin`."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for tool in ("make", "sh", "touch"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return tmp_path


def write_program(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def pretend(checkout, version="3.11", lacking=()):
    """A python3 on the PATH that runs what it is given as if it were another, and records other calls."""
    code = (
        "import importlib.util, sys; "
        f"sys.version_info = ({version.replace('.', ',')}, 0); "
        "real = importlib.util.find_spec; "
        f"importlib.util.find_spec = lambda name: None if name in {tuple(lacking)!r} else real(name); "
        "exec(sys.argv[1])"
    )
    write_program(
        checkout / "bin" / "python3",
        f"""case "$1" in
-c) exec {sys.executable} -S -c "{code}" "$2" ;;
*) echo "$@" >> {checkout}/calls
   /bin/mkdir -p .venv/bin && /bin/cp {checkout}/venv-python .venv/bin/python ;;
esac""",
    )


def make(checkout, *arguments):
    # Variables of a make that runs this test would be taken for its own.
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))
    }
    return subprocess.run(
        ["make", *arguments],
        cwd=checkout,
        env={**kept, "PATH": str(checkout / "bin")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def refusal(checkout, *arguments):
    result = make(checkout, *arguments)
    assert result.returncode != 0
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.mark.parametrize("target", ["demo", "test", "check", "lint-fix", "install"])
def test_without_python_every_target_says_in_one_line_what_to_install(checkout, target):
    message = refusal(checkout, target)
    assert "trimms needs Python ≥ 3.11 with venv; found no python3." in message
    assert "apt install python3 python3-venv" in message


@pytest.mark.parametrize("version", ["2.7", "3.9", "3.10"])
def test_a_python_that_is_too_old_is_named_with_its_version(checkout, version):
    pretend(checkout, version)
    assert f"trimms needs Python ≥ 3.11 with venv; found {version}." in refusal(checkout)


@pytest.mark.parametrize(
    ("lacking", "named"),
    [(("ensurepip",), "without ensurepip."), (("venv", "ensurepip"), "without venv and ensurepip.")],
)
def test_a_python_that_cannot_make_environments_is_told_apart(checkout, lacking, named):
    pretend(checkout, "3.11", lacking)
    assert f"found 3.11 {named}" in refusal(checkout)


def test_another_python_can_be_chosen(checkout):
    pretend(checkout, "3.9")
    (checkout / "bin" / "python3").rename(checkout / "bin" / "python3.99")
    assert "found 3.9." in refusal(checkout, "PYTHON=python3.99")


def test_a_python_that_does_not_run_is_reported_with_its_own_words(checkout):
    write_program(checkout / "bin" / "python3", "echo 'shim: no version is set' >&2; exit 127")
    assert "shim: no version is set" in refusal(checkout)


def test_a_python_that_dies_silently_is_reported_too(checkout):
    write_program(checkout / "bin" / "python3", "exit 139")
    assert "with venv; python3 does not run." in refusal(checkout)


def test_warnings_of_a_python_that_will_do_are_no_refusal(installable):
    python = installable / "bin" / "python3"
    python.write_text(python.read_text(encoding="utf-8").replace("#!/bin/sh", "#!/bin/sh\necho careful >&2"))
    assert make(installable, "install").returncode == 0


@pytest.fixture
def installable(checkout):
    """A checkout whose python3 makes a .venv that records what it is asked to do."""
    write_program(checkout / "venv-python", f'echo "$@" >> {checkout}/calls')
    pretend(checkout)
    return checkout


def calls(checkout):
    lines = (checkout / "calls").read_text(encoding="utf-8").splitlines()
    (checkout / "calls").unlink()
    return [line for line in lines if not line.startswith("-c ")]


def test_the_first_run_makes_the_environment_and_installs(installable):
    assert make(installable, "install").returncode == 0
    made, installed = calls(installable)
    assert made == "-m venv --clear .venv"
    assert installed.startswith("-m pip install")
    assert installed.endswith("--editable .[prune,serve,dev]")


def test_the_second_run_installs_nothing(installable):
    make(installable, "install")
    calls(installable)
    assert make(installable, "install").returncode == 0
    assert not (installable / "calls").exists()


def test_a_changed_project_file_installs_again_into_the_same_environment(installable):
    make(installable, "install")
    calls(installable)
    os.utime(installable / "pyproject.toml", (2**31, 2**31))
    assert make(installable, "install").returncode == 0
    assert [call.split()[1] for call in calls(installable)] == ["pip"]


def test_a_failed_installation_is_tried_again(installable):
    write_program(
        installable / "venv-python", f'echo "$@" >> {installable}/calls\ncase "$2" in pip) exit 3;; esac'
    )
    assert make(installable, "install").returncode != 0
    calls(installable)
    make(installable, "install")
    assert [call.split()[1] for call in calls(installable)] == ["pip"]


def test_an_existing_environment_needs_no_other_python(installable):
    make(installable, "install")
    (installable / "bin" / "python3").unlink()
    calls(installable)
    (installable / ".venv" / ".installed").unlink()
    assert make(installable, "install").returncode == 0
