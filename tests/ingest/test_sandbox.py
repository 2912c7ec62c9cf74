"""A decoder that crashes, hangs, bloats or is killed costs one call; faults of the world are no rejections."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ingest import sandbox
from ingest.config import Recipe, recipe_json
from ingest.reasons import SceneRejectedError
from ingest.sandbox import Decoder, DecoderFaultError, DecoderTimeoutError, Limits, faults_named
from ingest.scene_row import to_json
from shards.schema import INVENTORY
from tests.ingest.rasters import MEASURED, files_of, land, probed, unit_of, write

REPOSITORY = Path(__file__).parents[2]
# A decoder with more to call: started in the place of Python, with `-m ingest.decoder …` as its arguments.
HOSTILE = """#!{python}
import os, signal, sys, time
from ingest import decoder
from rasterio.errors import RasterioIOError

def fail(error):
    raise error

def called(function):
    return lambda call, files, recipe, tell: {{"answer": function(call, files), "pid": os.getpid()}}

def count(call, files, recipe, tell):
    for number in range(call["to"]):
        tell({{"number": number}})
        if number == call["die_at"]:
            die(call, files)
    return {{"counted": call["to"]}}

def die(call, files):
    with open(call["deaths"], "a") as deaths:
        deaths.write("x")
    if os.path.getsize(call["deaths"]) <= call["times"]:
        os.kill(os.getpid(), call["signal"])
    return "alive"

def read(call, files):
    with files[0].opener("scene-0") as file:
        file.seek(call["at"])
        return file.read(call["size"]).hex()

def hash_on(call, files):
    import hashlib
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes in C, where no Python handler would run

def work(call, files):
    end_s = time.process_time() + call["seconds"]
    while time.process_time() < end_s:
        pass

