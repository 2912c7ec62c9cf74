"""The house's own rules: who imports whom, every option is read, nothing but the plan at the top level."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.options import Known, Reader, config_classes, options, options_read

REPOSITORY = Path(__file__).parents[1]
STAGES = ("shards", "ingest", "pretrain", "eval")
FORBIDDEN = {
    "shards": {"ingest", "pretrain", "eval", "torch", "torchvision", "timm", "ray", "rasterio"},
    "ingest": {"pretrain", "eval", "torch", "torchvision", "timm"},
    "pretrain": {"ingest", "eval", "ray", "rasterio"},
    "eval": {"ingest", "pretrain", "ray"},
}
TOP_LEVEL = {"pyproject.toml", *STAGES, "tests", "Makefile", "README.md", "LICENSE", "constraints.txt"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path}: relative import")


@pytest.mark.parametrize("stage", STAGES)
def test_stages_import_only_what_they_may(stage):
    for path in (REPOSITORY / stage).rglob("*.py"):
        breaches = set(imports(path)) & FORBIDDEN[stage]
        assert not breaches, f"{path} imports {breaches}"


def test_the_command_line_library_stays_at_the_border():
    users = {
        str(path.relative_to(REPOSITORY))
        for stage in STAGES
        for path in (REPOSITORY / stage).rglob("*.py")
        if "jsonargparse" in set(imports(path))
    }
    assert users == {"shards/cli.py"}


@pytest.mark.parametrize("stage", ["ingest", "pretrain", "eval"])
def test_every_option_is_read(stage):
    """An option that no code reads would be a lie in the help text."""
    fields = options(config_classes(stage))
    assert fields
    assert fields - options_read(stage) == set()


@pytest.mark.parametrize(
    ("code", "read"),
    [
        ("def f(config: Config): return config.masks.student", {("Config", "masks"), ("MasksConfig", "student")}),
        ("def f(colour: ColourConfig, other): return colour.student, other.teacher", {("ColourConfig", "student")}),
        ("def f(config: Config): x, y = config.loss, 3; return x.cls", {("Config", "loss"), ("LossConfig", "cls")}),
        ("def f(config: Config): return [m.weight for m in config.mix]", {("Config", "mix"), ("MixConfig", "weight")}),
        ("def f(config: Config): config.seed = 3; return model.depth", set()),
    ],
)
def test_options_of_one_name_are_told_apart(code, read):
    known = Known(config_classes("pretrain"))
    reader = Reader(known)
    for _ in range(2):
        reader.visit(ast.parse(code))
    assert known.read == read


@pytest.mark.parametrize("stage", ["ingest", "pretrain", "eval"])
def test_every_option_has_a_help_text(stage, run_stage):
    text = re.sub(r"\s+", " ", run_stage(stage, "--help", check=True).stdout)
    for _, name in options(config_classes(stage)):
        shown = re.search(rf"--(?:[a-z_]+\.)*{name}\b[^()]*?", text)
        assert shown, f"{stage} --help does not show {name}"
    source = ast.parse((REPOSITORY / stage / "config.py").read_text())
    for owner in [node for node in source.body if isinstance(node, ast.ClassDef)]:
        for field, following in zip(owner.body, [*owner.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                assert documented, f"{stage}.config.{owner.name}.{ast.unparse(field.target)} has no docstring"


def test_nothing_but_the_plan_at_the_top_level():
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {name.split("/")[0] for name in listed if not name.startswith(".")} <= TOP_LEVEL


def test_readme_names_real_files_and_targets():
    readme = (REPOSITORY / "README.md").read_text()
    for targets in re.findall(r"^\s*make ([a-z]+)\b|`make ([a-z]+)", readme, re.MULTILINE):
        target = "".join(targets)
        assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE), target
    for name in re.findall(r"`((?:ingest|shards|pretrain|eval|tests)/[\w./-]+)`", readme):
        assert (REPOSITORY / name).exists(), name
