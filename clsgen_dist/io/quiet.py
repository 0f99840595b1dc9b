"""What libraries print that users can do nothing about, silenced on every rank; errors and other warnings come through.

Called before DeepSpeed and transformers are imported, which print as they load. ``CLSGEN_VERBOSE=1`` leaves all of it.
"""

from __future__ import annotations

import logging
import os
import warnings


def quieten() -> None:
    """Silence known chatter: each pattern is one message, so that what is new is seen."""
    if os.environ.get("CLSGEN_VERBOSE") == "1":
        return
    warnings.filterwarnings("ignore", message=".*torch.utils._pytree.*|.*pkg_resources.*")
    warnings.filterwarnings("ignore", message=".*torch.distributed.*is deprecated", category=FutureWarning)
    logging.getLogger("DeepSpeed").addFilter(_wanted)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Read when huggingface_hub is imported; transformers' "Loading weights" follows it.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _wanted(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING and "Setting accelerator to CPU" not in record.getMessage()
