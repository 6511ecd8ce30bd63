"""What users see agrees with itself: exports, commands, error trees, versions."""

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from pruning.cli import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CHANGELOG.md", "data/README.md", "latency/fleet/README.md", "Makefile")


def text_of(document):
    path = ROOT / document
    if not path.exists():
        pytest.skip(f"there is no {document} yet")
    return path.read_text(encoding="utf-8")


def shown_commands(document):
    """Arguments of each `trimms …` that a document shows as code, lines that end in a backslash joined."""
    text = re.sub(r"\\\n\s*", " ", text_of(document))
    if document.endswith(".md"):
        fence = r"^```.*?^```"
        blocks = re.findall(fence, text, re.MULTILINE | re.DOTALL)
        spans = re.findall(r"`([^`\n]+)`", re.sub(fence, "", text, flags=re.MULTILINE | re.DOTALL))
        text = "\n".join([*blocks, *spans])
        starts = r"^\s*(?:\$ )?trimms ([a-z]+(?: .*)?)$"
    else:
        starts = r"/bin/trimms ([a-z]+(?: .*)?)$"
    return [line.split(" #")[0] for line in re.findall(starts, text, re.MULTILINE)]


def options_of(command):
    return {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_is_in_the_manual(name):
    assert re.search(rf"\btrimms {name}\b", text_of("README.md"))


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_and_option_explains_itself(name):
    command = cli.commands[name]
    assert command.get_short_help_str(200)
    silent = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    # Options whose choices or name say it all are listed by click with those.
    assert [option for option in silent if option not in ("criterion",)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_shown_in_documents_exist_with_their_options(document):
    commands = shown_commands(document)
    assert commands, f"{document} shows no command"
    for shown in commands:
        name, *arguments = shlex.split(shown, posix=False)
        assert name in cli.commands, f"{document} shows `trimms {shown}`"
        flags = {argument.split("=")[0] for argument in arguments if argument.startswith("--")}
        unknown = {flag.strip("`.,;)[]") for flag in flags} - options_of(cli.commands[name]) - {"--help"}
        assert unknown == set(), f"{document} shows `trimms {shown}`"


def drawn_tree(docstring):
    """Parent by class name, from the tree that a module's docstring draws."""
    parents, trail = {}, []
    for line in docstring.splitlines():
        match = re.match(r"^((?:│   |    |├── |└── )*)([A-Z]\w+)\b", line)
        # Prose also begins with a capital; the root stands alone on its line, the others hang on a branch.
        if not match or not (match[1] or line.strip() == match[2]):
            continue
        depth = len(match[1]) // 4
        trail[depth:] = [match[2]]
        parents[match[2]] = trail[depth - 1] if depth else "Exception"
    return parents


@pytest.mark.parametrize("package", ["latency", "pruning"])
def test_the_tree_of_errors_is_drawn_as_it_is(package):
    module = importlib.import_module(f"{package}.errors")
    classes = {
        name: value.__bases__[0].__name__
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__
    }
    assert drawn_tree(module.__doc__) == classes


def test_the_changelog_has_an_entry_for_this_version():
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    assert re.search(rf"^## \[{re.escape(project['version'])}\]", text_of("CHANGELOG.md"), re.MULTILINE)


def test_files_that_the_project_names_are_there():
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    named = [project["readme"], *project["license-files"]]
    if not (ROOT / "README.md").exists():
        pytest.skip("there is no README.md yet")
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_console_script_is_the_command_line():
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    module, _, function = project["scripts"]["trimms"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
