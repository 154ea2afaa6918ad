"""The page, in Gradio. What is on it stands here; what is asked, in `server`; what is shown, in `tables`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from m2f.errors import M2FError
from m2f.limits import MAX_IMAGE_BYTES
from m2f_client.page.picture import draw
from m2f_client.page.tables import CSS, instances_table, latency_table, notice
from m2f_client.page.timed_client import TimedClient

_KEEP_S = 24 * 3600  # of uploads

Shown = tuple[Any, Image.Image | None, str, str]
"""What a request changes on the page: notice, picture, instances, latency."""


def build(server: TimedClient, examples: Sequence[Path]) -> gr.Blocks:
    """Return the page.

    Every move of a control is a request to the server: its filters act together with the repository's own (NMS, caps),
    which a filter on this side could not know, and the page shows what the server takes for exactly that.

    Args:
        server: who is asked.
        examples: images to choose from; none for no such row.
    """

    def ask(path: str | None, threshold: float, classes: list[int]) -> Shown:
        if path is None:
            return gr.HTML(visible=False), None, "", ""
        return answer(server, Path(path), threshold, classes)

    with gr.Blocks(title="m2f demo", analytics_enabled=False, delete_cache=(_KEEP_S, _KEEP_S)) as page:
        gr.Markdown(f"### Mask2Former at `{server.url}`")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                image = gr.File(label="Image: JPEG, PNG or WebP", file_types=["image"], type="filepath", height=130)
                chosen = _examples(examples)
                threshold = gr.Slider(0, 1, server.score_threshold, step=0.01, label="Least score")
                names = [(name, index) for index, name in enumerate(server.class_names or ())]
                classes = gr.Dropdown(
                    names, value=[], multiselect=True, label="Classes", info="None chosen: all", visible=bool(names)
                )
            with gr.Column(scale=3, min_width=300):
                problem = gr.HTML(visible=False, elem_classes="m2f-html", apply_default_css=False)
                picture = gr.Image(
                    label="Instances",
                    alt_text="the image with its instances drawn on it",
                    format="jpeg",  # a tenth of WebP's time, which every move of a control takes
                    interactive=False,
                    buttons=["download", "fullscreen"],
                )
                found = gr.HTML(elem_classes="m2f-html", apply_default_css=False)
                spent = gr.HTML(elem_classes="m2f-html", apply_default_css=False)
        if chosen is not None:
            chosen.click(
                lambda index: str(examples[index]), chosen, image, show_progress="hidden", api_visibility="private"
            )
        gr.on(
            [image.change, threshold.change, classes.change],
            ask,
            [image, threshold, classes],
            [problem, picture, found, spent],
            show_progress="minimal",
            trigger_mode="always_last",
            api_name="ask",
            api_visibility="undocumented",
        )
    return page


def _examples(examples: Sequence[Path]) -> gr.Dataset | None:
    if not examples:
        return None
    gr.set_static_paths(list(examples))  # shown from where they are: copies would go with the uploads
    samples = [[str(path)] for path in examples]
    return gr.Dataset(
        components=[gr.Image(render=False)], samples=samples, type="index", label="Examples", elem_id="m2f-examples"
    )


def answer(server: TimedClient, path: Path, threshold: float, classes: Sequence[int]) -> Shown:
    """Return what the page shows for an image, or the notice that says why there is nothing."""
    if not path.is_file():
        return _refused("the page does not keep this image any more: choose it again")
    try:
        found = server.ask(path, score_threshold=threshold, classes=classes)
        picture = draw(path, found.result, server.class_names)
    except M2FError as error:
        return _refused(str(error))
    table = instances_table(found.result, server.class_names)
    return gr.HTML(visible=False), picture, table, latency_table(found)


def _refused(message: str) -> Shown:
    return gr.HTML(notice(message), visible=True), None, "", ""


def _theme() -> gr.themes.Base:
    """Return Gradio's own with fonts that are in its package: those of weight 600, its default, lack most letters."""
    sans, mono = (gr.themes.LocalFont(name, weights=(400, 700)) for name in ("IBM Plex Sans", "IBM Plex Mono"))
    return gr.themes.Default(primary_hue="blue", font=[sans, "sans-serif"], font_mono=[mono, "monospace"])


@contextmanager
def served(server: TimedClient, examples: Sequence[Path], *, host: str, port: int) -> Iterator[str]:
    """Serve the page until the block ends, and give its address.

    Nothing is asked of any other machine, and no upload outlives the page.

    Args:
        server: who is asked.
        examples: images to choose from; none for no such row.
        host: IPv4 address to listen on.
        port: a free one.
    """
    with tempfile.TemporaryDirectory(prefix="m2f_demo_") as uploads:
        os.environ.update(GRADIO_TEMP_DIR=uploads, GRADIO_ANALYTICS_ENABLED="False")
        page = build(server, examples)
        try:
            yield _launch(page, host, port)
        finally:
            page.close(verbose=False)


def _launch(page: gr.Blocks, host: str, port: int) -> str:
    """Start the page and return its address. What the environment could switch on (`GRADIO_SHARE`, ...) is off."""
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
        max_file_size=MAX_IMAGE_BYTES,
        theme=_theme(),
        css=CSS,
    )
    return address
