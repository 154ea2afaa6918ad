"""The page, in Gradio: its controls and what they do. `timed_client` asks the server, `tables` makes the HTML."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from m2f.errors import M2FError
from m2f_client.client import Progress
from m2f_client.files import MAX_BYTES
from m2f_client.page.models import Models
from m2f_client.page.picture import draw
from m2f_client.page.tables import CSS, instances_table, latency_table, notice
from m2f_client.page.timed_client import Question, TimedClient
from m2f_client.tiled import Tiling

_KEEP_S = 24 * 3600  # seconds after which an upload is deleted
_SIDES = (256, 512, 1024, 2048)  # of a tile. No free number: while it is typed it is 1, and a picture millions of tiles
_OFF = 0  # the side that stands for no tiles

Shown = tuple[Any, Image.Image | None, str, str]
"""The parts of the page that a request changes: notice, picture, instances, latency."""


def build(models: Models, examples: Sequence[Path]) -> gr.Blocks:
    """Return the page.

    Every change of a control sends a request, instead of filtering on the page: only the server knows its own settings
    (NMS, caps), and the page shows the time of exactly this request.

    Args:
        models: the models to choose from.
        examples: images offered as examples; may be empty.
    """

    def ask(  # noqa: PLR0917 (Gradio gives the values of the controls by position)
        path: str | None,
        threshold: float,
        classes: list[int],
        name: str,
        side: int,
        overlap: float,
        whole: bool,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (so Gradio is asked for it)
    ) -> Shown:
        if path is None:
            return gr.HTML(visible=False), None, "", ""
        tiling = None if side == _OFF else Tiling(side, overlap, whole)

        def show(done: int, total: int) -> None:
            progress((done, total), unit="tiles")

        return answer(models, name, Path(path), Question(threshold, classes, tiling), progress=show)

    first, several = models.names[0], len(models.names) > 1
    with gr.Blocks(title="m2f demo", analytics_enabled=False, delete_cache=(_KEEP_S, _KEEP_S)) as page:
        gr.Markdown(f"### `{models.url}`" if several else f"### `{first}` at `{models.url}`")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                image = gr.File(
                    label="Image: JPEG, PNG, WebP, TIFF, BMP, ...", file_types=["image"], type="filepath", height=130
                )
                chosen = _examples(examples)
                model = gr.Dropdown(models.names, value=first, label="Model", visible=several)
                threshold, classes = _controls(models.client(first))
                tiling = _tiling_controls()
            with gr.Column(scale=3, min_width=300):
                problem = gr.HTML(visible=False, elem_classes="m2f-html", apply_default_css=False)
                picture = gr.Image(
                    label="Instances",
                    alt_text="the image with its instances drawn on it",
                    format="jpeg",  # encoded in a tenth of WebP's time
                    interactive=False,
                    buttons=["download", "fullscreen"],
                )
                found = gr.HTML(elem_classes="m2f-html", apply_default_css=False)
                spent = gr.HTML(elem_classes="m2f-html", apply_default_css=False)
        if chosen is not None:
            chosen.click(
                lambda index: str(examples[index]), chosen, image, show_progress="hidden", api_visibility="private"
            )
        asking = {
            "fn": ask,
            "inputs": [image, threshold, classes, model, *tiling],
            "outputs": [problem, picture, found, spent],
            "show_progress": "minimal",
            "show_progress_on": picture,
            "trigger_mode": "always_last",
        }
        changes = [control.change for control in (image, threshold, classes, *tiling)]
        gr.on(changes, **asking, api_name="ask", api_visibility="undocumented")
        model.change(
            lambda name: choose(models, name), model, [threshold, classes], show_progress="hidden",
            api_visibility="private",
        ).then(**asking, api_visibility="private")  # fmt: skip
    return page


def _controls(client: TimedClient) -> tuple[gr.Slider, gr.Dropdown]:
    """Return the controls that depend on the model, as they are before somebody moves them."""
    threshold = gr.Slider(0, 1, client.score_threshold, step=0.01, label="Minimum score")
    names = [(name, index) for index, name in enumerate(client.class_names or ())]
    classes = gr.Dropdown(
        names, value=[], multiselect=True, label="Classes", info="None chosen: all", visible=bool(names)
    )
    return threshold, classes


def _tiling_controls() -> tuple[gr.Dropdown, gr.Slider, gr.Checkbox]:
    """Return the controls of the tiles: their side, their overlap, and the picture as a whole."""
    sides = [("Off", _OFF), *((f"{side} x {side} pixels", side) for side in _SIDES)]
    side = gr.Dropdown(sides, value=_OFF, label="Tiles", info="For pictures too large for the network or the server")
    default = Tiling()
    overlap = gr.Slider(0, 0.5, default.overlap, step=0.05, label="Overlap", visible=False)
    whole = gr.Checkbox(default.whole, label="Also the picture as a whole", visible=False)
    side.change(
        lambda chosen: [gr.update(visible=chosen != _OFF)] * 2, side, [overlap, whole], show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip
    return side, overlap, whole


def choose(models: Models, name: str) -> tuple[Any, Any]:
    """Return the controls for another model; unchanged if the model does not answer, as the next request will say."""
    try:
        return _controls(models.client(name))
    except M2FError:
        return gr.skip(), gr.skip()


def _examples(examples: Sequence[Path]) -> gr.Dataset | None:
    if not examples:
        return None
    gr.set_static_paths(list(examples))  # served from their folder: copies would be deleted with the uploads
    samples = [[str(path)] for path in examples]
    return gr.Dataset(
        components=[gr.Image(render=False)], samples=samples, type="index", label="Examples", elem_id="m2f-examples"
    )


def answer(models: Models, name: str, path: Path, question: Question, *, progress: Progress | None = None) -> Shown:
    """Return what the page shows for an image: picture and tables, or a notice with the error."""
    if not path.is_file():
        return _refused("the page has deleted this image: choose it again")
    try:
        client = models.client(name)
        found = client.ask(path, question, progress=progress)
        picture = draw(path, found.result, client.class_names)
    except M2FError as error:
        return _refused(str(error).removeprefix(f"{path}: "))  # the name that Gradio has given to the upload
    table = instances_table(found.result, client.class_names)
    return gr.HTML(visible=False), picture, table, latency_table(found, client.model)


def _refused(message: str) -> Shown:
    return gr.HTML(notice(message), visible=True), None, "", ""


def _theme() -> gr.themes.Base:
    """Return Gradio's theme with fonts of its package. Bold is 700: its fonts of weight 600 lack most letters."""
    sans, mono = (gr.themes.LocalFont(name, weights=(400, 700)) for name in ("IBM Plex Sans", "IBM Plex Mono"))
    return gr.themes.Default(primary_hue="blue", font=[sans, "sans-serif"], font_mono=[mono, "monospace"])


