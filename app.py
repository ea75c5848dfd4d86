"""A web page to try networks: drop photographs or volumes, see the result, move the threshold, download masks.

    python app.py                       # skin lesions, with the shipped weights: http://127.0.0.1:7860
    python app.py results/<run>         # a network of your own
    python app.py results/<fold 0> results/<fold 1> --port 0

Only this computer can open the page, and no data leaves it: uploads stay in a temporary folder for about an hour, and
predictions in memory. Files are read, or rejected, as by predict.py, and the flags mean the same. Ctrl-C ends it.
Needs gradio (requirements-extra.txt).
"""

from utils.start import run_process

import contextlib
import dataclasses
import html
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from inference import Predictor
from inference.browser_page import (
    ADVICE,
    FOLDER,
    GONE,
    SAMPLES,
    PageSession,
    PageSessions,
    about,
    add_uploads,
    colours_of,
    draw,
    largest_upload,
    measurements,
    middle_slice,
    purpose,
    remove_leftovers,
    remove_oldest,
    save_masks,
    slices_of,
    trust,
)
from inference.prediction_options import PredictionOptions
from utils.optional import optional
from utils.plots import Colour
from utils.runs.command_line import run
from utils.runs.lock import locked_folder
from utils.runs.stopping import Stopped

log = logging.getLogger("vmunet")

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")  # hosts of the page; other computers reach it by ssh -L, at any port
CHECK_INTERVAL, LONGEST_UPLOAD = 600, 3600  # seconds between checks for old uploads, and their longest age
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
class AppConfig(PredictionOptions):
    networks: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NETWORK ...]")] = ("isic17",)
    """a checkpoint, a run's folder, or isic17, which ships with the code; several are averaged"""

    # --- page ---
    port: int = 7860  # of 127.0.0.1; 0: any that is free
    debug: bool = False  # show the traceback of errors


def main(config: AppConfig) -> None:
    log.setLevel(logging.INFO)
    if not 0 <= config.port <= 65535:
        raise ValueError(f"--port: found {config.port}, expected a number from 0 to 65535")
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix=FOLDER, ignore_cleanup_errors=True))
        folder = Path(temporary).resolve()
        stack.enter_context(locked_folder(folder, "app.py"))
        remove_leftovers(folder)
        # Gradio reads these when it is imported. They prevent analytics, and a proxy for the page's own address.
        os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            del os.environ[name]
        gradio = optional("gradio", "app.py")
        options = {f.name: getattr(config, f.name) for f in dataclasses.fields(PredictionOptions)}
        predictor = Predictor(config.networks, **options)
        page = make_page(gradio, predictor, config, folder)
        address = serve(page, predictor, config.port)
        try:
            log.info("the page is at %s; Ctrl-C ends it", address)
            threading.Event().wait()
        except Stopped as stopped:
            log.info("stopped by %s", stopped)
            status = stopped.status
    os._exit(status)  # at once: the interpreter would wait for a prediction that runs in a thread


def serve(page: Any, predictor: Predictor, port: int) -> str:
    """Serve a page on localhost, and return its address. Raises OSError for a port in use."""
    from starlette.middleware import Middleware  # gradio installs it

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
            app_kwargs={"middleware": [Middleware(OwnPage)]},
            footer_links=[],
            run_history=False,  # the browser would keep it
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            css=STYLE,
        )
    except OSError as error:
        raise OSError(f"--port {port}: found it in use, expected a free port; 0 takes any") from error
    return address