decoder._CALLS |= {{
    "die": called(die),
    "count": count,
    "read": called(read),
    "work": called(work),
    "leave": called(lambda call, files: os._exit(3)),
    "hash": called(hash_on),
    "sleep": called(lambda call, files: time.sleep(600)),
    "fill": called(lambda call, files: len(b"x" * call["size"])),
    "variables": called(lambda call, files: sorted(os.environ)),
    "raise": called(lambda call, files: 1 // 0),
    "infinite": lambda call, files, recipe, tell: tell({{"gsd_m": float("inf")}}) or {{}},
    "mistake": called(lambda call, files: fail(ValueError("<x at 0x7f00ab> of /a/b/x.tif is no tile"))),
    "gdal": called(lambda call, files: fail(RasterioIOError("no such tile"))),
    "disk": called(lambda call, files: fail(OSError(call["errno"], os.strerror(call["errno"])))),
}}
decoder.main(*map(int, sys.argv[3:]))
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A function that makes a decoder which offers more calls; all are closed in the end."""
    program = tmp_path / "hostile.py"
    program.write_text(HOSTILE.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    made = []

    def make(**limits):
        made.append(Decoder(Limits(**limits)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def ask(decode, name, read=None, files=(), finish=None, **values):
    return decode.call(name, {"files": list(files), "recipe": recipe_json(Recipe()), **values}, read, finish)


def fail(error):
    raise error


def rejection(decode, name, **values):
    with pytest.raises(SceneRejectedError) as caught:
        ask(decode, name, **values)
    return caught.value.code, caught.value.detail


def is_running(pid):
    """Say whether a process lives; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_decoder_answers_as_the_function_would(tmp_path):
    path = write(tmp_path / "x.tif", land(3))
    decode, recipe = Decoder(), Recipe(tile_px=64)
    row = dict.fromkeys(INVENTORY.names) | {"scene": "00000000000000ab", "path": "scene.tif"}
    request = {"files": [{"band": "", "local": path, "size": 1}], "scene": row, "recipe": recipe_json(recipe)}
    here = probed(files_of(path), recipe)
    found = decode.call("probe", request)
    assert found == {name: list(value) if isinstance(value, tuple) else value for name, value in here.items()
                     if name in found}  # fmt: skip
    with pytest.raises(SceneRejectedError, match="missing"):
        decode.call("probe", request | {"files": [{"band": "", "local": f"{path}.gone", "size": 1}]})
    assert decode.call("probe", request) == found
    decode.close()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_costs_the_scene_after_a_second_try(hostile, tmp_path, number):
    decode, deaths = hostile(), tmp_path / "deaths"
    told = rejection(decode, "die", deaths=str(deaths), times=2, signal=number)
    assert told == ("decoder_crashed", f"the decoder ended with {number.name}")
    assert deaths.read_text() == "xx"
    assert ask(decode, "die", deaths=str(deaths), times=2, signal=number)["answer"] == "alive"


def test_what_a_predecessor_left_behind_is_not_held_against_a_scene(hostile, tmp_path):
    values = {"deaths": str(tmp_path / "deaths"), "times": 1, "signal": signal.SIGSEGV}
    assert ask(hostile(), "die", **values)["answer"] == "alive"


def test_a_decoder_that_leaves_has_crashed(hostile):
    assert rejection(hostile(), "leave") == ("decoder_crashed", "the decoder ended with exit code 3")


def test_too_much_work_is_the_scenes_fault(hostile):
    decode = hostile(cpu_s=0.2)
    assert rejection(decode, "hash")[0] == "decoder_slow"
    assert ask(decode, "variables")["answer"]


def test_the_cpu_time_is_that_of_one_call(hostile):
    decode = hostile(cpu_s=0.5)
    assert len({ask(decode, "work", seconds=0.2)["pid"] for _ in range(4)}) == 1


def test_waiting_too_long_is_the_worlds_fault(hostile):
    decode = hostile(wall_s=1.0)
    with pytest.raises(DecoderTimeoutError):
        ask(decode, "sleep")
    assert ask(hostile(), "variables")["answer"]


def test_a_decoder_that_took_too_long_is_ended(hostile):
    decode = hostile()
    ask(decode, "variables")
    # Not from the beginning: on a busy machine its start takes longer.
    decode.limits = Limits(wall_s=1.0)
    process = decode._process
    with pytest.raises(DecoderTimeoutError):
        ask(decode, "sleep")
    assert process.returncode == -signal.SIGKILL


def test_memory_beyond_the_limit_is_the_scenes_fault(hostile):
    decode = hostile(memory_bytes=2 * 2**30)
    assert rejection(decode, "fill", size=3 * 2**30)[0] == "decoder_memory"
    assert ask(decode, "fill", size=2**20)["answer"] == 2**20


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_from_outside_once_is_repeated_and_twice_a_fault(hostile, tmp_path, number):
    once = {"deaths": str(tmp_path / "once"), "times": 1, "signal": number}
    decode = hostile()
    assert ask(decode, "die", **once)["answer"] == "alive"
    twice = {"deaths": str(tmp_path / "twice"), "times": 2, "signal": number}
    with pytest.raises(OSError, match="killed from outside"):
        ask(decode, "die", **twice)
    assert ask(decode, "variables")["answer"]


def test_an_idle_decoder_that_was_killed_is_replaced(hostile):
    decode = hostile()
    first = ask(decode, "variables")["pid"]
    os.kill(first, signal.SIGKILL)
    assert ask(decode, "variables")["pid"] != first


@pytest.mark.parametrize("call", ["sleep", "hash"])
def test_the_decoder_ends_with_its_parent(hostile, call):
    program = (
        "import sys; from ingest.sandbox import Decoder; from ingest.config import Recipe, recipe_json\n"
        "decode = Decoder(); request = {'files': [], 'recipe': recipe_json(Recipe())}\n"
        f"sys.executable = {sys.executable!r}\n"
        "print(decode.call('variables', request)['pid'], flush=True)\n"
        f"decode.call({call!r}, request)"
    )
    python = Path(sys.executable).read_text().splitlines()[0][2:]
    parent = subprocess.Popen([python, "-c", program], stdout=subprocess.PIPE, cwd=REPOSITORY)
    child = int(parent.stdout.readline())
    assert is_running(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline_s = time.monotonic() + 60
    while is_running(child):
        assert time.monotonic() < deadline_s, "the decoder outlives its parent"
        time.sleep(0.02)


def test_the_decoder_sees_no_credentials(hostile, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3", "HF_TOKEN", "HOME"):
        monkeypatch.setenv(name, "x")
    variables = ask(hostile(), "variables")["answer"]
    assert not {"AWS", "HF"} & {name.split("_")[0] for name in variables}
    assert "HOME" not in variables
    assert {"GDAL_NUM_THREADS", "GDAL_ERROR_ON_LIBJPEG_WARNING", "PROJ_NETWORK"} <= set(variables)


def test_decoders_are_renewed_now_and_then(hostile, monkeypatch):
    monkeypatch.setattr(sandbox, "_CALLS_PER_DECODER", 2)
    decode = hostile()
    pids = [ask(decode, "variables")["pid"] for _ in range(5)]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]
    assert not is_running(pids[0])


def test_a_mistake_of_ours_costs_the_scene_and_is_told_without_places(hostile):
    decode = hostile()
    told = [rejection(decode, "raise") for _ in range(2)]
    assert told == [("decoder_failed", "ZeroDivisionError in <lambda>: integer division or modulo by zero")] * 2
    assert rejection(decode, "mistake") == ("decoder_failed", "ValueError in fail: <x at 0x…> of x.tif is no tile")
    assert ask(decode, "variables")["answer"]


def test_what_gdal_says_is_no_fault_of_the_disk(hostile):
    assert rejection(hostile(), "gdal") == ("decoder_failed", "RasterioIOError in fail: no such tile")


def test_a_fault_of_the_disk_is_no_scenes(hostile):
    decode = hostile()
    with pytest.raises(DecoderFaultError, match="Input/output error"):
        ask(decode, "disk", errno=errno.EIO)
    with pytest.raises(OSError, match="No space left") as full:
        ask(decode, "disk", errno=errno.ENOSPC)
    assert full.value.errno == errno.ENOSPC


@pytest.mark.parametrize("times", [0, 1])
def test_rows_are_worked_on_as_they_come_and_count_once(hostile, tmp_path, times):
    came = []

    def finish(rows):
        came.extend(row["number"] for row in rows)
        return [{"square": row["number"] ** 2} for row in rows]

    deaths = {"deaths": str(tmp_path / "deaths"), "times": times, "signal": signal.SIGKILL}
    found = ask(hostile(), "count", finish=finish, to=1000, die_at=700, **deaths)
    assert found == {"counted": 1000, "rows": [{"square": number**2} for number in range(1000)]}
    assert came[-1000:] == list(range(1000))
    # What the first attempt told before it died had come by then.
    assert (len(came) > 1000) == (times > 0)


def test_an_error_over_a_row_ends_the_call_and_its_decoder(hostile, tmp_path):
    decode = hostile()
    first = ask(decode, "variables")["pid"]
    with pytest.raises(OSError, match="scratch is gone"):
        ask(decode, "count", finish=lambda rows: fail(OSError("scratch is gone")), to=10, die_at=-1)
    assert ask(decode, "variables")["pid"] != first


def test_what_json_cannot_hold_costs_the_scene(hostile):
    code, detail = rejection(hostile(), "infinite")
    assert (code, detail[:13]) == ("decoder_failed", "ValueError in")


def test_a_decoder_that_cannot_write_rejects_nothing(tmp_path):
    files = files_of(write(tmp_path / "scene.tif", land(3)))
    recipe = Recipe(tile_px=32, **MEASURED)
    unit = unit_of(probed(files, recipe), recipe)
    scratch = tmp_path / "tiles"
    scratch.touch()
    request = {
        "files": [{"band": "", "local": files[0].path, "size": 1}],
        "units": [to_json(unit)],
        "recipe": recipe_json(recipe),
        "scratch": str(scratch),
        "position": 0,
    }
    decode = Decoder()
    try:
        num_tiles = len(decode.call("cut", request)["rows"])
        pid = decode._process.pid
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match="File too large") as caught:
            decode.call("cut", request)
        assert caught.value.errno == errno.EFBIG
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert len(decode.call("cut", request)["rows"]) == num_tiles == 4
        assert decode._process.pid == pid
    finally:
        decode.close()


def test_faults_name_their_scene_and_the_remedy(hostile, tmp_path):
    with (
        pytest.raises(DecoderTimeoutError, match=r"a/x.tif: .*no answer in time.*--scene_deadline_s"),
        faults_named("a/x.tif"),
    ):
        ask(hostile(wall_s=1.0), "sleep")
    twice = {"deaths": str(tmp_path / "twice"), "times": 2, "signal": signal.SIGKILL}
    with (
        pytest.raises(DecoderFaultError, match=r"a/x.tif: .*killed from outside: SIGKILL.*--workers"),
        faults_named("a/x.tif"),
    ):
        ask(hostile(), "die", **twice)
    with pytest.raises(OSError, match=r"^else$"), faults_named("a/x.tif"):
        raise OSError("else")


REMOTE = {"band": "", "local": None, "size": 200_000}


def test_bytes_of_remote_files_come_from_the_reader(hostile):
    data, asked = os.urandom(200_000), []

    def reader(file, ranges):
        asked.extend(ranges)
        assert file == 0
        return [data[offset : offset + size] for offset, size in ranges]

    decode = hostile()
    for at, size in [(0, 10), (65_530, 20), (199_990, 100), (200_005, 5), (0, 200_000)]:
        answer = ask(decode, "read", reader, [REMOTE], at=at, size=size)["answer"]
        assert bytes.fromhex(answer) == data[at : at + size]
    assert all(0 <= offset < len(data) or not data[offset:] for offset, _ in asked)


@pytest.mark.parametrize("fault", [TimeoutError, BrokenPipeError, EOFError])
def test_the_readers_fault_ends_the_call_and_rejects_nothing(hostile, fault):
    def reader(file, ranges):
        raise fault("503 slow down")

    decode = hostile()
    with pytest.raises(OSError, match="503"):
        ask(decode, "read", reader, [REMOTE], at=0, size=10)
    good = ask(decode, "read", lambda file, ranges: [b"a" * size for _, size in ranges], [REMOTE], at=0, size=2)
    assert good["answer"] == "6161"


def test_one_decoder_serves_all_tasks_with_the_same_limits():
    limits = Limits(cpu_s=123.0)
    assert sandbox.decoder(limits) is sandbox.decoder(Limits(cpu_s=123.0))
    assert sandbox.decoder(limits) is not sandbox.decoder(Limits(cpu_s=124.0))
