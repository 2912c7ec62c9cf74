"""The exact stream against its floor and its peers: `python -m tests.bench.stream [PART …]`.

All parts by default, 40 minutes. The peers come with `make bench`, or by `make .venv/.ready-bench` alone.

- local: images/s from the page cache with 0 and 2 worker processes, and encoded ones with none, for chips of 64² and
  images of 400² and 512². The floor is the bare loop: a positioned read of each image in the same order, and the same
  decoder. Peers: webdataset on the very same tars, MosaicML Streaming (with its own decoder, and with ours) and litData
  on the same images in their own formats.
- loader: the batches that PerA is trained on, by worker processes, against torch's own way of handing them over.
- bucket: the stream from a bucket 30 ms away against the same from the local disk, and against that while another
  process fetches as many bytes; bytes, requests, first batch.
- rows: opening, first step, resuming and memory at 1 and 50 million rows, with 0 and 2 workers.
- shuffle: distinct blocks and scenes in a batch against a uniform shuffle.

Prints ratios next to what is asked of them. A machine's speed drifts, by a third within minutes on a shared one, so
candidates take turns of less than a second (a few for the bucket), and a ratio is the median of those of neighbours in
time. Nothing fails for its speed.
"""

import sys
from importlib import import_module

PARTS = ("local", "loader", "bucket", "rows", "shuffle")


def main() -> None:
    """Run the chosen parts."""
    chosen = sys.argv[1:] or list(PARTS)
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        raise SystemExit(f"no such part: {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    for name in chosen:
        # Only the chosen ones: each has its own peers.
        import_module(f"tests.bench.stream_{name}").print_tables()


if __name__ == "__main__":
    main()