class OwnPage:
    """An ASGI application that passes on requests of the page itself.

    It refuses requests with another Host, because a foreign name may have been bound to this address, and with another
    Origin, because another web page that is open in the browser may have sent them."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import PlainTextResponse  # gradio installs it

        headers = {name.lower(): value.decode("latin-1").lower() for name, value in scope.get("headers", ())}
        host = headers.get(b"host", "")
        own = host.partition(":")[0] in NAMES and headers.get(b"origin", f"http://{host}") == f"http://{host}"
        refusal = PlainTextResponse(f"found another page or address, expected {' or '.join(NAMES)}", 403)
        await (self.app if scope["type"] != "http" or own else refusal)(scope, receive, send)


def make_page(gr: Any, predictor: Predictor, config: AppConfig, folder: Path) -> Any:
    """Build the page, a gradio.Blocks; `gr` is gradio, `folder` is for its files."""
    one_class = predictor.config.num_classes == 1
    several = len(predictor.members) > 1 or predictor.options.tta != "none"
    predictor.options.probabilities = one_class or config.probabilities  # for other thresholds
    images = not predictor.volumes or predictor.options.insist
    accepted = "Photographs: PNG, JPEG, BMP, TIFF, WebP" if images else "Volumes: NIfTI, MetaImage, NRRD, h5, DICOM"
    accepted = "Photographs or volumes" if predictor.options.insist else accepted

    def show(session: PageSession, name: str | None, number: int | None = None) -> list[Any]:
        """Return the values of `outputs` for the file of this name; by default the slice with the most foreground."""
        if session.results:
            sessions.use(session)
        elif name is not None:
            session.forget()
        chosen = session.find(name)
        slices = slices_of(chosen.result) if chosen else 0
        if chosen and slices and number is None:
            number = middle_slice(chosen.result)
        choices = [(one.file, one.name) for one in session.results]
        return [
            session,
            gr.Dropdown(choices, value=chosen and chosen.name, visible=len(choices) > 1),
            gr.Slider(maximum=max(1, slices - 1), value=number or 0, visible=slices > 1),
            draw(chosen.result, number or 0, session.disagreement) if chosen else None,
            table(measurements(session.results), [c for one in session.results for c in colours_of(one.result)]),
            rejections(session.rejections),
            gr.Button(visible=bool(session.results)),
            gr.File(value=None, visible=False),  # its masks are outdated
        ]

    def add(uploads: list[str], session: PageSession, progress: Any = gr.Progress()) -> list[Any]:  # noqa: B008
        def report(*count: int) -> None:
            sessions.use(session)
            progress(count)

        added = add_uploads(session, predictor, map(Path, uploads), folder, report)
        remove_oldest(folder)
        return [None, *show(session, added[0].name if added else None)]

    def add_sample(number: int, session: PageSession) -> list[Any]:
        return add([str(SAMPLES[number])], session)[1:]

    def decide(session: PageSession, name: str, number: int, threshold: float, mm: float | None) -> list[Any]:
        session.decide(threshold, mm)
        return show(session, name, number)

    def start_over(session: PageSession) -> list[Any]:
        sessions.remove(session)
        return show(PageSession(session.threshold, session.pixel_size, session.disagreement), None)

    def turn_to(session: PageSession, name: str, number: int) -> Any:
        chosen = session.find(name)
        if not chosen:
            gr.Warning(GONE)
        return draw(chosen.result, number, session.disagreement) if chosen else None

    def save(session: PageSession) -> Any:
        if not session.results:
            gr.Warning(GONE)
            return gr.File(value=None, visible=False)
        path = save_masks(session.results, Path(tempfile.mkdtemp(dir=folder)), config.probabilities)
        remove_oldest(folder)
        return gr.File(value=str(path), visible=True)

    def reveal(session: PageSession, name: str, number: int, disagreement: bool) -> Any:
        session.disagreement = disagreement
        return turn_to(session, name, number)

    sessions = PageSessions()
    sentence, curves = trust(config.networks)
    start = PageSession(predictor.config.threshold if one_class else 0.5, config.pixel_size)
    gr.set_static_paths([*SAMPLES, *filter(None, [curves])])
    with gr.Blocks(title="VM-UNet", analytics_enabled=False, delete_cache=(CHECK_INTERVAL, LONGEST_UPLOAD)) as page:
        state = gr.State(start, delete_callback=sessions.remove)  # a copy for each tab
        gr.HTML(f"<h1>VM-UNet</h1><p>{escaped(purpose(predictor))}</p>")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                files = gr.File(label=accepted, file_count="multiple", height=160)
                samples = gr.Dataset(
                    **dict(label="Samples", components=["image"], samples=[[str(path)] for path in SAMPLES]),
                    **dict(type="index", visible=not predictor.volumes and bool(SAMPLES)),
                )
                threshold = gr.Slider(
                    *(0, 1, start.threshold),
                    **dict(step=0.01, label="Threshold of the probability", buttons=[], visible=one_class),
                )
                mm = gr.Number(config.pixel_size or 0, label="Size of a pixel in mm, 0: unknown", visible=images)
            with gr.Column(scale=2, min_width=280):
                chooser = gr.Dropdown([], label="File", visible=False)
                number = gr.Slider(0, 1, 0, step=1, label="Slice", buttons=[], visible=False)
                disagreement = gr.Checkbox(label="Show where the networks disagree, in yellow", visible=several)
                picture = gr.Image(
                    **dict(label="Result", type="pil", format="png", interactive=False, buttons=["fullscreen"]),
                    elem_classes="picture",
                )
                areas = gr.HTML(elem_classes="results")
                missing = gr.HTML(elem_classes="left-out")
                button = gr.Button("Masks to download", visible=False)
                download = gr.File(label="Masks", interactive=False, visible=False)
                restart = gr.Button("Start over")
        with gr.Accordion("Can the probabilities be trusted?", open=False, visible=one_class and not predictor.volumes):
            gr.HTML(escaped(sentence))
            gr.Image(
                curves and str(curves), show_label=False, interactive=False, buttons=[], visible=curves is not None
            )
        gr.HTML(escaped(about(predictor, config.networks)), elem_classes="about")
        outputs = [state, chooser, number, picture, areas, missing, button, download]
        often: dict[str, Any] = dict(trigger_mode="always_last", show_progress="hidden", api_visibility="undocumented")
        seldom: dict[str, Any] = dict(api_visibility="undocumented")
        files.upload(add, [files, state], [files, *outputs], **seldom)
        samples.click(add_sample, [samples, state], outputs, api_name="sample", **seldom)
        chooser.input(show, [state, chooser], outputs, **often)
        number.input(turn_to, [state, chooser, number], picture, **often)
        disagreement.input(reveal, [state, chooser, number, disagreement], picture, **often)
        for control in (threshold, mm):
            control.change(decide, [state, chooser, number, threshold, mm], outputs, **often)
        button.click(save, state, download, **seldom)
        restart.click(start_over, state, outputs, api_name="restart", **seldom)
    return page


def escaped(text: str) -> str:
    """Escape a text for HTML, and for gradio's templates."""
    return html.escape(text).translate({ord(sign): f"&#{ord(sign)};" for sign in "$`{}"})


def table(rows: Sequence[dict[str, str]], colours: Sequence[Colour]) -> str:
    """Format rows as an HTML table, with each structure's colour before its name."""
    if not rows:
        return ""
    head = "".join(f"<th>{column}</th>" for column in rows[0])
    lines = []
    for row, colour in zip(rows, colours, strict=True):
        cells = {column: escaped(value) for column, value in row.items()}
        cells["structure"] = f'<span class="swatch" style="background:rgb{colour}"></span>{cells["structure"]}'
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells.values())}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def rejections(sentences: Sequence[str]) -> str:
    """Format the files that were not used as an HTML list, without advice for the command line."""
    items = "".join(f"<li>{escaped(ADVICE.sub('', sentence))}</li>" for sentence in sentences)
    return f"<b>Left out</b><ul>{items}</ul>" if items else ""


def free_port() -> int:
    """Find a free port."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def command() -> None:
    run(main, AppConfig)


if __name__ == "__main__":
    run_process(command)
