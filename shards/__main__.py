"""Command line of the format: `python -m shards {ls,verify,digest,preview} URL`."""

import io

from shards import cli
from shards.errors import UserError

_DESCRIPTION = "Look at a dataset: list its shards, check it, name its content, show its tiles."
_COMMANDS = {
    "ls": "one line per shard: URL, samples, bytes (for `cut -f1`, webdataset, tar)",
    "verify": "check every checksum, count and table; exit 1 and a line per fault if any",
    "digest": "print the 64 hex digits that name the content",
    "preview": "write a contact sheet (PNG) of its tiles to --out",
}


def main(argv: list[str]) -> int:
    """Run one command; see `exit_with` for the exit codes."""
    parser = cli.make_parser("shards", _DESCRIPTION)
    commands = parser.add_subcommands(dest="command", required=True)
    for name, text in _COMMANDS.items():
        sub = cli.make_parser(f"shards {name}", text)
        sub.add_argument("url", type=str, help="the dataset: a folder or bucket URL")
        sub.add_argument("--version", type=int | None, default=None, help="its version; the newest by default")
        if name == "preview":
            sub.add_argument("--out", type=str, required=True, help="the PNG file to write")
            sub.add_argument("--num_tiles", type=int, default=48, help="tiles on the sheet")
        commands.add_subcommand(name, sub, help=text)
    options = cli.parse(parser, argv)
    arguments = options[options["command"]]
    return {"ls": _ls, "verify": _verify, "digest": _digest, "preview": _preview}[options["command"]](arguments)


def _ls(options: cli.Namespace) -> int:
    from shards.dataset import read_table, read_version
    from shards.storage import join

    version = read_version(options.url, options.version)
    for row in read_table(options.url, version, "shards").to_pylist():
        print(join(options.url, row["url"]), row["num_samples"], row["size"], sep="\t")
    return 0


def _verify(options: cli.Namespace) -> int:
    from shards.dataset import read_version
    from shards.verify import verify

    version = read_version(options.url, options.version)
    faults = 0
    for fault in verify(options.url, version.version):
        faults += 1
        print(fault)
    state = "all right" if not faults else f"{faults} faults"
    print(
        f"{options.url} version {version.version}: {version.num_samples} samples in {version.num_shards} shards, "
        f"{version.num_scenes} scenes ({version.num_rejected} rejected): {state}"
    )
    return 1 if faults else 0


def _digest(options: cli.Namespace) -> int:
    from shards.dataset import read_version

    print(read_version(options.url, options.version).digest)
    return 0


def _preview(options: cli.Namespace) -> int:
    from shards.dataset import CorruptSampleError, open_dataset
    from shards.preview import contact_sheet
    from shards.storage import user_errors, write_bytes

    if options.num_tiles < 1:
        raise UserError(f"--num_tiles is {options.num_tiles}: give 1 or more")
    out = io.BytesIO()
    try:
        contact_sheet(open_dataset(options.url, options.version), options.num_tiles).save(out, "PNG")
    except CorruptSampleError as error:
        print(f"{error}; see `python -m shards verify {options.url}`")
        return 1
    with user_errors(options.out):
        write_bytes(options.out, out.getvalue())
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    cli.exit_with("shards", main)
