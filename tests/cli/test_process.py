"""The command as a process: closed and full streams, Ctrl-C; and what is shown of names and texts of others."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import optgen
from optgen import console
from optgen.commands import app
from optgen.errors import UserError

MAIN = "from optgen.cli import main; main()"
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"} | {
    "PYTHONPATH": str(Path(__file__).parents[2])
}
# Turns red and rings; sets the title of the window; one that takes a single byte; turns the reading direction.
ESCAPES = "\x1b[31m\x07\x1b]0;title\x07\x9b31m\u202e"
SHOWN = r"\x1b[31m\x07\x1b]0;title\x07\x9b31m\u202e"


def run(words: str, program: str = MAIN) -> subprocess.CompletedProcess[str]:
    """Run a command line of the shell that begins with the options of `optgen`."""
    command = f"{shlex.join([sys.executable, '-c', program])} {words}"
    return subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--version >&-", "cannot write to standard output: Bad file descriptor"),
        ("--version >&- <&-", "cannot write to standard output: Bad file descriptor"),
        ("--help >&-", "Bad file descriptor"),
        ("--version >/dev/full", "cannot write to standard output: No space left on device"),
        ("--help >/dev/full", "No space left on device"),
    ],
)
def test_what_cannot_be_printed_is_said(words: str, reason: str) -> None:
    done = run(words)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(f"{reason}\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", ">&- 2>&- <&-"])
def test_without_a_place_for_messages_the_exit_code_says_it(closed: str) -> None:
    done = run(f"check absent.yaml {closed}")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_files_do_not_take_the_numbers_of_closed_streams(tmp_path: Path) -> None:
    """Else what is printed would go into whatever was opened last."""
    seen = tmp_path / "seen"
    program = f"""
import os
from optgen import cli
cli._open_closed_streams()
with open({str(seen)!r}, "w") as file:
    print(file.fileno(), file=file)"""
    run("<&- >&- 2>&-", program)
    assert int(seen.read_text()) > 2


@pytest.mark.parametrize("module", ["optgen.commands", "typer", "optgen.spec.loader", "optgen.emit.writer"])
def test_ctrl_c_ends_the_command_by_its_signal_and_leaves_nothing(module: str, tmp_path: Path) -> None:
    """While the command itself is imported, and while it works."""
    program = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
class CtrlC:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, CtrlC())
{MAIN}"""
    specs = Path(__file__).parents[2] / "specs" / "lion.yaml"
    command = [sys.executable, "-c", program, "build", str(specs), "--out", str(tmp_path / "made")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
    assert not list(tmp_path.iterdir())


def test_a_warning_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache"
    done = run("cache", f"import os; os.environ['OPTGEN_CACHE_DIR'] = {str(folder)!r}\n{MAIN}")
    assert done.stderr.startswith(f"warning: optgen cannot use the cache folder {folder}")
    assert "commands.py" not in done.stderr


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a good spec in a folder with a bad name, from the folder that holds it."""
    monkeypatch.chdir(tmp_path)
    spec = Path(__file__).parents[2] / "specs" / "lion.yaml"
    folder = tmp_path / f"a {ESCAPES}"
    folder.mkdir()
    (folder / "lion.yaml").write_bytes(spec.read_bytes())
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(folder / "cache"))
    return f"{folder.name}/lion.yaml"


@pytest.mark.parametrize(
    "words",
    [
        ["check", "SPEC"],
        ["check", "SPEC/none"],
        ["build", "SPEC", "--out", "made", "--check"],
        ["build", "SPEC", "--out", f"made {ESCAPES}"],
        ["build", "SPEC", "--package", ESCAPES],
        ["explain", ESCAPES, "--specs", "SPEC"],
        ["explain", "Lion", "--specs", "SPEC", "--html", f"page {ESCAPES}"],
        ["new", "novel", "--out", f"{ESCAPES}.yaml"],
        ["new", "novel", "--out", f"{ESCAPES}/rule.yaml"],
        ["new", ESCAPES],
        ["schema", ESCAPES],
        ["cache"],
        ["bench", ESCAPES, "--specs", "SPEC"],
        ["bench", "--shapes", ESCAPES],
        ["bench", "--peers", ESCAPES],
        [ESCAPES],
        ["--\x1b[31m"],
    ],
    ids=lambda words: " ".join(words[:1] + words[-1:]).replace(ESCAPES, "ESCAPES"),
)
def test_escapes_of_names_and_paths_are_shown_not_obeyed(words: list[str], hostile: str) -> None:
    done = CliRunner().invoke(app, [word.replace("SPEC", hostile) for word in words])
    assert r"\x1b[31m" in done.output
    assert console._shown(done.output) == done.output


def test_paths_in_commands_to_copy_are_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "my $(touch pwned) 'rule'.yaml"
    lines = CliRunner().invoke(app, ["new", "novel", "--out", name]).output.splitlines()
    assert shlex.split(lines[1]) == ["optgen", "check", name]
    python, flag, program = shlex.split(lines[2])
    assert (python, flag) == ("python", "-c")
    compile(program, "shown", "exec")
    assert json.dumps(name) in program
    failed = CliRunner().invoke(app, ["build", name, "--package", "mine", "--check"]).stderr
    shown = failed[failed.index("run `") + 5 : failed.rindex("`")]
    assert shlex.split(shown) == ["optgen", "build", name, "--package", "mine"]


def test_json_stays_what_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"a": f"{ESCAPES}\n\x7f é 文 \U0001f600 \U000e0001", "b": [1.5, None]}
    console.print_json(value)
    text = capsys.readouterr().out
    assert console._shown(text) == text
    assert "é 文 \U0001f600" in text
    assert json.loads(text) == value


def test_tables_and_lines_are_shown_with_their_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table(("name", "n"), [(ESCAPES, "1"), ("b\nc", "2")], right=("n",))
    console.print_text(f"two\nlines {ESCAPES}", style="red")
    console.print_error(f"error: {ESCAPES}")
    console.print_progress(ESCAPES)
    out, err = capsys.readouterr()
    assert out.count(SHOWN) == err.count(SHOWN) == 2
    assert console._shown(out + err) == out + err
    assert len(out.splitlines()) == 5


def test_output_that_fails_is_the_users_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys.stdout, "write", full)
    for show in (console.print_text, console.print_json):
        with pytest.raises(UserError, match="cannot write to standard output: No space left"):
            show("x")


def test_python_runs_the_command_by_its_module() -> None:
    done = subprocess.run([sys.executable, "-m", "optgen", "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"optgen {optgen.__version__}\n"


@pytest.mark.parametrize(
    ("words", "found"), [("optgen explain LAMB", "LAMB LAMB8bit LAMB32bit"), ("optgen doc", "doctor")]
)
def test_the_shell_completes_commands_and_classes(words: str, found: str) -> None:
    asked = {"_OPTGEN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'optgen'\nfrom optgen.cli import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**ENVIRONMENT, **asked})
    assert done.stdout.split() == found.split()
