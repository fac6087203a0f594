"""What the look at a finished run costs: pictures, TensorBoard's end, the page, and opening it in a browser.

    python benchmarks/look.py runs/first

Makes them again in the run's own directory, from its data file, and prints a table of seconds. Opening is timed where
Playwright and a Chromium are installed: from the call until the first dialogue's last turn is there, best of three.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import pandas as pd
from threadpoolctl import threadpool_limits

from experiment import plots
from experiment.flags import Parser
from experiment.insight import gather
from experiment.page import write_page
from experiment.run_directory import read_config
from experiment.tensorboard import finish


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it gives, seconds of the clock and of the CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    return work(), time.perf_counter() - wall, time.process_time() - cpu


def opening(page: Path) -> float | None:
    """Seconds until the page's first dialogue is there; None without a browser."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if not chromium:
        return None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tries = []
        for _ in range(3):
            shown = browser.new_page()
            started = time.perf_counter()
            shown.goto(page.resolve().as_uri())
            shown.locator("#chat li.turn").last.wait_for()
            tries.append(time.perf_counter() - started)
        browser.close()
    return min(tries)


@threadpool_limits.wrap(limits=1)  # as at the end of a run
def measure(directory: Path) -> None:
    """Print the table."""
    read_config(directory)  # else a page of nothing would be written into any folder
    seen, *gathering = timed(lambda: gather(directory))
    parts = {
        "gather, and what decided": gathering,
        "pictures, and maps beside them": timed(lambda: plots.draw(seen))[1:],
        "TensorBoard's end": timed(lambda: finish(seen))[1:],
        "page": timed(lambda: write_page(directory, seen=seen))[1:],
    }
    frame = pd.DataFrame(parts, index=["seconds", "of the CPU"]).T.round(2).rename_axis("part").reset_index()
    print(common.markdown(frame))
    page = directory / "report.html"
    seconds = opening(page)
    print(f"report.html: {page.stat().st_size / 1e6:.2f} MB, {len(seen.table)} utterances")
    print("opening: no browser here" if seconds is None else f"opening: {seconds:.2f} s")
    for problem in seen.problems:
        print(f"left out: {problem}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script. Returns the exit status: 0, 2 for bad input."""
    parser = Parser(description="What the look at a finished run costs.")
    parser.add_argument("run", type=Path, metavar="RUN", help="its directory")
    directory = parser.parse_args(argv).run
    return common.ending(lambda: measure(directory))


if __name__ == "__main__":
    sys.exit(main())
