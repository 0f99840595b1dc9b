"""Node health checks: real ranks, chip errors as nvidia-smi and the kernel report them, and the verdict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest
import torch

from clsgen_dist.preflight import links as links_module
from clsgen_dist.preflight.links import Link, pairings
from clsgen_dist.preflight.node import Report, check_chips, disk_fault
from clsgen_dist.preflight.verdict import judge_links, judge_reports

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("nodes", [2, 3, 4, 7, 8, 33])
def test_pairings_never_repeat_and_leave_out_at_most_one(nodes):
    rounds = pairings(nodes, rounds=nodes)
    met = [pair for pairs in rounds for pair in pairs]
    assert sorted(met) == sorted(combinations(range(nodes), 2))
    assert all(len({node for pair in pairs for node in pair}) == nodes - nodes % 2 for pairs in rounds)


def _reports(times, devices=None):
    return [Report(r, f"n{r // 2}", (devices or ["H100"] * len(times))[r], ms) for r, ms in enumerate(times)]


def test_a_slow_or_different_gpu_is_named():
    nodes = ["n0", "n1"]
    assert judge_reports(_reports([1.0, 1.1, 1.2, 1.0]), nodes) == {}
    (reason,) = judge_reports(_reports([1.0, 1.1, 1.6, 1.0]), nodes)["n1"]
    assert reason == "rank 2: a matrix product takes 1.60 ms, the median is 1.05"
    (reason,) = judge_reports(_reports([1.0, 1.1, 1.0, 30.0], ["H100"] * 3 + ["cpu"]), nodes)["n1"]
    assert reason == "rank 3 has cpu, the others H100"
    assert judge_reports([*_reports([1.0, 1.0, 1.0]), None], nodes) == {"n1": ["rank 3 timed out"]}


def test_only_the_node_with_slow_links_is_bad_not_its_peers():
    names = ["n0", "n1", "n2", "n3"]
    links = [Link(a, b, 4.0 if "n2" in (a, b) else 40.0) for a in names for b in names if a != b]
    bad = judge_links(links, "H100")
    assert list(bad) == ["n2"] and "reaches 4 GB/s, the median is 40" in bad["n2"][0]
    dead = [Link(a, b, None if "n2" in (a, b) else 40.0) for a in names for b in names if a != b]
    assert judge_links(dead, "H100") == {"n2": ["an all-reduce to other nodes fails"]}
    inside = [Link(name, name, 10.0 if name == "n3" else 300.0) for name in names]
    assert list(judge_links([*inside, *(Link(a, b, 40.0) for a, b in combinations(names, 2))], "H100")) == ["n3"]
    assert set(judge_links([Link("n0", "n1", None), Link("n1", "n0", None)], "H100")) == {"n0", "n1"}


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """``tools(gpus, remapped, kernel_log)``: fake nvidia-smi and dmesg with this output."""

    def make(gpus: str, remapped: str = "", kernel_log: str = "") -> None:
        (tmp_path / "nvidia-smi").write_text(
            f"#!/bin/sh\ncase $1 in --query-gpu*) printf '{gpus}';; *) printf '{remapped}';; esac\n"
        )
        (tmp_path / "dmesg").write_text(f"#!/bin/sh\nprintf '{kernel_log}'\n")
        for name in ("nvidia-smi", "dmesg"):
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return make


def test_errors_from_nvidia_smi_and_the_kernel_log_become_faults(tools):
    good = r"0, 0, [N/A]\n1, 0, [N/A]\n"
    tools(good, r"00000000:01:00.0, No, No\n", r"[1.0] NVRM: Xid (PCI:0000:01:00): 31, pid=7, MMU Fault\n")
    report = Report(0, "n0")
    check_chips(report, 2)
    assert report.faults == []  # Xid 31 is a program's fault
    check_chips(report, 8)
    assert report.faults == ["2 GPUs found, 8 needed"]
    tools(
        r"0, 3, [N/A]\n1, 0, Yes\n",
        r"00000000:01:00.0, Yes, No\n",
        r"[1.0] NVRM: Xid (PCI:0000:01:00): 79, pid=7, GPU has fallen off the bus.\n",
    )
    report = Report(0, "n0")
    check_chips(report, 2)
    assert report.faults == [
        "GPU 0 has 3 uncorrected ECC errors",
        "GPU 1 has memory pages pending retirement: reset it",
        "GPU 00000000:01:00.0 has memory rows pending remapping: reset it",
        "Xid 79 on 0000:01:00 within the last hour",
    ]


def test_a_disk_that_cannot_be_written_is_a_fault(tmp_path):
    assert disk_fault(tmp_path / "new", room=True) is None
    (tmp_path / "file").write_text("")
    assert disk_fault(tmp_path / "file", room=True) == f"{tmp_path}/file cannot be written: File exists"
    # A node without the shared file system must not make a folder of its own.
    assert disk_fault(tmp_path / "none") == f"{tmp_path}/none cannot be written: No such file or directory"


def _ranks(tmp_path, which, free_port, *arguments, start=("-m", "clsgen_dist"), own_disk=None):
    started = []
    for rank in which:
        env = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank % 2), "WORLD_SIZE": "4", "LOCAL_SIZE": "2",
            "SLURMD_NODENAME": f"n{rank // 2}", "CLSGEN_NODES": "n0\nn1", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": f"{ROOT}:{ROOT}/kernels",
        }  # fmt: skip
        words = [sys.executable, *start, "preflight", "--output_dir", *arguments]
        folder = own_disk if own_disk and rank // 2 == 1 else tmp_path / "run"
        words.insert(words.index("--output_dir") + 1, str(folder))
        started.append(subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    return [(process.communicate(timeout=100)[0], process.returncode) for process in started]


def test_a_dead_link_is_an_answer_and_does_not_end_the_rank(monkeypatch):
    """NCCL raises after its timeout only if it waits blocking; else its watchdog ends the process."""
    monkeypatch.delenv("TORCH_NCCL_BLOCKING_WAIT", raising=False)
    waits = []

    def fails(*_, **__):
        waits.append(os.environ["TORCH_NCCL_BLOCKING_WAIT"])
        raise RuntimeError("timed out")

    monkeypatch.setattr(links_module.torch_dist, "init_process_group", fails)
    found = list(links_module.measure(torch.distributed.HashStore(), ["n0"], 0, 0, 2, torch.device("cpu"), 1.0))
    assert (found, waits) == ([Link("n0", "n0", None)], ["1"])


def test_four_ranks_measure_their_links_and_a_missing_rank_is_named(tmp_path, free_port):
    ends = _ranks(tmp_path, range(4), free_port())
    assert [status for _, status in ends] == [0] * 4, ends
    lines = [json.loads(line) for line in (tmp_path / "run/preflight.jsonl").read_text().splitlines()]
    assert [line["node"] for line in lines] == ["n0", "n1"]
    for line in lines:
        assert len(line["matmul_ms"]) == 2 and min(line["matmul_ms"]) > 0 and line["faults"] == []
        assert set(line["gb_per_s"]) == {"n0", "n1"} and min(line["gb_per_s"].values()) > 0
    assert not (tmp_path / "run/bad_nodes").exists()

    ends = _ranks(tmp_path, (0, 1, 2), free_port(), "--timeout_s", "8")
    assert [status for _, status in ends] == [1, 0, 0], ends
    assert "error: n1: rank 3 timed out" in ends[0][0]
    (bad,) = (tmp_path / "run/bad_nodes").read_text().splitlines()
    assert bad.startswith("n1 ") and bad.endswith(" rank 3 timed out")


DIES = """
import os, sys
from clsgen_dist import cli
from clsgen_dist.preflight import links
all_reduce = links._all_reduce
links._all_reduce = lambda store, rank, size, *rest: (
    os.kill(os.getpid(), 9) if os.environ["RANK"] == "3" and len(done) else done.append(size)
) or all_reduce(store, rank, size, *rest)
done = []
cli.main(sys.argv[1:])
"""


@pytest.mark.long
def test_a_rank_that_dies_while_links_are_measured_is_named_and_its_peers_are_not(tmp_path, free_port):
    start = time.monotonic()
    ends = _ranks(tmp_path, range(4), free_port(), "--timeout_s", "24", start=("-c", DIES))
    assert [status for _, status in ends] == [1, 0, 0, -9], ends
    assert "error: n1: rank 3 ended while links were measured\n" in ends[0][0]
    (bad,) = (tmp_path / "run/bad_nodes").read_text().splitlines()
    assert bad.startswith("n1 ") and time.monotonic() - start < 60


def test_a_full_shared_disk_marks_no_node_as_bad(tmp_path, free_port, small_disk):
    ((text, status),) = _ranks(small_disk, [0], free_port())
    assert status == 2 and f"error: {small_disk}/run has 0.00 GB free, less than 1; make room" in text, text
    assert not (small_disk / "run/bad_nodes").exists()


def test_a_folder_that_is_not_shared_marks_no_node_as_bad(tmp_path, free_port):
    ends = _ranks(tmp_path, range(4), free_port(), "--timeout_s", "12", own_disk=tmp_path / "none")
    assert [status for _, status in ends] == [2, 0, 0, 0], ends
    assert f"error: {tmp_path}/run on n1 is not the folder of n0: set OUTPUT" in ends[0][0]
    assert not (tmp_path / "run/bad_nodes").exists()


def test_the_only_node_that_does_not_see_the_folder_is_bad():
    reports = [Report(rank, f"n{rank}", "H100", 1.0, sees_run_dir=rank != 2) for rank in range(4)]
    assert judge_reports(reports, ["n0", "n1", "n2", "n3"]) == {"n2": ["the run's folder is not shared with rank 0"]}
