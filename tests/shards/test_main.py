"""The command line of the format."""

from pathlib import Path

from PIL import Image

from shards.tables import read_version


def test_ls_verify_digest_preview(tmp_path, write_dataset, run_stage):
    url = write_dataset(str(tmp_path / "data"))
    lines = run_stage("shards", "ls", url, check=True).stdout.splitlines()
    assert {line.split("\t")[0] for line in lines} == {str(path) for path in Path(url, "shards").iterdir()}
    assert sum(int(line.split("\t")[1]) for line in lines) == 24
    assert run_stage("shards", "digest", url, check=True).stdout == read_version(url).digest + "\n"
    assert "all right" in run_stage("shards", "verify", url, check=True).stdout
    out = tmp_path / "sheet.png"
    run_stage("shards", "preview", url, "--out", str(out), check=True)
    with Image.open(out) as sheet:
        assert sheet.size[0] > 500


def test_verify_exits_1_on_a_fault(tmp_path, write_dataset, run_stage):
    url = write_dataset(str(tmp_path / "data"))
    next(Path(url, "shards").iterdir()).unlink()
    result = run_stage("shards", "verify", url)
    assert result.returncode == 1
    assert "is missing" in result.stdout


def test_preview_names_a_corrupt_sample_and_refuses_no_tiles(tmp_path, write_dataset, run_stage):
    url = write_dataset(str(tmp_path / "data"))
    out = str(tmp_path / "x.png")
    assert run_stage("shards", "preview", url, "--out", out, "--num_tiles", "-5").returncode == 2
    for shard in Path(url, "shards").iterdir():
        data = shard.read_bytes()
        shard.write_bytes(data[:600] + b"damage" + data[606:])
    result = run_stage("shards", "preview", url, "--out", out)
    assert result.returncode == 1
    assert "does not match its checksum" in result.stdout
    assert not Path(out).exists()


def test_curation_diff_and_gc(tmp_path, write_dataset, run_stage):
    url, out = write_dataset(str(tmp_path / "data")), str(tmp_path / "small")
    told = run_stage("shards", "select", url, "--where", "key > 'sample-000011'", "--out", out, check=True).stdout
    assert f"{out} version 1: 12 of 24 samples" in told
    assert "all right" in run_stage("shards", "verify", out, check=True).stdout
    told = run_stage("shards", "select", url, "--where", "x = 0", check=True).stdout
    assert told == f"every sample of {url} version 1 stays: nothing is written\n"
    told = run_stage("shards", "dedup", url, "--distance", "8", check=True).stdout
    assert "0 duplicates, " in told
    assert f"{url} version 2: " in told
    result = run_stage("shards", "diff", url, url, "--version_a", "1", "--limit", "1")
    assert result.returncode == 1
    assert len([line for line in result.stdout.splitlines() if line.startswith("changed scene")]) == 1
    assert run_stage("shards", "diff", url, url).returncode == 0
    name = f"tables/samples-{'0' * 32}.parquet"
    orphan = Path(url, name)
    orphan.write_bytes(b"123")
    told = run_stage("shards", "gc", url, "--dry_run", "--min_age_h", "0", check=True).stdout
    assert told == f"3\t{name}\n1 files, 3 bytes would be removed\n"
    assert "0 files" in run_stage("shards", "gc", url, check=True).stdout
    assert orphan.exists()
    assert "1 files, 3 bytes removed" in run_stage("shards", "gc", url, "--min_age_h", "0", check=True).stdout
    assert not orphan.exists()


def test_the_example_of_a_condition_is_what_to_type(run_stage):
    assert "path like 'harbour/%')" in run_stage("shards", "select", "--help", check=True, COLUMNS="1000").stdout


def test_card(tmp_path, write_dataset, run_stage):
    url = write_dataset(str(tmp_path / "data"))
    out = tmp_path / "page.html"
    assert run_stage("shards", "card", url, "--out", str(out), check=True).stdout == f"wrote {out}\n"
    assert out.read_text().startswith("<!")


def test_wrong_use_is_one_line_and_exit_2(tmp_path, run_stage):
    for arguments in [
        ("digest", str(tmp_path)),
        ("digest",),
        ("nonsense", "x"),
        ("verify", "s3:/x"),
        ("ls", "x", "-z"),
        ("ls", ""),
        ("select", str(tmp_path), "--where", "true"),
        ("select", str(tmp_path)),
        ("dedup", str(tmp_path), "--distance", "11"),
        ("diff", str(tmp_path), str(tmp_path)),
        ("diff", "x", "y", "--limit", "-1"),
        ("plan", str(tmp_path)),
        ("plan", str(tmp_path), "--global_batch", "16"),
        ("stream", str(tmp_path), "--global_batch", "16", "--seed", "x"),
        ("gc", str(tmp_path)),
        ("gc", str(tmp_path), "--min_age_h", "nan"),
    ]:
        result = run_stage("shards", *arguments)
        assert result.returncode == 2, result.stderr
        assert result.stderr.startswith("shards: error: ")
        assert len(result.stderr.splitlines()) == 1
