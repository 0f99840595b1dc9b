"""The log of a run: written whatever the program around it does with logging."""

from __future__ import annotations

import logging

from clsgen_dist.io.log import log_to_folder


def test_the_log_file_gets_info_and_the_level_is_restored(tmp_path, monkeypatch):
    package = logging.getLogger("clsgen_dist")
    for level in (logging.NOTSET, logging.WARNING, logging.DEBUG):
        monkeypatch.setattr(package, "level", logging.NOTSET)
        package.setLevel(level)
        with log_to_folder(tmp_path / str(level), rank=3):
            logging.getLogger("clsgen_dist.training").info("step %d", 7)
        logging.getLogger("clsgen_dist.training").info("after")
        text = (tmp_path / str(level) / "rank-3.log").read_text()
        assert "INFO clsgen_dist.training step 7" in text and "after" not in text
        assert package.level == level
    package.setLevel(logging.NOTSET)
