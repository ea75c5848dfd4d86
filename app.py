"""A page to try networks in a browser: drop photographs or volumes, see what is found, move the threshold, take masks.

    python app.py                       # skin lesions, with the shipped weights: http://127.0.0.1:7860
    python app.py results/<run>         # a network of your own
    python app.py results/<fold 0> results/<fold 1> --port 0

Only this computer can open the page, and nothing leaves it: what is dropped lies in a temporary folder, for about an
hour, and predictions in memory. Files are read, and refused, as by predict.py, whose flags mean the same here. Ctrl-C
ends it. Needs gradio (requirements-extra.txt).
"""

import dataclasses
import html
import importlib.util
import logging
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from inference.options import Options
from utils.runs.command_line import run_command
from utils.runs.flags import parse_flags
from utils.runs.shipped import SHIPPED, find_checkpoint

if TYPE_CHECKING:
    from inference.page import Session
    from inference.predictor import Predictor

log = logging.getLogger("vmunet")

HOST = "127.0.0.1"
TABS = 8  # whose results are kept; of the first one no longer when another is opened
CHECKED, OLDEST = 600, 3600  # seconds: how often uploads are looked at, and from which age on they are removed
STYLE = """
.results { overflow-x: auto } .results table { border-collapse: collapse; width: 100% }
.results th, .results td { padding: 4px 8px; text-align: right; white-space: nowrap }
.results :is(th, td):nth-child(-n+2) { text-align: left }
.results td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 7em }
.picture img { max-height: 75vh; object-fit: contain }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .4em }
.left-out { overflow-wrap: anywhere }
"""


@dataclass(kw_only=True)
class AppConfig(Options):
    networks: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NETWORK ...]")] = ("isic17",)
    """a checkpoint, a run's folder, or isic17, which comes with this code; several are averaged"""

    # --- page ---
    port: int = 7860  # of 127.0.0.1; 0: any that is free
    debug: bool = False  # show the traceback of errors


def main(config: AppConfig) -> None:
    log.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="vmunet-page-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary).resolve()
        # Read when gradio is imported. It would ask its makers for news, and a proxy for the page's own address.
        os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
        for name in ("NO_PROXY", "no_proxy"):
            os.environ[name] = ",".join(filter(None, (os.environ.get(name), HOST)))

        from inference.predictor import Predictor
        from utils.runs.stopping import Stopped

        options = {f.name: getattr(config, f.name) for f in dataclasses.fields(Options)}
        predictor = Predictor(config.networks, **options)
        page = make_page(predictor, config, folder)
        address = serve(page, predictor, config.port)
        try:
            log.info("the page is at %s; Ctrl-C ends it", address)
            threading.Event().wait()
        except Stopped as stopped:
            log.info("stopped by %s", stopped)
            status = stopped.status
    os._exit(status)  # at once: a prediction that is running in a thread would be in the way of the interpreter's end


def serve(page: Any, predictor: "Predictor", port: int) -> str:
    """Opens a page to this computer alone, and returns its address. Raises OSError for a port that is taken."""
    from inference.page import largest_upload

    try:
        _, address, _ = page.launch(
            server_name=HOST,
            server_port=port or free_port(),
            share=False,
            inbrowser=False,
            quiet=True,
            show_error=True,
            prevent_thread_lock=True,
            max_file_size=largest_upload(predictor),
            state_session_capacity=TABS,
            footer_links=[],
            run_history=False,  # which the browser would keep
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            css=STYLE,
        )
    except OSError as error:
        raise OSError(f"--port {port}: found it in use, expected one that is free; 0 takes any") from error
    return address


# ---- the page


