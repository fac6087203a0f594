"""The shell lines of the README and docs, to be run as they are written."""

import importlib
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent
QUICK = "--epochs 1 --GAN-epochs 1 --fused-channels 16 --no-pictures --no-tensorboard --device cpu"


def shell_lines(document, beginning="python "):
    """The commands of a document's code blocks, fenced as sh or indented, that begin so; broken lines are joined."""
    text = (ROOT / document).read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks += re.findall(
        r"^    (\w.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return [line.strip() for block in blocks for line in block.splitlines() if line.startswith(beginning)]


def run(line, **more):
    """Run a command in this process, with more flags for some programs, such as ``predict=[...]``; it must end well."""
    _, program, *flags = shlex.split(line, comments=True)
    name = "feature_files.commands" if program == "-m" else program.removesuffix(".py")
    flags = flags[1:] if program == "-m" else flags
    more = {"train_IEMOCAP": QUICK.split(), **more}.get(name, [])
    assert importlib.import_module(name).main([*flags, *more]) in (0, None), line