@contextmanager
def served(models: Models, examples: Sequence[Path], *, host: str, port: int) -> Iterator[str]:
    """Serve the page until the block ends, and give its address.

    The page loads nothing from other machines. At its end all uploads are deleted.

    Args:
        models: the models to choose from.
        examples: images offered as examples; may be empty.
        host: IP address or name to listen on.
        port: port to listen on; 0 picks a free one.

    Raises:
        M2FError: the address or the port cannot be listened on.
    """
    host, port = _free_address(host, port)
    with tempfile.TemporaryDirectory(prefix="m2f_demo_") as uploads:
        os.environ.update(GRADIO_TEMP_DIR=uploads, GRADIO_ANALYTICS_ENABLED="False")
        page = build(models, examples)
        try:
            yield _launch(page, host, port)
        finally:
            page.close(verbose=False)


def _launch(page: gr.Blocks, host: str, port: int) -> str:
    """Start the page and return its address. Features that the environment could enable (`GRADIO_SHARE`) are off."""
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        inbrowser=False,
        share=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        max_file_size=MAX_BYTES,  # a server takes less at once, but a picture may be cut into tiles
        theme=_theme(),
        css=CSS,
    )
    return address


def _free_address(host: str, port: int) -> tuple[str, int]:
    """Return an address and port as Gradio takes them: IPv6 in brackets. A name's IPv4 address goes first."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        family, *_, address = min(found, key=lambda entry: entry[0] == socket.AF_INET6)
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the page does
            probe.bind(address)
            free: int = probe.getsockname()[1]
    except (OSError, ValueError) as error:  # ValueError: no name has such characters
        reason = getattr(error, "strerror", None) or error
        raise M2FError(f"cannot serve the page at {host}, port {port} ({reason}); see --host and --port") from error
    return f"[{address[0]}]" if family == socket.AF_INET6 else str(address[0]), free