def make_page(predictor: "Predictor", config: AppConfig, folder: Path) -> Any:
    """The page, a gradio.Blocks. `folder` takes the files."""
    import gradio as gr

    from inference.page import (
        Session,
        about,
        add_uploads,
        draw,
        measurements,
        middle_slice,
        save_masks,
        slices_of,
    )

    one_class = predictor.config.num_classes == 1
    predictor.options.probabilities = one_class or config.probabilities  # kept for other thresholds
    images = not predictor.volumes or predictor.options.insist

    def show(session: "Session", name: str | None, number: int | None = None) -> list[Any]:
        """Values of `shown`: the file of this name, by itself with the slice that shows most."""
        chosen = session.find(name)
        slices = slices_of(chosen.result) if chosen else 0
        if chosen and slices and number is None:
            number = middle_slice(chosen.result)
        choices = [(one.file, one.name) for one in session.kept]
        return [
            session,
            gr.Dropdown(choices, value=chosen and chosen.name, visible=len(choices) > 1),
            gr.Slider(maximum=max(1, slices - 1), value=number or 0, visible=slices > 1),
            draw(chosen.result, number or 0) if chosen else None,
            table(measurements(session.kept), [colour for one in session.kept for colour in swatches(one.result)]),
            left_out(session.left_out),
            gr.Button(visible=bool(session.kept)),
            gr.File(value=None, visible=False),  # what it offers is of before
        ]

    def add(uploads: list[str], session: "Session", progress: Any = gr.Progress()) -> list[Any]:  # noqa: B008
        added = add_uploads(session, predictor, map(Path, uploads), folder, lambda *count: progress(count))
        return [None, *show(session, added[0].name if added else None)]

    def decide(session: "Session", name: str, number: int, threshold: float, mm: float | None) -> list[Any]:
        session.decide(threshold, mm)
        return show(session, name, number)

    def turn_to(session: "Session", name: str, number: int) -> Any:
        chosen = session.find(name)
        return draw(chosen.result, number) if chosen else None

    def save(session: "Session") -> Any:
        if not session.kept:
            return gr.File(value=None, visible=False)
        path = save_masks(session.kept, Path(tempfile.mkdtemp(dir=folder)), config.probabilities)
        return gr.File(value=str(path), visible=True)

    begin = Session(predictor.config.threshold if one_class else 0.5, config.pixel_size)
    with gr.Blocks(title="VM-UNet", analytics_enabled=False, delete_cache=(CHECKED, OLDEST)) as page:
        state = gr.State(begin)  # a copy for each tab
        gr.HTML(text(about(predictor, config.networks)))
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                files = gr.File(label=expected(predictor), file_count="multiple", height=160)
                threshold = gr.Slider(
                    *(0, 1, begin.threshold),
                    **dict(step=0.01, label="Threshold of the probability", buttons=[], visible=one_class),
                )
                mm = gr.Number(config.pixel_size or 0, label="Size of a pixel in mm, 0: unknown", visible=images)
            with gr.Column(scale=2, min_width=280):
                chooser = gr.Dropdown([], label="File", visible=False)
                number = gr.Slider(0, 1, 0, step=1, label="Slice", buttons=[], visible=False)
                picture = gr.Image(
                    **dict(label="Result", type="pil", format="png", interactive=False, buttons=["fullscreen"]),
                    elem_classes="picture",
                )
                areas = gr.HTML(elem_classes="results")
                missing = gr.HTML(elem_classes="left-out")
                button = gr.Button("Masks to download", visible=False)
                download = gr.File(label="Masks", interactive=False, visible=False)
                restart = gr.Button("Start over")
        shown = [state, chooser, number, picture, areas, missing, button, download]
        often: dict[str, Any] = dict(trigger_mode="always_last", show_progress="hidden", api_visibility="undocumented")
        seldom: dict[str, Any] = dict(api_visibility="undocumented")
        files.upload(add, [files, state], [files, *shown], **seldom)
        chooser.input(show, [state, chooser], shown, **often)
        number.input(turn_to, [state, chooser, number], picture, **often)
        for control in (threshold, mm):
            control.change(decide, [state, chooser, number, threshold, mm], shown, **often)
        button.click(save, state, download, **seldom)
        restart.click(lambda session: show(session.emptied(), None), state, shown, api_name="restart", **seldom)
    return page


def expected(predictor: "Predictor") -> str:
    """The files that the network takes; what else is dropped is left out with all endings named."""
    photographs, volumes = "Photographs: PNG, JPEG, BMP, TIFF, WebP", "Volumes: NIfTI, MetaImage, NRRD, h5, DICOM"
    return "Photographs or volumes" if predictor.options.insist else volumes if predictor.volumes else photographs


# ---- text of files and checkpoints, which may hold anything, as HTML


def text(written: str) -> str:
    """HTML that shows a text as it is, also in the templates of gradio."""
    return html.escape(written).translate({ord(sign): f"&#{ord(sign)};" for sign in "$`{}"})


def swatches(result: Any) -> list[str]:
    """Of each class its colour in HTML."""
    from inference.page import colours_of

    return [f'<span class="swatch" style="background:rgb{colour}"></span>' for colour in colours_of(result)]


def table(rows: Sequence[dict[str, str]], colours: Sequence[str]) -> str:
    """Rows as an HTML table, each structure behind its colour."""
    if not rows:
        return ""
    head = "".join(f"<th>{column}</th>" for column in rows[0])
    lines = []
    for row, colour in zip(rows, colours, strict=True):
        cells = (f"<td>{colour if column == 'structure' else ''}{text(value)}</td>" for column, value in row.items())
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def left_out(sentences: Sequence[str]) -> str:
    """An HTML list of what was not used."""
    if not sentences:
        return ""
    return f"<b>Left out</b><ul>{''.join(f'<li>{text(sentence)}</li>' for sentence in sentences)}</ul>"


# ---- before


def free_port() -> int:
    """A port that nobody uses now."""
    import socket

    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def parse(config_class: type[AppConfig]) -> AppConfig:
    """The config of the command line. What is wrong by itself is said at once, before PyTorch is imported."""
    config = parse_flags(config_class)
    for named in config.networks:
        if named not in SHIPPED:
            find_checkpoint(named)
    if not 0 <= config.port <= 65535:
        raise ValueError(f"--port {config.port}: expected a number from 0 to 65535")
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs gradio; pip install -r requirements-extra.txt")
    return config


if __name__ == "__main__":
    run_command(main, AppConfig, parse)
