"""The page of the studies, from results made up for the test: verdicts follow the numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpt_fast.report import studies, study_results
from mpt_fast.report.document import Code, Document, Gallery, Paragraph, Section, Table
from mpt_fast.report.markdown import markdown
from mpt_fast.report.study_parts import RENDERERS

MACHINE = {"cpu": "a processor", "threads": 1, "torch": "2.13", "mpt_fast": "0.1"}


def declared(name: str) -> dict[str, Any]:
    return {"name": name, "title": f"Title of {name}", "source": f"Source of {name}",
            "claim": "The claim.", "size": "The size."}  # fmt: skip


def stored(folder: Path, name: str, runs: list[dict[str, Any]], planned: int = 0) -> None:
    page = {
        "schema": study_results.SCHEMA,
        "name": name,
        "command": f"python -m benchmarks.studies {name}",
        "declared": declared(name),
        "planned": planned or len(runs),
        "machine": MACHINE,
        "runs": runs,
    }
    (folder / f"{name}.json").write_text(json.dumps(page))


def run(accuracy: float, **settings: Any) -> dict[str, Any]:
    return {"settings": settings, "accuracy": accuracy, "sparsity": settings.get("sparsity", 0.5)}


def figure1(gain: float) -> list[dict[str, Any]]:
    return [
        run(
            0.7 + 0.001 * seed + (gain if power > 1 else 0) - (0.1 if lr != power else 0),
            model="conv4", power=power, lr=lr, sparsity=ratio, seed=seed,
        )
        for power in (1.0, 2.0) for lr in (1.0, 2.0) for ratio in (0.2, 0.8) for seed in (0, 1, 2)
    ]  # fmt: skip


def verdict(folder: Path, name: str) -> str:
    page = studies.document(folder)
    return dict(page.sections[0].blocks[0].rows)[f"Source of {name}"]


@pytest.mark.parametrize(
    ("gain", "words"),
    [(0.02, "Agrees with the paper"), (-0.02, "Contradicts the paper"), (0.0, "Not seen")],
)
def test_power_verdict_follows_the_numbers(tmp_path: Path, gain: float, words: str) -> None:
    stored(tmp_path, "figure1", figure1(gain))
    said = verdict(tmp_path, "figure1")
    assert said.startswith(words)
    assert f"{100 * gain:+.2f} ± 0.00 points" in said


def test_power_verdict_where_one_ratio_gains(tmp_path: Path) -> None:
    lower = [
        {**r, "settings": {**r["settings"], "sparsity": 0.4}}
        for r in figure1(0.0)
        if r["settings"]["sparsity"] == 0.2
    ]
    stored(tmp_path, "figure1", [*figure1(0.02), *lower])
    assert verdict(tmp_path, "figure1").startswith("Agrees in part")


def test_power_verdict_is_of_what_has_its_seeds(tmp_path: Path) -> None:
    begun = [
        {**r, "settings": {**r["settings"], "model": "conv6"}}
        for r in figure1(-0.02)
        if r["settings"]["seed"] == 0
    ]
    stored(tmp_path, "figure1", [*figure1(0.02), *begun])
    said = verdict(tmp_path, "figure1")
    assert said.startswith("Agrees with the paper")
    assert "conv6 at 20 %: best p > 1 is 2, -2.00 (one seed)" in said


def test_each_power_is_shown_at_its_better_rate(tmp_path: Path) -> None:
    stored(tmp_path, "figure1", figure1(0.02))
    page = markdown(studies.document(tmp_path))
    assert "| 20 %, p = 2 | 72.10 ± 0.10 % | 2 | +2.00 ± 0.00 |" in page
    assert "| 20 %, p = 1 | 70.10 ± 0.10 % | 1 | – |" in page


def test_a_rate_at_which_a_seed_diverged_is_not_shown(tmp_path: Path) -> None:
    def diverging(r: dict[str, Any]) -> dict[str, Any]:
        s = r["settings"]
        lost = s["power"] == 2 and ((s["lr"] == 2 and s["seed"] == 1) or s["sparsity"] == 0.8)
        return {"settings": s, "diverged": "epoch 1, step 9"} if lost else r

    stored(tmp_path, "figure1", [diverging(r) for r in figure1(0.02)])
    page = markdown(studies.document(tmp_path))
    assert "| 20 %, p = 2 | 62.10 ± 0.10 % | 1 | -8.00 ± 0.00 |" in page
    assert "| 80 %, p = 2 | diverged in 6 of 6 runs | 1, 2 | – |" in page


@pytest.mark.parametrize(
    ("gap", "words"), [(0.005, "Agrees with the paper"), (0.05, "Not reached at this size")]
)
def test_twin_verdict(tmp_path: Path, gap: float, words: str) -> None:
    runs = [run(0.9 + 0.001 * s, seed=s, width=1.0, dense=True) for s in (0, 1, 2)]
    runs += [
        run(0.9 + 0.001 * s - gap, seed=s, width=1.0, activation=kind)
        for s in (0, 1, 2)
        for kind in ("relu", "binary")
    ]
    stored(tmp_path, "twins", runs)
    said = verdict(tmp_path, "twins")
    assert said.startswith(words)
    assert f"{100 * gap:.2f} ± 0.00 points" in said


def test_twins_with_signs_are_judged_apart(tmp_path: Path) -> None:
    sides = [
        (0.90, {"dense": True}),
        (0.885, {"dense": True, "activation": "binary", "compat": "biprop"}),
        (0.895, {"activation": "relu"}),
        (0.88, {"activation": "binary"}),
    ]
    runs = [
        run(at + (0.001 * seed if width == 2 else 0), seed=seed, width=width, **settings)
        for at, settings in sides for width in (2.0, 1.0) for seed in (0, 1, 2)
    ]  # fmt: skip
    stored(tmp_path, "twins", runs)
    said = verdict(tmp_path, "twins")
    assert said.startswith(
        "Agrees in part: MPT-1/32 is within 1 % of its dense twin (width 1: 0.50"
    )
    assert "MPT-1/1 is not within 1 % of its dense twin (nearest at width 1: 2.00" in said
    assert "MPT-1/1 is within 1 % of its dense twin with signs too (width 1: 0.50" in said
    assert "the gap is 0.50 ± 0.00 at width 1, 0.50 ± 0.00 at width 2" in said
    stored(tmp_path, "twins", [r for r in runs if r["settings"]["seed"] == 0])
    assert verdict(tmp_path, "twins").startswith("Not decided: too few seeds")


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    stored(tmp_path, "figure1", [r for r in figure1(0.02) if r["settings"]["seed"] == 0])
    said = verdict(tmp_path, "figure1")
    assert said.startswith("Not decided: too few seeds.")
    assert "+2.00 (one seed)" in said


def test_tickets_without_twins_decide_nothing(tmp_path: Path) -> None:
    stored(tmp_path, "twins", [run(0.9, seed=0, width=1.0, activation="relu")])
    assert verdict(tmp_path, "twins").startswith("Not decided")


def finetuned() -> list[dict[str, Any]]:
    return [
        {
            **run(0.8 + (0.02 if part == "last" else -0.01), seed=seed, part=part, lr=0.01,
                  optimizer="sgd", schedule="cosine", batch_size=64),
            "ticket_accuracy": 0.8,
        }
        for part in ("last", "all") for seed in (0, 1)
    ]  # fmt: skip


def timed(exact: float, spread: float = 0.01) -> list[dict[str, Any]]:
    medians = {"sort": 1.0, "threshold": 0.6, "exact": exact}
    times = {w: {"median": m, "p20": m - spread, "p80": m + spread} for w, m in medians.items()}
    return [{"settings": {"power": p}, "threads": 1, "timings": times} for p in (1.0, 2.0, 3.0)]


def speeds(ratio: float) -> list[dict[str, Any]]:
    return [
        {
            "settings": {"sparsity": s, "activation": kind},
            "zero_fraction": 0.3,
            "counted": {"kernel_rate": 1.5},
            "measured": [{"ratio": ratio, "ratio_p20": ratio - 1, "ratio_p80": ratio + 1}],
        }
        for s in (0.7, 0.9, 0.95) for kind in ("relu", "binary")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "runs", "words"),
    [
        ("figure3", finetuned(), "Agrees that fine-tuning helps: best is last layer, sgd"),
        ("table2", timed(0.61), "Agrees, and by more: not sorting cuts a step by at least 39.0 %"),
        ("table2", timed(0.61, 0.3), "Not decided: the 20 to 80 % ranges"),
        ("table2", timed(0.95), "Differs: not sorting cuts a step by at least 5.0 %"),
        ("table4", speeds(5.0), "The measured packed speed-up exceeds the paper's counted rate"),
        ("table4", speeds(2.0), "The measured packed speed-up does not exceed"),
    ],
)
def test_verdicts(tmp_path: Path, name: str, runs: list[dict[str, Any]], words: str) -> None:
    stored(tmp_path, name, runs)
    assert verdict(tmp_path, name).startswith(words)


def test_papers_numbers_stand_beside_ours(tmp_path: Path) -> None:
    stored(tmp_path, "table2", timed(0.61))
    stored(tmp_path, "table4", speeds(5.0))
    html = studies.document(tmp_path).html()
    for number in ("24.3 → 21.5 s, 11.5 %", "1.40×", "2.30×", "3.00×"):
        assert number in html.replace("&nbsp;", " ")


def test_selection_accuracy(tmp_path: Path) -> None:
    runs = [
        run(0.8 + (0.01 if way == "threshold" else 0), seed=s, selection=way, sparsity=0.5)
        for way in ("sort", "threshold", "exact") for s in (0, 1)
    ]  # fmt: skip
    stored(tmp_path, "figure4", runs)
    said = verdict(tmp_path, "figure4")
    assert said.startswith("Agrees: thresholding is not behind by more than the seeds' deviation")
    assert "sorting less thresholding is -1.00 ± 0.00 at 50 % pruned" in said
    assert "the same accuracy to the last image" in said


def concentrated(small: float) -> list[dict[str, Any]]:
    """Runs at p = 1, with 60 % of the scores near zero, and at p = 2 with `small`."""
    layers = [
        {"name": f"convs.{i}", "kind": "conv", "kernels": 10, "zero_kernels": 4,
         "zero_fraction": 0.4}
        for i in (0, 2, 5)
    ]  # fmt: skip
    return [
        {
            **run(0.8, sparsity=0.95, power=p, seed=seed),
            "kernels": {"layers": layers},
            "histogram": {
                f"convs.{i}": {"reach": 1.0, "counts": [1] * 20 + [60] + [1] * 20,
                               "below_percent": 0.6 if p == 1 else small}
                for i in (0, 2, 5)
            },
        }
        for p in (1.0, 2.0) for seed in (0, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("small", "words"), [(0.7, "Agrees"), (0.5, "Contradicts"), (0.6, "Not seen at this size")]
)
def test_zero_kernels_and_histograms(tmp_path: Path, small: float, words: str) -> None:
    stored(tmp_path, "figure5", concentrated(small))
    said = verdict(tmp_path, "figure5")
    assert said.startswith(words)
    assert "40.0 ± 0.0 % (p = 1) and 40.0 ± 0.0 % (p = 2) of the 3x3 kernels are zero" in said
    assert "chance alone gives 63.0 %" in said
    stored(tmp_path, "figure5", [r for r in concentrated(small) if r["settings"]["seed"] == 0])
    assert verdict(tmp_path, "figure5").startswith("Not decided, too few runs")


def test_the_whole_grid_names_the_papers_best(tmp_path: Path) -> None:
    runs = [
        {**run(0.8 + lr + (0.01 if part == "all" else 0), seed=0, part=part, lr=lr, batch_size=256,
               optimizer=way, schedule="cosine"), "ticket_accuracy": 0.8}
        for part in ("first", "last", "all") for way in ("sgd", "adam")
        for lr in (0.1, 0.01, 0.001)
    ]  # fmt: skip
    stored(tmp_path, "table1", runs)
    assert verdict(tmp_path, "table1") == (
        "Not decided, one seed: best is all layers, sgd, cosine, lr 0.1, batch 256 (+11.00 (one "
        "seed) points); the paper's best, last layer, sgd, cosine, lr 0.001, batch 256, is number "
        "15 of 18 (+0.10 points)."
    )
    page = markdown(studies.document(tmp_path))
    stored(tmp_path, "table1", [r for r in runs if r["settings"]["part"] == "first"], planned=18)
    assert verdict(tmp_path, "table1") == (
        "Not decided, 6 of 18 runs: best is first layer, sgd, cosine, lr 0.1, batch 256 (+10.00 "
        "(one seed) points); the paper's best has not run yet."
    )
    assert "the best 12 of 18 settings" in page
    assert "| part all | +4.70 | 100 % |" in page


def test_unfinished_and_missing_studies_are_named(tmp_path: Path) -> None:
    stored(tmp_path, "table4", speeds(5.0), planned=9)
    page = studies.document(tmp_path, {"depth": declared("depth"), "table4": declared("table4")})
    html = page.html()
    assert "Unfinished: 6 of 9 runs" in html
    assert "python -m benchmarks.studies depth" in html
    assert "Not&nbsp;run." in html
    assert html.count("Source of table4") == 2  # in the overview and in its own heading
    assert "http" not in html.replace("http://www.w3.org", "")


def test_every_machine_is_named(tmp_path: Path) -> None:
    first, *rest = speeds(5.0)
    other = {**first, "machine": {**MACHINE, "cpu": "another processor"}}
    stored(tmp_path, "table4", [other, *rest])
    footer = studies.document(tmp_path).footer
    assert "a processor, 1 thread" in footer
    assert "another processor, 1 thread" in footer


def test_another_data_set_has_its_own_section(tmp_path: Path) -> None:
    stored(tmp_path, "table4", speeds(5.0))
    stored(tmp_path, "table4-cifar10", speeds(2.0))
    assert len(studies.document(tmp_path).sections) == 3


@pytest.mark.parametrize("text", ["{}", "[", '{"schema": "other"}'])
def test_other_files_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is not a study's results"):
        studies.document(tmp_path)


def test_an_empty_folder_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run python -m benchmarks\.studies"):
        studies.document(tmp_path)


def test_unknown_studies_are_not_left_out(tmp_path: Path) -> None:
    stored(tmp_path, "figure9", [])
    with pytest.raises(ValueError, match="figure9: the report has no section"):
        studies.document(tmp_path)


def test_markdown_has_the_same_words() -> None:
    page = Document(
        "T",
        "lead",
        [Section("S", [Paragraph("p"), Table(["a", "b"], [["x|y", "1"]], "cap"), Code("run me")])],
        "foot",
    )
    assert markdown(page) == (
        "# T\n\nlead\n\n## S\n\np\n\ncap:\n\n| a | b |\n|---|---|\n| x\\|y | 1 |\n\n"
        "```\nrun me\n```\n\n*foot*\n"
    )
    with pytest.raises(ValueError, match="Gallery has no Markdown form"):
        markdown(Document("T", "", [Section("S", [Gallery([])])]))


def test_command_writes_both_pages(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mpt_fast.cli.app import app

    folder = tmp_path / "studies" / "results"
    folder.mkdir(parents=True)
    stored(folder, "table4", speeds(5.0))
    (folder.parent / "depth.yaml").write_text(json.dumps(declared("depth")))
    page = tmp_path / "page.html"
    invoke: Callable[..., Any] = CliRunner().invoke
    done = invoke(app, ["report", str(folder), "-o", str(page), "--json"])
    assert done.exit_code == 0, done.stderr
    verdicts = json.loads(done.stdout)["verdicts"]
    assert verdicts["Source of depth"] == "Not run."
    assert "Title of table4" in page.read_text()
    assert "| 70 % |" in page.with_suffix(".md").read_text()
    assert invoke(app, ["report", str(folder), "-o", "page.txt"]).exit_code == 2
    assert invoke(app, ["report", str(tmp_path / "none"), "-o", str(page)]).exit_code == 1


def test_every_declared_study_has_a_renderer() -> None:
    folder = Path(__file__).resolve().parents[2] / "benchmarks" / "studies"
    names = {path.stem.split("-")[0] for path in folder.glob("*.yaml")}
    assert names
    assert names <= set(RENDERERS)
