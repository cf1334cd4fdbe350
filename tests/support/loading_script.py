"""Loads a model and tells the most anonymous memory that it took: `python loading_script.py FOLDER STORAGE DTYPE`."""

import json
import sys
import threading
from pathlib import Path


def anonymous() -> int:
    """Bytes that are resident and belong to no file."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def main(folder: str, storage: str, dtype: str) -> None:
    """Measure; libraries are imported, and a small model loaded, before."""
    import tempfile

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from hasten.loading.model import LoadOptions, load
    from support import tiny

    options = LoadOptions(storage=storage, dtype=dtype)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as temporary:
        load(str(tiny.save_model(Path(temporary) / "model")), options)
    begun, peak, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = load(folder, options).model
    done.set()
    watcher.join()
    kept = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    end = anonymous() - begun
    print(json.dumps({"peak_anonymous_bytes": max(peak - begun, end), "end_bytes": end, "kept_bytes": kept}))


if __name__ == "__main__":
    main(*sys.argv[1:])
