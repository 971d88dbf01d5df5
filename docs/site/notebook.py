"""Execute the notebook of the documentation: `python docs/site/notebook.py` writes docs/first-steps.ipynb with new outputs.

It runs in a folder of its own, with this interpreter and this checkout, and asks no network for anything.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parent.parent.parent
NOTEBOOK = ROOT / "docs" / "first-steps.ipynb"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
"""The kernel that every installation of Jupyter has."""
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
REWRITTEN = re.compile(r"[^\n]*\r(?!\n)")
"""The part of a line over which a progress bar has written the next."""


class ThisInterpreter(KernelSpecManager):
    """Knows one kernel, that of the running interpreter, whatever is installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name=kernel_name, language="python")


def kernel() -> AsyncKernelManager:
    """A kernel of this interpreter, not yet started."""
    return AsyncKernelManager(kernel_spec_manager=ThisInterpreter(), kernel_name="this")


def environment(folder: Path) -> dict[str, str]:
    """The environment of a kernel that uses this checkout, without the user's settings of IPython."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "IPYTHONDIR": str(folder / ".ipython"), "HF_HUB_OFFLINE": "1"}


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Execute all cells in `folder`; raises CellExecutionError for one that fails."""
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook, km=kernel(), timeout=None, coalesce_streams=True, record_timing=False, resources=place
    )
    done: NotebookNode = client.execute(cleanup_kc=True, env=environment(folder))
    return done


def sources(notebook: NotebookNode) -> str:
    """A digest of the code, by which outputs are known to be those of the cells they stand under."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def settle(notebook: NotebookNode) -> NotebookNode:
    """The notebook as it is stored: text as a terminal would show it in the end, and nothing about this machine's Jupyter."""
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output.metadata = NotebookNode()
            if output.output_type == "stream":
                text = ESCAPE.sub("", output.text).replace("\r\n", "\n")
                output.text = "".join(line.rstrip() + "\n" for line in REWRITTEN.sub("", text).splitlines())
    notebook.metadata = NotebookNode(
        kernelspec=NotebookNode(KERNEL),
        language_info=NotebookNode(name="python"),
        slimrl=NotebookNode(sources=sources(notebook)),
    )
    return notebook


def main() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(settle(execute(notebook, Path(folder))), NOTEBOOK)
    print(f"{NOTEBOOK.relative_to(ROOT)}: {NOTEBOOK.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
