"""Small wheels of any name and version, made by hand: an index in which torch weighs nothing."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path


def wheel(
    folder: Path,
    name: str,
    version: str,
    *,
    requires: Sequence[str] = (),
    modules: Sequence[str] = (),
    pure: bool = True,
) -> Path:
    """Write one wheel whose modules hold their version; a wheel that is not pure has a file of its platform too."""
    stem = f"{re.sub(r'[-_.]+', '_', name)}-{version}"
    path = folder / f"{stem}-py3-none-{'any' if pure else 'linux_x86_64'}.whl"
    files = {f"{module}/__init__.py": f"__version__ = {version!r}\n" for module in modules}
    if not pure:
        files[f"{modules[0]}/core.so"] = version
    extras = sorted({match[1] for line in requires if (match := re.search(r"extra == '([^']+)'", line))})
    metadata = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
        *(f"Requires-Dist: {line}" for line in requires),
    ]
    metadata += [f"Provides-Extra: {extra}" for extra in extras]
    files[f"{stem}.dist-info/METADATA"] = "\n".join(metadata) + "\n"
    tag = "py3-none-any" if pure else "py3-none-linux_x86_64"
    files[f"{stem}.dist-info/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: {str(pure).lower()}\nTag: {tag}\n"
    )
    record = f"{stem}.dist-info/RECORD"
    files[record] = "".join(f"{file},,\n" for file in [*files, record])
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
    return path
