"""Two people in two browsers at once, on a server that is killed in the middle and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict

import pytest
import requests

from clsgen_dist.review.import_rows import is_read_twice
from clsgen_dist.review.overview import Status, all_rows
from clsgen_dist.review.store import Store
from tests.review.live_review import ReviewPage
from tests.review.review_rows import plain_rows, written

pytestmark = pytest.mark.browser
ROWS, TWICE, KILLED_AFTER = 14, 0.3, 5


class Server:
    """`clsgen data review` as a process."""

    def __init__(self, folder, port):
        self.folder, self.port, self.url = folder, port, f"http://127.0.0.1:{port}"
        self.start()

    def start(self):
        words = ["data", "review", "rows.jsonl", "--port", self.port, "--second_reading", str(TWICE)]
        words += ["--labels", "[benign, malignant, unclear]"]
        command = [sys.executable, "-m", "clsgen_dist", *words]
        self.process = subprocess.Popen(command, cwd=self.folder, env={**os.environ, "CLSGEN_TOKENS": ""})
        for _ in range(600):
            try:
                if requests.get(f"{self.url}/health", timeout=1).ok:
                    return
            except requests.RequestException:
                time.sleep(0.05)
        raise AssertionError("not ready after 30 s")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Person(threading.Thread):
    """Somebody who decides on rows until none is left, whatever happens to the server, and remembers what was saved."""

    def __init__(self, browser, url, name, keys):
        super().__init__(daemon=True)
        self.page, self.name_given, self.keys = ReviewPage(browser, url), name, keys
        self.confirmed, self.cut_off, self.fault = [], 0, None

    def run(self):
        from selenium.webdriver.support.ui import WebDriverWait

        try:
            self.page.open()
            self.page.element("new-name").send_keys(f"{self.name_given}\n")
            self.page.wait(lambda: self.page.name() == self.name_given)
            WebDriverWait(None, 180, poll_frequency=0.02).until(lambda _: self.step())
        except BaseException as error:
            self.fault = error

    def step(self):
        """Decide on the row that is shown; whether none is left."""
        from selenium.common.exceptions import TimeoutException, WebDriverException

        try:
            if not self.page.is_ready() or not self.page.name():  # the browser's own page: the server did not answer
                self.cut_off += 1
                time.sleep(0.2)
                self.page.open()
                return False
            was_refused = "nothing was saved" in self.page.text("problem")
            if was_refused:
                self.cut_off += 1
                time.sleep(0.2)
            if self.page.text("done-title"):
                return True
            row = self.page.text("row-id")
            if row:
                # What was typed is still there: it is sent again, not typed again.
                self.page.press(*(self.keys[row][-1:] if was_refused else self.keys[row]))
                self.page.wait(lambda: self.is_answered(row))
        except TimeoutException:  # no answer to any key: the server died before it had sent the page's script
            with contextlib.suppress(WebDriverException):
                self.page.open()
        except WebDriverException:  # a page that was replaced, or is not there
            time.sleep(0.05)
        return False

    def is_answered(self, row):
        if not self.page.is_ready():
            return False
        if self.page.text("last").startswith(f"Saved: {row} ") and self.page.text("row-id") != row:
            self.confirmed.append((self.name_given, row))
            return True
        return bool(self.page.text("problem")) or not self.page.name()


def test_two_people_at_once_lose_nothing_when_the_server_is_killed(browser, new_browser, tmp_path, free_port):
    rows = plain_rows(ROWS)
    written(tmp_path / "rows.jsonl", rows)
    server, second = Server(tmp_path, free_port()), new_browser()
    # Ada mends or rejects, Bea relabels: what they decide differs, and shows who did.
    ada = {row["id"]: ["r"] if n % 3 == 0 else ["e", " Ada.", "\ue00c", "a"] for n, row in enumerate(rows)}
    bea = {row["id"]: ["3", "a"] for row in rows}
    people = [Person(browser, server.url, "ada", ada), Person(second, server.url, "bea", bea)]
    try:
        for person in people:
            person.start()
        while sum(len(person.confirmed) for person in people) < KILLED_AFTER:
            assert all(person.is_alive() for person in people), [person.fault for person in people]
            time.sleep(0.02)
        before = [confirmed for person in people for confirmed in person.confirmed]
        server.kill()
        kept = {(entry["reviewer"], f"r{entry['row']}") for entry in Store(tmp_path / "review.sqlite").log()}
        assert set(before) <= kept, "what the page had confirmed is on disk"
        while not all(person.cut_off for person in people):
            assert all(person.is_alive() for person in people), [person.fault for person in people]
            time.sleep(0.02)
        server.start()
        for person in people:
            person.join(180)
    finally:
        server.kill()
        second.quit()
        browser.delete_all_cookies()
        browser.get("about:blank")
    assert [person.fault for person in people] == [None, None]

    store, readers = Store(tmp_path / "review.sqlite"), defaultdict(list)
    for entry in store.log():
        readers[f"r{entry['row']}"].append(entry["reviewer"])
    twice = {row["id"] for row in rows if is_read_twice(row["id"], TWICE)}
    assert 3 <= len(twice) <= 8
    assert {row: len(names) for row, names in readers.items()} == {
        row["id"]: 2 if row["id"] in twice else 1 for row in rows
    }
    assert all(sorted(readers[row]) == ["ada", "bea"] for row in twice)
    decided = Counter((name, row) for row, names in readers.items() for name in names)
    assert set(decided.values()) == {1}
    confirmed = [one for person in people for one in person.confirmed]
    assert set(confirmed) <= set(decided) and len(decided) - len(set(confirmed)) <= 2
    for read in all_rows(store):
        assert read.status == (Status.DISPUTED if read.row.id in twice else Status.DECIDED)
        for made in read.decisions:
            expected = "relabel" if made.reviewer == "bea" else "reject" if ada[read.row.id] == ["r"] else "mend"
            assert made.verdict == expected, (read.row.id, made)
            if expected == "mend":
                assert made.explanations == (f"Margins {read.row.number} are irregular. Ada.",)
