"""What all four command lines share."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shards import cli
from shards.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 3
    """Units of a layer."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width is {self.width}: choose 1 or more")


@dataclass(frozen=True, kw_only=True)
class Outer:
    data: str
    """Where the data lie."""
    inner: Inner = field(default_factory=Inner)


def parse(*argv):
    return cli.parse_config("stage", "A stage.", Outer, argv)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("inner: {width: 7}\n")
    return str(path)


def test_flags_win_over_the_file_wherever_they_stand(config_file):
    assert parse("--data", "x", "--config", config_file).inner.width == 7
    assert parse("--config", config_file, "--data", "x", "--inner.width", "9").inner.width == 9
    assert parse("--inner.width", "9", "--data", "x", f"--config={config_file}").inner.width == 9


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), "data"),
        (("--data", "x", "--inner.widht", "3"), "inner.widht"),
        (("--data", "x", "--inner.wid", "3"), "inner.wid"),
        (("--data", "x", "--inner.width", "three"), 'inner.width": Expected a whole number. Got value: three'),
        (("--data", "x", "--inner.width", "0"), "width is 0: choose 1 or more"),
        (("--data", "x", "--config", "missing.yaml"), "missing.yaml"),
        (("--data", "x", "--config"), "--config"),
    ],
)
def test_mistakes_are_named_in_one_line(argv, expected):
    with pytest.raises(UserError) as caught:
        parse(*argv)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["inner: {width: null}\ndata: x", "inner: null\ndata: x"])
def test_null_is_refused_where_a_value_must_be(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="is null"):
        parse("--config", str(path))


@pytest.mark.parametrize("value", ["3", "[]", "[1, 2]", "true"])
def test_a_value_in_the_place_of_a_section_is_named(tmp_path, value):
    path = tmp_path / "c.yaml"
    path.write_text(f"inner: {value}\ndata: x")
    with pytest.raises(UserError, match=r"^inner is .*: it has options of its own, write inner: \{width: …\}$"):
        parse("--config", str(path))


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"weights\.pt is no text in UTF-8 .*: give a YAML file$"):
        parse("--data", "x", "--config", str(path))


@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("data: x\ninner: {width: 3}\ndata: y\n", "line 3: data is there for the second time"),
        ("data: x\ninner:\n  width: 3\n  width: 4\n", "line 4: width is there"),
        ("data: x\nlist: [{a: 1}, {b: 1, b: 2}]\n", "line 2: b is there"),
        ("data: x\ninner: &it\n  width: *it\n", "line 2: a value contains itself"),
        ("data: &it [1, [2, *it]]\n", "line 1: a value contains itself"),
    ],
)
def test_a_key_twice_and_a_value_in_itself_are_named(tmp_path, text, told, form):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"c\.yaml, {told}"):
        parse(*form.format(path).split(" "))


def test_a_value_may_have_several_names(tmp_path):
    path = tmp_path / "c.yaml"
    # Each line has the one before twice: looked at anew under each name it would take for ever.
    lines = ["a0: &a0 [1, 2]", *(f"a{number}: &a{number} [*a{number - 1}, *a{number - 1}]" for number in range(1, 60))]
    path.write_text("\n".join(lines))
    cli._refuse_malformed(path)


def test_what_is_to_be_a_list_tells_how_one_is_written():
    @dataclass(frozen=True, kw_only=True)
    class Listed:
        bands: tuple[str, ...] = ("red",)
        """Names."""

    assert cli.parse_config("stage", "A stage.", Listed, ["--bands", "[red, green]"]).bands == ("red", "green")
    told = r'"bands": Expected a list in brackets, like "\[a, b\]"\. Got value: red,green'
    with pytest.raises(UserError, match=told):
        cli.parse_config("stage", "A stage.", Listed, ["--bands", "red,green"])


def test_a_config_may_come_from_a_pipe():
    read_end, write_end = os.pipe()
    os.write(write_end, b"data: x\ninner: {width: 7}\n")
    os.close(write_end)
    assert parse("--config", f"/dev/fd/{read_end}").inner.width == 7
    os.close(read_end)


@pytest.mark.parametrize("text", ["inner: {width: 3", "? [1, 2]\n: 3\n? [1, 2]\n: 4\n"])
def test_odd_yaml_is_one_line(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        parse("--data", "x", "--config", str(path))
    assert "\n" not in str(caught.value)


def test_an_unknown_key_in_the_file_is_named(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("inner: {depth: 7}\n")
    with pytest.raises(UserError, match="depth"):
        parse("--data", "x", "--config", str(path))


@pytest.mark.parametrize("name", ["ingest", "shards", "pretrain", "eval"])
def test_help_loads_nothing_heavy(name):
    program = f"""
import runpy, sys
sys.argv = ["{name}", "--help"]
try:
    runpy.run_module("{name}", run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
print("HEAVY", sorted({{"torch", "ray", "rasterio", "pyarrow", "sklearn", "timm"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert f"usage: python -m {name}" in result.stdout, result.stderr
    assert result.stdout.splitlines()[-1] == "HEAVY []"


PRINTING = """
import sys
from shards import cli

def main(argv):
    sys.stdin.read()
    print("line\\n" * int(argv[0]))
    return 0

cli.exit_with("stage", main)
"""


@pytest.mark.parametrize("num_lines", [1, 10_000])
@pytest.mark.parametrize("options", [(), ("-u",)])
def test_a_reader_that_is_gone_and_a_full_disk_have_no_traceback(num_lines, options):
    command = [sys.executable, *options, "-c", PRINTING, str(num_lines)]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (result.returncode, result.stderr) == (1, "stage: error: [Errno 28] No space left on device\n")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    process.stdout = None
    assert process.communicate() == (None, b"")
    assert process.returncode == 141


def test_another_pipe_that_breaks_is_a_defect():
    program = PRINTING.replace("sys.stdin.read()", "raise BrokenPipeError")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "BrokenPipeError" in result.stderr
