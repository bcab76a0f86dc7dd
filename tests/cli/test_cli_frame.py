"""What all commands share: help, version, exit statuses, one-line errors, start-up."""

from collections.abc import Callable
from pathlib import Path

import pytest

import mpt_fast
from mpt_fast.cli import output as printing

COMMANDS = ("demo", "train", "eval", "pack", "run", "bench", "approximate")


def test_version(cli: Callable) -> None:
    done = cli("--version")
    assert (done.status, done.out) == (0, f"mpt-fast {mpt_fast.__version__}\n")


def test_help_lists_the_commands_and_where_to_begin(cli: Callable) -> None:
    done = cli("--help")
    assert done.status == 0
    for name in COMMANDS:
        assert f" {name} " in done.out
    assert "mpt-fast demo" in done.out


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help_with_an_example(cli: Callable, command: str, flag: str) -> None:
    done = cli(command, flag)
    assert done.status == 0
    assert done.err == ""
    assert "Example" in done.out
    assert f"mpt-fast {command}" in done.out
    for option in ("--json", "--debug"):
        assert option in done.out


def test_bare_command_shows_help_and_counts_as_wrong_usage(cli: Callable) -> None:
    done = cli()
    assert done.status == 2
    assert "demo" in done.out + done.err
    assert "error" not in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["train"], "name a model or a --recipe"),
        (["train", "conv4", "--epoch", "3"], "--epoch"),
        (["train", "conv4", "--epochs", "many"], "--epochs"),
        (["train", "conv4", "--set", "epochs"], "'epochs' is not KEY=VALUE"),
        (["train", "conv4", "--set", "epochs=["], "value is not YAML"),
        (["pack", "runs/x"], "--output"),
        (["run", "a.mpt"], "IMAGES"),
        (["run", "a.mpt", "b.png", "--top", "0"], "--top"),
        (["bench", "conv2", "--image", "big"], "'big' is not CxHxW"),
        (["bench", "conv2", "--image", "1x8x9"], "square"),
        (["demo", "--epochs", "0"], "--epochs"),
    ],
)
def test_wrong_usage_is_status_two_and_one_line(
    cli: Callable, arguments: list[str], words: str
) -> None:
    done = cli(*arguments)
    assert done.status == 2
    assert done.out == ""
    assert words in done.err
    assert "--help" in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "conv5", "--dump"], "conv4"),
        (["train", "conv4", "--data", "dogs", "--dump"], "digits"),
        (["train", "conv4", "--sparsity", "1.5", "--dump"], "sparsity"),
        (["train", "conv4", "--set", "speed=9", "--dump"], "speed"),
        (["train", "--recipe", "none.yaml", "--dump"], "none.yaml"),
        (["train", "--recipe", "digits-flaot", "--dump"], "digits-float"),
        (["eval", "no-such-run"], "no-such-run"),
        (["eval", "."], "holds no run"),
        (["eval", "none.mpt"], "none.mpt"),
        (["pack", "no-such-run", "-o", "t.mpt"], "no-such-run"),
        (["run", "none.mpt", "a.png"], "none.mpt"),
        (["bench", "conv5"], "conv4"),
        (["bench", "none.mpt"], "none.mpt"),
        (["demo", "--data", "cifar10", "--data-root", "nowhere"], "nowhere"),
    ],
)
def test_failure_is_status_one_and_one_line(
    cli: Callable,
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for flags in ([], ["--json"]):
        done = cli(*arguments, *flags)
        assert done.status == 1
        assert done.out == ""
        assert words in done.err
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
        assert "unexpected" not in done.err
        assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(cli: Callable) -> None:
    done = cli("run", "none.mpt", "a.png", "--debug")
    assert done.status == 1
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (ZeroDivisionError("x\ny"), "error: ZeroDivisionError: x y (unexpected: add --debug and "),
        (KeyError("field"), "error: KeyError: missing entry 'field' (unexpected"),
        (ValueError("two\nlines"), "error: two lines\n"),
        (
            OSError(28, "No space left on device", "a.mpt"),
            "error: No space left on device: a.mpt\n",
        ),
        (KeyboardInterrupt(), "error: interrupted\n"),
    ],
)
def test_whatever_is_raised_becomes_one_line(
    cli: Callable, raised: BaseException, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("mpt_fast.runtime.load", fail)
    done = cli("run", "a.mpt", "b.png")
    assert done.status == 1
    assert done.err.startswith(line)
    assert done.err.count("\n") == 1


def test_help_imports_nothing_heavy(shell: Callable) -> None:
    code = (
        "import sys\n"
        "from mpt_fast.cli import main\n"
        "sys.argv = ['mpt-fast', 'train', '--help']\n"
        "try:\n    main()\n"
        "finally:\n"
        "    heavy = {'torch', 'numpy', 'matplotlib', 'yaml', 'sklearn'} & set(sys.modules)\n"
        "    sys.stderr.write(repr(sorted(heavy)))\n"
    )
    done = shell("-c", code)
    assert done.status == 0
    assert "Example" in done.out
    assert done.err == "[]"


def test_module_is_the_command(shell: Callable) -> None:
    done = shell("-m", "mpt_fast.cli", "--version")
    assert (done.status, done.out, done.err) == (0, f"mpt-fast {mpt_fast.__version__}\n", "")
    assert shell("-m", "mpt_fast.cli", "nonsense").status == 2
    assert shell("-m", "mpt_fast.cli", "eval", "no-such-run").status == 1


def test_json_has_no_nan_and_no_numpy(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    import numpy as np

    shown = printing.Output(json=True)
    shown.result({"a": np.float32(0.5), "b": float("nan"), "c": (1, None), "d": Path("x")}, "table")
    shown.say("words")
    assert json.loads(capsys.readouterr().out) == {"a": 0.5, "b": None, "c": [1, None], "d": "x"}
