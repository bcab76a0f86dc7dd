"""What README.md and its figure promise."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found


def test_the_layers_in_ten_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [code] = blocks("python")
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 10
    batch = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    names: dict[str, object] = {"batches": [batch]}
    exec(compile(code, str(README), "exec"), names)
    assert (tmp_path / "ticket.mpt").stat().st_size > 0
    packed, model = names["packed"], names["model"]
    assert isinstance(packed, torch.nn.Module)
    assert isinstance(model, torch.nn.Module)
    torch.testing.assert_close(
        packed(batch[0]), model.double()(batch[0].double()).float(), rtol=1e-5, atol=1e-5
    )


def test_every_command_shown_is_one_the_command_line_knows(cli: Callable) -> None:
    shown = [
        shlex.split(line, comments=True)[1:]
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("mpt-fast ")
    ]
    assert {words[0] for words in shown} >= {"train", "eval", "pack", "run", "bench"}
    for command, *rest in shown:
        page = cli(command, "--help").out
        for option in (word for word in rest if word.startswith("-")):
            assert option in page, f"mpt-fast {command} has no {option}"


def test_files_that_the_readme_links_to_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert local
    for link in local:
        assert (README.parent / link).is_file(), link
