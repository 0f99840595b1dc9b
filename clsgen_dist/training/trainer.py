"""Training: rows in, two losses down, checkpoints out.

One optimizer step: take the step's micro-batches from the stream, agree with all ranks on what they hold and whether
to stop, run forward and backward on each, step unless the losses or gradients forbid it. Two all-reduces of a few
numbers besides ZeRO-3's own traffic.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clsgen_dist.checkpoint import checkpoint
from clsgen_dist.checkpoint.canary import canary_sample, score_canary
from clsgen_dist.checkpoint.checkpoint import RunIdentity, TrainState
from clsgen_dist.checkpoint.saver import Saver, checkpoint_bytes, checkpoints_to_come, require_room
from clsgen_dist.config import Settings, to_yaml
from clsgen_dist.data.encode import Encoder
from clsgen_dist.data.loader import Step, TrainStream, prefetch
from clsgen_dist.data.pack import Sample
from clsgen_dist.data.tables.dataset import RowDataset
from clsgen_dist.data.tables.shards import ShardedRows
from clsgen_dist.engine.build import build_engine, zero_config
from clsgen_dist.engine.optim import lr_factor, set_lr
from clsgen_dist.engine.world import World, launched_ranks, process_group
from clsgen_dist.errors import DiskFullError, NonFiniteLossError, Preempted, SettingsError
from clsgen_dist.model.backbone import backbone_path, load_tokenizer, open_backbone, require_finite
from clsgen_dist.model.context import require_context, require_embedded
from clsgen_dist.model.label_space import LabelSpace
from clsgen_dist.model.self_test import SelfTest, self_test
from clsgen_dist.objectives.normalization import StepCounts, backward_loss, joint_loss, mean
from clsgen_dist.objectives.weights import LossWeights
from clsgen_dist.resilience import spikes
from clsgen_dist.resilience.preemption import PreemptionHandler
from clsgen_dist.resilience.restarts import StartLog
from clsgen_dist.resilience.run_dir import prepare_run_dir
from clsgen_dist.resilience.run_lock import RunLock
from clsgen_dist.resilience.stragglers import StragglerDetector, waiting
from clsgen_dist.resilience.watchdog import Watchdog
from clsgen_dist.track.progress import Progress
from clsgen_dist.track.sample_log import SampleLog, drop_steps_from
from clsgen_dist.track.tensorboard import TensorBoardLog
from clsgen_dist.track.throughput import Throughput, peak_memory_gib
from clsgen_dist.training.datasets import read_rows, require_something_to_learn
from clsgen_dist.training.evaluation import dev_metrics, evaluate, is_better, metric_fault, metric_name
from clsgen_dist.training.prompt import prompt_of_run
from clsgen_dist.training.sampling_plan import plan_stream, weight_schedule
from clsgen_dist.training.setting_changes import changed_settings


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    state: TrainState
    checkpoint: Path
    """The best checkpoint by the dev metric, or the last without dev rows."""


def train(settings: Settings) -> TrainResult:
    """Run a training from settings to its last checkpoint; every rank calls it.

    Raises:
        SettingsError, DataError, CheckpointError, NoProgressError, FileNotFoundError: what the user can fix, said
            before training.
        RunLockError: another run writes to the folder; before training, or at a save.
        DiskFullError: a file besides the checkpoints could not be written.
        RendezvousError: the ranks did not meet.
        NonFiniteLossError: the run diverged; the checkpoints before it are whole.
        Preempted: SIGUSR2 or SIGTERM came; the last checkpoint is of the step after which it stopped.
    """
    output = Path(settings.output_dir)
    ranks = launched_ranks()
    zero = zero_config(settings, ranks)
    is_main = os.environ["RANK"] == "0"
    with (
        PreemptionHandler() as stop,
        _disk_full_as_user_error(output),
        RunLock(output, is_main=is_main) as run_lock,
        StartLog(
            output,
            is_main=is_main,
            step=_newest_step(settings, output),
            ranks=ranks,
            limit=settings.faults.max_stuck_starts if settings.resume == "auto" else None,
            anew=settings.resume == "never" and settings.overwrite,
        ) as start_log,
        process_group(settings.train.collective_timeout_s, settings.faults.rendezvous_timeout_s) as world,
    ):
        run_lock.require_seen(world)
        say = _speaker(world)
        resume_from = prepare_run_dir(settings, world, say)
        if resume_from is not None and (changed := changed_settings(settings, resume_from)):
            say(f"settings changed since {resume_from.name} was written: {'; '.join(changed)}")
        backbone = backbone_path(settings.model.backbone)
        opened = open_backbone(backbone)
        if settings.model.finetune != "head" and opened.weights is not None:
            opened.weights.require_reversible()
        tokenizer = load_tokenizer(backbone)
        prompt = prompt_of_run(settings.prompt, tokenizer, resume_from, world)
        encoder = Encoder(tokenizer, max_prompt_length=settings.data.max_prompt_length, rendered=prompt)
        require_context(opened.config, settings.data.max_prompt_length, settings.data.max_explanation_length)
        require_embedded(tokenizer, encoder, opened.config)
        quarantine = output if world.is_main else None
        rows = read_rows(settings.data, encoder, quarantine, say, settings.seed, run=settings.output_dir)
        for note in rows.notes:
            say(note)
        require_something_to_learn(rows, settings)
        if rows.dev and (fault := metric_fault(rows.dev, settings.train.best_metric)):
            if settings.train.early_stop_patience is not None:
                raise SettingsError(fault)
            say(f"{fault}. Until then the last checkpoint counts as the best")
        stream = plan_stream(settings, rows, rank=world.rank, world_size=world.size, say=say)
        labels = LabelSpace.of(rows.labels, settings.data.positive_label)
        engine = build_engine(settings, zero, opened, encoder, labels)
        probe = canary_sample(encoder)
        require_finite(engine.module, world)
        found = _self_test(engine, probe)
        found.require_trainable(settings.model.backbone)
        engine.module.layout = found.layout
        stream.padded = found.layout == "padded"
        if stream.padded:
            why = found.refusal or f"packed sequences change each other's states by {found.leak:.1e}"
            say(f"rows are padded, not packed: {why}")
        run = _Run(settings, world, engine, stream, rows.dev, labels, probe, output, stop, say)
        run.saver.prompt = prompt.to_json()
        run.saver.require_ours = lambda: run_lock.require(world)
        start_log.reached = lambda: run.state.step
        result = run.go(resume_from)
        if isinstance(rows.train, ShardedRows):
            rows.train.close()
        return result


class _Run:
    """The loop and what it carries from step to step."""

    def __init__(
        self,
        settings: Settings,
        world: World,
        engine: Any,
        stream: TrainStream,
        dev: RowDataset | None,
        labels: LabelSpace,
        probe: Sample,
        output: Path,
        stop: PreemptionHandler,
        say: Callable[[str], None],
    ) -> None:
        self.settings, self.world, self.engine, self.stop = settings, world, engine, stop
        self.stream, self.dev, self.labels, self.probe, self.say = stream, dev, labels, probe, say
        self.output, self.checkpoints = output, output / "checkpoints"
        self.total_steps = min(stream.steps, settings.train.max_steps or stream.steps)
        self.last_step = min(self.total_steps, _end_of_stage(stream, settings.train.stop_at_stage))
        self.best_by = checkpoint.best_by(settings.train.best_metric, dev.fingerprint) if dev else None
        self.state = TrainState(step=0, best_by=self.best_by)
        self.throughput = Throughput()
        self.settings_yaml = to_yaml(settings)
        self.saver = Saver(
            engine,
            world,
            self.checkpoints,
            keep_last=settings.checkpoint.keep_last,
            asynchronous=settings.checkpoint.asynchronous,
        )
        frozen_sum, frozen_square_sum = checkpoint.frozen_sums(engine.module, world)
        self.identity = lambda step: RunIdentity(
            labels=list(labels.names),
            rows=len(stream.rows),
            rows_sha256=stream.rows.fingerprint,
            order=stream.order.visited_before(step),
            seed=settings.seed,
            batch_size=settings.train.batch_size,
            finetune=settings.model.finetune,
            top_layers=settings.model.top_layers,
            lora=(settings.model.lora_rank, settings.model.lora_alpha) if settings.model.finetune == "lora" else None,
            optimizer=settings.optim.name,
            frozen_sum=frozen_sum,
            frozen_square_sum=frozen_square_sum,
        )

    def go(self, resume_from: Path | None) -> TrainResult:
        """Resume if asked, then step until the stream ends, the dev metric stops improving, or a signal comes."""
        if resume_from is not None:
            self._resume(resume_from)
        if self.world.is_main:
            ours = resume_from is None or resume_from.parent == self.checkpoints
            checkpoint.clear_after(self.checkpoints, self.state.step if ours else -1)
            drop_steps_from(self.output / spikes.SKIPPED_FILE, self.state.step + 1)
        self.world.barrier()
        size = checkpoint_bytes(self.engine, self.world)
        train, kept = self.settings.train, self.settings.checkpoint
        to_come = checkpoints_to_come(
            self.last_step - self.state.step,
            kept.every,
            train.eval_every if self.dev else None,
            keep_last=kept.keep_last,
            there=len(checkpoint.committed(self.checkpoints)),
        )
        require_room(self.checkpoints, self.world, size, to_come)
        main = self.world.is_main
        with (
            TensorBoardLog(
                self.output / "tensorboard" if main else None,
                settings_text=self.settings_yaml,
                first_step=self.state.step + 1 if self.state.step else 0,
            ) as self.log,
            Progress(self.total_steps, start=self.state.step, enabled=main) as self.progress,
            SampleLog(
                self.output / "rows.jsonl" if main and self.settings.train.log_rows else None,
                first_step=self.state.step + 1,
            ) as self.shown,
            Watchdog(
                self.output / f"stacks/rank-{self.world.rank}.txt", self.settings.faults.hang_timeout_s
            ) as self.watchdog,
        ):
            self.stop.begin_steps()
            self._walk()
            if not self.state.updates:
                raise NonFiniteLossError(
                    f"all {self.state.step} steps were left out, nothing was learnt; see their rows in "
                    f"{self.output / spikes.SKIPPED_FILE}, or lower optim.lr"
                )
        best = self.state.best_step if self.state.best_step is not None else self.state.step
        result = TrainResult(self.state, self.checkpoints / checkpoint.folder_name(best))
        self.say(f"{'best' if self.state.best_step is not None else 'last'} checkpoint: {result.checkpoint}")
        return result

    def _resume(self, folder: Path) -> None:
        self.state = checkpoint.load(self.engine, self.world, folder, self.identity)
        scored = score_canary(self.engine, self.probe, self.world)
        tolerance = 1e-4 if scored["dtype"] == "float32" else 2e-2
        then, now = checkpoint.require_same_canary(folder, self.world.gather(scored), tolerance)
        if folder.parent == self.checkpoints:
            self.saver.last_step = self.state.step
        if self.state.best_by != self.best_by:
            self.say(f"the best checkpoint was by {self.state.best_by} and is now by {self.best_by}: best-so-far reset")
            self.state = dataclasses.replace(
                self.state, best_by=self.best_by, best_step=None, best_value=None, evaluations_without_gain=0
            )
        self.say(
            f"resumed from {folder} at step {self.state.step} of {self.total_steps}; "
            f"loss of a fixed text: {then:.6f} when saved, {now:.6f} now"
        )

    def _walk(self) -> None:
        """Every step that is left."""
        pace = StragglerDetector(self.world, self.output / "stragglers.jsonl")
        for step, waited in prefetch(self.stream.step, self.state.step, self.last_step):
            if self._gave_up():
                self.progress.note(
                    f"step {self.state.step}: stopped, as {self.state.evaluations_without_gain} evaluations in a row "
                    f"had no better {self.settings.train.best_metric} than {self.state.best_value}"
                )
                break
            counts = self._agree(step)
            for who in pace.step(self.state.step):
                self.progress.note(f"step {self.state.step} straggler: {who}")
            if self.settings.curriculum.stages and step.stage.first_step == self.state.step:
                self.progress.note(f"step {self.state.step} stage: {step.stage.stage.name}")
            scalars = {**self._step(self.state.step, step, counts), "data/wait_seconds": waited}
            self.state = dataclasses.replace(self.state, step=self.state.step + 1)
            self.log.step(self.state.step, scalars)
            self.shown.step(self.state.step, step.stage.stage.name, step.ids)
            self.progress.update(generation=scalars["loss/generation"], classification=scalars["loss/classification"])
            self.watchdog.beat()
            self._evaluate_and_save()
        self._commit()

    def _agree(self, share: Step) -> StepCounts:
        """The one all-reduce that begins a step: what it holds, whether all have saved, whether anyone is to stop."""
        batches = share.batches
        supervised, labelled, tokens, written, stops = self.world.sum(
            sum(b.supervised for b in batches),
            sum(b.labelled for b in batches),
            sum(b.tokens for b in batches if b.supervised or b.labelled),
            self.saver.written,
            self.stop.received is not None,
        )
        if written == self.world.size:
            self._commit()
        if stops:
            if self.saver.last_step != self.state.step:
                self._save()
            self._commit()
            signal = self.stop.received or "a signal to another rank"
            if not self.state.updates:
                raise Preempted(f"{signal} came before anything was learnt: nothing to save. Start again")
            raise Preempted(
                f"{signal} came: the checkpoint of step {self.state.step} is written. Go on with --resume auto"
            )
        return StepCounts(supervised, labelled, tokens)

    def _step(self, step: int, share: Step, counts: StepCounts) -> dict[str, float]:
        """One optimizer step; returns what the log shows of it."""
        batches, optim = share.batches, self.settings.optim
        schedule, progress = weight_schedule(self.settings.loss, share.stage, step, self.total_steps)
        weights = schedule.at(progress)
        factor = share.stage.stage.lr_factor * lr_factor(
            step, self.total_steps, warmup_fraction=optim.warmup_fraction, final_fraction=optim.final_lr_fraction
        )
        rates = set_lr(self.engine.optimizer, factor)
        sums = torch.zeros(3, dtype=torch.float64, device=self.world.device)
        limits = self.state.guard.limits(self.settings.faults.spike_factor)
        for micro_step, batch in enumerate(batches):
            # Dropout is a function of the position too, so that no generator's state needs saving.
            torch.manual_seed(_dropout_seed(self.settings.seed, step, micro_step, self.world.rank))
            last = micro_step == len(batches) - 1
            self.engine.set_gradient_accumulation_boundary(last)
            output = self.engine(**batch.inputs(self.world.device))
            loss = backward_loss(output, counts, weights, self.world.size)
            sums += torch.stack(
                [output.generation_loss.detach().sum(), output.class_loss.detach().sum(), output.token_hit.sum()]
            )
            if last:
                self.world.all_reduce(sums)
                for total, count, limit in zip(sums, (counts.supervised, counts.labelled), limits, strict=False):
                    loss = loss * spikes.nan_above(total / max(count, 1), limit)
            self.engine.backward(loss, scale_wrt_gas=False)
            if not last:
                self.engine.step()
        before = self.engine.skipped_steps
        self.engine.step()
        with waiting():
            generation_sum, classification_sum, hits = sums.tolist()
        losses = mean(generation_sum, counts.supervised), mean(classification_sum, counts.labelled)
        self._guard(share, counts, losses, limits, updated=self.engine.skipped_steps == before)
        self.throughput.add(int(counts.tokens), int(counts.supervised))
        staged = bool(self.settings.curriculum.stages)
        return {
            "loss/generation": losses[0],
            "loss/classification": losses[1],
            "loss/total": float(joint_loss(generation_sum, classification_sum, counts, weights)),
            "accuracy/token": mean(hits, counts.supervised),
            "loss_weight/generation": weights.generation,
            "loss_weight/classification": weights.classification,
            "optim/lr": rates.get("backbone.matrices", rates["head.matrices"]),
            "optim/lr_head": rates["head.matrices"],
            "optim/grad_norm": float(self.engine.get_global_grad_norm() or float("nan")),
            "optim/skipped_steps": float(self.state.guard.skipped),
            "curriculum/stage": float(share.stage.index) if staged else float("nan"),
            "curriculum/difficulty": share.difficulty if staged else float("nan"),
            "packing/efficiency": share.packing.efficiency,
            "packing/rank_imbalance": share.packing.imbalance,
            "packing/micro_steps": float(share.packing.micro_steps),
            "memory/peak_gib": peak_memory_gib(),
            **self.throughput.rates(),
        }

    def _guard(
        self,
        share: Step,
        counts: StepCounts,
        losses: tuple[float, float],
        limits: tuple[float, float],
        *,
        updated: bool,
    ) -> None:
        """Count a step that was left out, and go back to the last checkpoint when there are too many in a row."""
        faults, step = self.settings.faults, self.state.step + 1
        self.state = dataclasses.replace(self.state, guard=self.state.guard.after(*losses, updated=updated))
        if updated:
            return
        why = spikes.reason(losses, limits, counted=(counts.supervised > 0, counts.labelled > 0))
        self.progress.note(f"step {step} left out: {why}; its rows are in {self.output / spikes.SKIPPED_FILE}")
        if self.world.is_main:
            spikes.write_skipped(self.output / spikes.SKIPPED_FILE, step, why, share.ids)
        if self.state.guard.in_a_row < faults.max_skipped:
            return
        self._commit()
        back = checkpoint.newest_valid(self.checkpoints, self.say, self.world, good=True)
        if back is None or self.state.guard.rollbacks >= faults.max_rollbacks:
            raise NonFiniteLossError(
                f"{self.state.guard.in_a_row} steps in a row up to step {step} were left out, the last because {why}, "
                + ("and there is no checkpoint to go back to" if back is None else
                   f"after going back to a checkpoint {self.state.guard.rollbacks} times")
                + f". Look at their rows in {self.output / spikes.SKIPPED_FILE}, or lower optim.lr, and go on with "
                "--resume auto"
            )  # fmt: skip
        checkpoint.restore_weights(self.engine, self.world, back)
        self.state = dataclasses.replace(self.state, guard=self.state.guard.rolled_back())
        self.progress.note(f"step {step}: weights and optimizer are back at {back.name}; the data goes on")

    def _evaluate_and_save(self) -> None:
        """Whatever is due after this step: evaluation, the best checkpoint, the periodic one, the last one."""
        train, step = self.settings.train, self.state.step
        last = step == self.total_steps
        best = False
        if self.dev and (last or (train.eval_every and step % train.eval_every == 0)):
            best = self._evaluate(self.dev)
            last = last or self._gave_up()
        # No checkpoint of a step that was left out: it might be the one to go back to.
        every = self.settings.checkpoint.every if not self.state.guard.in_a_row else None
        if best or last or step == self.last_step or (every and step % every == 0):
            self._save()

    def _save(self) -> None:
        """Begin a checkpoint of this step; none while nothing was learnt: other ranks could not go on from it."""
        if not self.state.updates:
            return
        start = time.perf_counter()
        with self.throughput.pause():
            self.log.flush()  # a checkpoint's own steps must not be missing from the curves of its resumption
            self.saver.begin(
                state=self.state,
                identity=self.identity(self.state.step),
                probe=score_canary(self.engine, self.probe, self.world),
                settings_yaml=self.settings_yaml,
            )
        self.log.step(self.state.step, {"checkpoint/stall_seconds": time.perf_counter() - start})
        self.watchdog.beat()

    def _commit(self) -> None:
        """Commit the checkpoint under way, if there is one."""
        with self.throughput.pause():
            self.saver.finish()
        self.watchdog.beat()

    def _evaluate(self, dev: RowDataset) -> bool:
        """Evaluate, log, and note whether this is the best so far."""
        from clsgen_dist.evaluation.calibration import reliability_bins
        from clsgen_dist.track.reliability import Reliability

        train = self.settings.train
        positive = self.labels.positive_index
        # Not those of the step: a joint loss whose weights move could not be compared with an earlier one.
        full_weights = LossWeights(self.settings.loss.generation_weight, self.settings.loss.classification_weight)
        with self.throughput.pause():
            logits_NC, labels_N, *losses = evaluate(
                self.engine,
                dev,
                self.world,
                budget=train.micro_batch_tokens,
                padded=self.stream.padded,
                beat=self.watchdog.beat,
            )
            # One rank decides, so that all take the same turn whatever their floating point does.
            metrics = self.world.broadcast(
                dev_metrics(logits_NC, labels_N, positive, (losses[0], losses[1]), full_weights)
            )
        if self.world.is_main:
            labelled = labels_N >= 0
            probabilities_NC = torch.softmax(torch.from_numpy(logits_NC[labelled]), dim=1).numpy()
            reliability = (
                Reliability(*reliability_bins(probabilities_NC, labels_N[labelled], positive=positive))
                if labelled.any()
                else None
            )
            self.log.evaluation(self.state.step, metrics, reliability)
        self.progress.note(
            f"step {self.state.step} dev: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        )
        value = metrics.get(metric_name(train.best_metric), float("nan"))
        best = is_better(train.best_metric, value, self.state.best_value)
        if best:
            self.state = dataclasses.replace(
                self.state, best_step=self.state.step, best_value=value, evaluations_without_gain=0
            )
        else:
            self.state = dataclasses.replace(
                self.state, evaluations_without_gain=self.state.evaluations_without_gain + 1
            )
        return best

    def _gave_up(self) -> bool:
        patience = self.settings.train.early_stop_patience
        return patience is not None and self.state.evaluations_without_gain >= patience


@contextlib.contextmanager
def _disk_full_as_user_error(output: Path) -> Iterator[None]:
    """No room or quota, wherever it shows first, is for the user to fix; other errors of a disk are crashes."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"{error.filename or output} cannot be written ({error.strerror}): make room on the disk of {output}, or "
            "ask for more quota, then go on with --resume auto"
        ) from error


