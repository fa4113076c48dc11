"""Picture of the top of a report page, as a small PNG, by headless Chromium.

python docs/screenshot.py runs/tickets/evaluation/report.html docs/pictures/report.png
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

COLOURS = 64


def shoot(page: Path, picture: Path, width: int, height: int) -> None:
    """Write the page's first `height` CSS pixels in `COLOURS` colours: a file of some tens of kB."""
    from PIL import Image

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=3000",
            f"--user-data-dir={folder}/profile", f"--window-size={width},{height}", f"--screenshot={shot}",
            page.resolve().as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.open(shot).convert("RGB").quantize(COLOURS).save(picture, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=860)
    parser.add_argument("--height", type=int, default=760)
    given = parser.parse_args()
    shoot(given.page, given.picture, given.width, given.height)
    print(f"wrote {given.picture}: {given.picture.stat().st_size / 1000:.0f} kB")
