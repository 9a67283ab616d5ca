"""Logging: structlog over the standard library, so that libraries' logs have the same form.

Invariants: log lines go to standard error; tracebacks have no local variables (they hold tokens); libraries that log
request bodies at debug level are limited to a higher level.
"""

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor

_PINNED = {
    "kubernetes_asyncio.client.rest": logging.INFO,  # prints bodies, Secrets among them, at debug
    "urllib3": logging.WARNING,  # prints URLs with their queries
    "asyncio": logging.WARNING,
    "watchfiles": logging.WARNING,
}


def configure(
    *,
    level: str = "info",
    form: str = "json",
    colour: bool = False,
    stream: TextIO | None = None,
) -> None:
    """Set up logging once for the process. `form` is `json`, `console` or `plain`, `level` a standard level name.

    `plain` is for commands at a terminal: `wasmc: warning: what happened: why`. Only `console` has colours.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    output = stream or sys.stderr
    renderers: list[Processor]
    if form == "json":
        transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        renderers = [
            structlog.processors.ExceptionRenderer(transformer),
            structlog.processors.JSONRenderer(),
        ]
    elif form == "plain":
        renderers = [_plain]
    else:
        renderers = [
            structlog.dev.ConsoleRenderer(
                colors=colour, exception_formatter=structlog.dev.plain_traceback
            )
        ]
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    # Fields that no log line contains need not be collected for each record (logging cookbook, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    if sys.version_info >= (3, 12):
        logging.logAsyncioTasks = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, floor in _PINNED.items():
        logging.getLogger(name).setLevel(max(floor, root.level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _plain(_logger: object, _method: str, event: EventDict) -> str:
    """One line: the event, and the fields with its reason."""
    reasons = [str(event[key]) for key in ("error", "reason") if event.get(key)]
    where = [str(event[key]) for key in ("source",) if event.get(key)]
    sentence = ": ".join([*where, str(event.get("event", "")), *reasons[:1]])
    return f"wasmc: {event.get('level', 'warning')}: {' '.join(sentence.split())}"