def _newest_step(settings: Settings, output: Path) -> int:
    """Step of the checkpoint that a run means to go on from, by its name: nothing is read."""
    folders = checkpoint.committed(output / "checkpoints") if settings.resume == "auto" else [Path(settings.resume)]
    number = folders[-1].name.removeprefix("step-") if folders else ""
    return int(number) if number.isdigit() else 0


def _self_test(engine: Any, sample: Sample) -> SelfTest:
    """What the loaded backbone says of itself; collective."""
    engine.eval()
    with torch.no_grad():
        # DeepSpeed walks what a module returns, and knows dictionaries.
        found = SelfTest(**engine(inside=lambda model: dataclasses.asdict(self_test(model, sample))))
    if found.refusal:  # a pass that was broken off leaves weights gathered
        engine.optimizer.parameter_offload.partition_all_parameters()
    engine.train()
    return found


def _speaker(world: World) -> Callable[[str], None]:
    """Print on rank 0, nothing elsewhere."""
    return (lambda text: print(text, flush=True)) if world.is_main else (lambda text: None)


def _end_of_stage(stream: TrainStream, name: str | None) -> int:
    """The step after which the stage of this name is over; the stream's end without a name."""
    ends = {p.stage.name: p.first_step + p.steps for p in stream.stages}
    return ends.get(name or "", stream.steps)


def _dropout_seed(seed: int, step: int, micro_step: int, rank: int) -> int:
    key = f"{seed}/{step}/{micro_step}/{rank}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
