"""Training: rows in, two losses down, checkpoints out.

:func:`train` prepares a run: folder and lock, prompt, rows, sampling plan, engine, and a self-test of what was loaded.
:class:`Trainer` runs it: take the step's micro-batches from the stream, agree with all ranks on what they hold and
whether to stop, take the step, skip it where losses or gradients forbid it, evaluate and save where that is due.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clsgen_dist import checkpoint
from clsgen_dist.checkpoint.canary import score_canary
from clsgen_dist.checkpoint.saver import Saver
from clsgen_dist.checkpoint.state import TrainState
from clsgen_dist.config import Settings, to_yaml
from clsgen_dist.data.loader import Step, prefetch
from clsgen_dist.data.tables.dataset import RowDataset
from clsgen_dist.engine.world import World, process_group, set_launch_variables
from clsgen_dist.errors import NonFiniteLossError, Preempted
from clsgen_dist.io.files import disk_full_as_user_error
from clsgen_dist.io.log import log_to_folder
from clsgen_dist.objectives.normalization import StepCounts
from clsgen_dist.resilience import spikes
from clsgen_dist.resilience.preemption import PreemptionHandler
from clsgen_dist.resilience.restarts import StartLog
from clsgen_dist.resilience.run_dir import prepare_run_dir, step_to_resume
from clsgen_dist.resilience.run_lock import RunLock
from clsgen_dist.resilience.stragglers import StragglerDetector
from clsgen_dist.resilience.watchdog import Watchdog
from clsgen_dist.track.progress import Progress
from clsgen_dist.track.sample_log import SampleLog, drop_steps_from
from clsgen_dist.track.tensorboard import TensorBoardLog
from clsgen_dist.track.throughput import Throughput, peak_memory_gib
from clsgen_dist.training.build_engine import zero_config
from clsgen_dist.training.dev_evaluation import dev_metrics, evaluate, is_better, metric_name, perplexity, reliability
from clsgen_dist.training.interference import INTERFERENCE_FILE, write_angles
from clsgen_dist.training.prepare import PreparedRun, prepare, run_identity
from clsgen_dist.training.sampling_plan import end_of_stage, total_steps
from clsgen_dist.training.setting_changes import changed_settings
from clsgen_dist.training.step import StepResult, TrainStep

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    state: TrainState
    checkpoint: Path
    """The best checkpoint by the dev metric, or the last without dev rows."""


def train(settings: Settings) -> TrainResult:
    """Run a training from settings to its last checkpoint.

    Collective: call it in every rank that the launcher has started; without a launcher, this process is the only rank.
    It sets the launch variables that are missing in the environment (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR,
    MASTER_PORT), catches SIGUSR2 and SIGTERM meanwhile, and leaves the process group at its end.

    Args:
        settings: of the run; the same on every rank.

    Returns:
        The final training state, and the best checkpoint.

    Raises:
        SettingsError, DataError, CheckpointError, NoProgressError, FileNotFoundError: what the user can fix; before
            training.
        RunLockError: another run writes to the folder; before training, or at a save.
        DiskFullError: a file other than the checkpoints could not be written.
        RendezvousError: the ranks did not find each other.
        NonFiniteLossError: the run diverged; the checkpoints before it are complete.
        Preempted: SIGUSR2 or SIGTERM was received; the last checkpoint is of the step after which it stopped.
    """
    output = Path(settings.output_dir)
    launched = set_launch_variables()
    zero = zero_config(settings, launched.size)
    is_main = launched.rank == 0
    with (
        PreemptionHandler() as preemption,
        disk_full_as_user_error(output),
        RunLock(output, is_main=is_main) as run_lock,
        StartLog(
            output,
            is_main=is_main,
            step=step_to_resume(output, settings.resume),
            ranks=launched.size,
            limit=settings.faults.max_stuck_starts if settings.resume == "auto" else None,
            forget=settings.resume == "never" and settings.overwrite,
        ) as start_log,
        process_group(settings.train.collective_timeout_s, settings.faults.rendezvous_timeout_s) as world,
    ):
        run_lock.require_seen(world)
        with log_to_folder(output / "logs", world.rank):
            resume_from = prepare_run_dir(
                output, world, resume=settings.resume, overwrite=settings.overwrite, settings_yaml=to_yaml(settings)
            )
            if resume_from is not None and (changed := changed_settings(settings, resume_from)):
                logger.info("settings changed since %s was written: %s", resume_from.name, "; ".join(changed))
            run = prepare(settings, zero, resume_from, world)
            trainer = Trainer(settings, world, run, preemption, run_lock, start_log)
            result = trainer.run(resume_from)
            run.close(deletes=is_main and (result.state.step == trainer.total_steps or trainer.gave_up()))
            return result


class Trainer:
    """The loop and what it carries from step to step.

    Args:
        settings: of the run.
        world: this rank among the others.
        run: what :func:`clsgen_dist.training.prepare.prepare` returned.
        preemption: entered; says whether a signal was received.
        run_lock: entered; required before each save.
        start_log: entered; is told the steps done.
    """

    def __init__(
        self,
        settings: Settings,
        world: World,
        run: PreparedRun,
        preemption: PreemptionHandler,
        run_lock: RunLock,
        start_log: StartLog,
    ) -> None:
        self.settings, self.world, self.preemption, self.start_log = settings, world, preemption, start_log
        self.engine, self.stream = run.engine, run.stream
        self.dev, self.labels, self.canary, self.general = run.dev, run.labels, run.canary, run.general
        self.output, self.checkpoints = run.output, run.output / "checkpoints"
        self.total_steps = total_steps(run.stream, settings)
        self.last_step = min(self.total_steps, end_of_stage(run.stream, settings.train.stop_at_stage))
        self.best_by = checkpoint.best_by(settings.train.best_metric, run.dev.fingerprint) if run.dev else None
        self.state = TrainState(step=0, best_by=self.best_by)
        self.train_step = TrainStep(
            run.engine,
            world,
            objectives=settings.objectives,
            optim=settings.optim,
            total_steps=self.total_steps,
            seed=settings.seed,
            interference_every=settings.train.interference_every,
        )
        self.throughput = Throughput()
        self.settings_yaml = to_yaml(settings)
        self.saver = Saver(
            run.engine,
            world,
            self.checkpoints,
            keep_last=settings.checkpoint.keep_last,
            asynchronous=settings.checkpoint.asynchronous,
            prompt=run.prompt.to_json(),
            require_lock=run_lock.require,
        )
        self.identity = functools.partial(run_identity, settings, run, checkpoint.frozen_sums(run.engine.module, world))
        # They write nothing until the run knows at which step it begins.
        self.log = TensorBoardLog(None, settings_text=self.settings_yaml)
        self.progress = Progress(self.total_steps, enabled=False)
        self.sample_log = SampleLog(None, first_step=1)
        self.watchdog = Watchdog(self.output / f"stacks/rank-{world.rank}.txt", settings.faults.hang_timeout_s)

    def run(self, resume_from: Path | None) -> TrainResult:
        """Resume if asked, then step until the stream ends, the dev metric stops improving, or a signal arrives.

        Args:
            resume_from: a committed checkpoint; None starts at step 0.

        Returns:
            The final training state, and the best checkpoint.

        Raises: as :func:`train`.
        """
        if resume_from is not None:
            self._resume(resume_from)
        if self.world.is_main:
            ours = resume_from is None or resume_from.parent == self.checkpoints
            checkpoint.clear_after(self.checkpoints, self.state.step if ours else -1)
            for file in (spikes.SKIPPED_FILE, INTERFERENCE_FILE):
                drop_steps_from(self.output / file, self.state.step + 1)
        self.world.barrier()
        self.saver.require_disk_space(
            self.last_step - self.state.step,
            every=self.settings.checkpoint.every,
            eval_every=self.settings.train.eval_every if self.dev else None,
        )
        main, step = self.world.is_main, self.state.step
        self.log = TensorBoardLog(
            self.output / "tensorboard" if main else None,
            settings_text=self.settings_yaml,
            first_step=step + 1 if step else 0,
        )
        self.progress = Progress(self.total_steps, start=step, enabled=main)
        rows_file = self.output / "rows.jsonl" if main and self.settings.train.log_rows else None
        self.sample_log = SampleLog(rows_file, first_step=step + 1)
        with self.log, self.progress, self.sample_log, self.watchdog:
            self.preemption.begin_steps()
            self._steps()
            if not self.state.updates:
                raise NonFiniteLossError(
                    f"all {self.state.step} updates were skipped; see their rows in "
                    f"{self.output / spikes.SKIPPED_FILE}, or lower optim.lr"
                )
        best = self.state.best_step if self.state.best_step is not None else self.state.step
        result = TrainResult(self.state, self.checkpoints / checkpoint.folder_name(best))
        logger.info("%s checkpoint: %s", "last" if self.state.best_step is None else "best", result.checkpoint)
        return result

    def _resume(self, folder: Path) -> None:
        self.state = checkpoint.load(self.engine, self.world, folder, self.identity)
        scored = score_canary(self.engine, self.canary, self.world)
        tolerance = 1e-4 if scored["dtype"] == "float32" else 2e-2
        then, now = checkpoint.require_same_canary(folder, self.world.gather(scored), tolerance)
        if folder.parent == self.checkpoints:
            self.saver.last_step = self.state.step
        if self.state.best_by != self.best_by:
            logger.info(
                "the best checkpoint was by %s and is now by %s: best-so-far reset", self.state.best_by, self.best_by
            )
            self._update(best_by=self.best_by, best_step=None, best_value=None, evaluations_without_gain=0)
        message = "resumed from %s at step %d of %d; loss of a fixed text: %.6f when saved, %.6f now"
        logger.info(message, folder, self.state.step, self.total_steps, then, now)

    def _update(self, **changes: Any) -> None:
        self.state = dataclasses.replace(self.state, **changes)
        self.start_log.reached = self.state.step

    def _steps(self) -> None:
        """Every step that is left."""
        stragglers = StragglerDetector(self.world, self.output / "stragglers.jsonl")
        staged = bool(self.settings.curriculum.stages)
        if self.state.step == 0:
            self._log_perplexity()
        for share, waited in prefetch(self.stream.step, self.state.step, self.last_step):
            step = self.state.step
            if self.gave_up():
                count, metric = self.state.evaluations_without_gain, self.settings.train.best_metric
                message = "step %d: stopped early: %d evaluations in a row without a better %s than %s"
                logger.info(message, step, count, metric, self.state.best_value)
                break
            stop = self.preemption.received is not None
            agreed = self.train_step.agree(share, written=self.saver.written, stop=stop)
            if agreed.written:
                self._commit()
            if agreed.stop:
                self._stop()
            for straggler in stragglers.step(step):
                logger.info("step %d straggler: %s", step, straggler.words)
            if staged and share.stage.first_step == step:
                logger.info("step %d stage: %s", step, share.stage.stage.name)
            limits = self.state.spikes.limits(self.settings.faults.spike_factor, agreed.counts.terms)
            carried = (limits, self.state.balance, self.state.reference_point)
            result = self.train_step(step, share, agreed.counts, *carried, known=agreed.known)
            if result.angles and self.world.is_main:
                write_angles(self.output / INTERFERENCE_FILE, step + 1, result.angles)
            self._update(balance=result.balance, reference_point=result.reference_point)
            self._count(share, agreed.counts, result, limits)
            self.throughput.add(int(agreed.counts.tokens), int(agreed.counts.terms["generation"]))
            scalars = {
                **result.scalars(),
                **share.scalars(staged=staged),
                "optim/skipped_steps": float(self.state.spikes.skipped),
                "memory/peak_gib": peak_memory_gib(),
                **self.throughput.rates(),
                "data/wait_seconds": waited,
            }
            self._update(step=step + 1)
            self.log.step(self.state.step, scalars)
            self.sample_log.step(self.state.step, share.stage.stage.name, share.ids)
            self.progress.update(1, **result.losses)
            self.watchdog.beat()
            self._evaluate_and_save()
        self._commit()

    def _stop(self) -> None:
        """Save, and end with Preempted."""
        if self.saver.last_step != self.state.step:
            self._save()
        self._commit()
        received = self.preemption.received
        signal = f"received {received}" if received else "another rank received a signal"
        if not self.state.updates:
            raise Preempted(f"{signal} before the first update: nothing to save. Start again")
        raise Preempted(f"{signal}: checkpoint of step {self.state.step} saved. Resume with --resume auto")

    def _count(self, share: Step, counts: StepCounts, result: StepResult, limits: dict[str, float]) -> None:
        """Count a skipped step, and roll back to the last good checkpoint when there are too many in a row."""
        faults, step = self.settings.faults, self.state.step + 1
        self._update(spikes=self.state.spikes.after(result.losses, updated=result.updated))
        if result.updated:
            return
        skipped_file = self.output / spikes.SKIPPED_FILE
        cause = spikes.skip_cause(result.losses, limits, counts.terms)
        logger.info("step %d skipped: %s; its rows are in %s", step, cause.words, skipped_file)
        if self.world.is_main:
            spikes.write_skipped(skipped_file, step, cause, share.ids)
        if self.state.spikes.in_a_row < faults.max_skipped:
            return
        self._commit()
        back = checkpoint.newest_valid(self.checkpoints, self.world, good=True)
        if back is None or self.state.spikes.rollbacks >= faults.max_rollbacks:
            rolled = f"after {self.state.spikes.rollbacks} rollbacks to a checkpoint"
            why = f"{cause.words}, {'and there is no checkpoint to roll back to' if back is None else rolled}"
            raise NonFiniteLossError(
                f"{self.state.spikes.in_a_row} updates in a row up to step {step} were skipped, the last because "
                f"{why}. Look at their rows in {skipped_file}, or lower optim.lr, and resume with --resume auto"
            )
        checkpoint.restore_weights(self.engine, self.world, back)
        self._update(spikes=self.state.spikes.rolled_back())
        logger.info("step %d: weights and optimizer rolled back to %s; the data continues", step, back.name)

    def _evaluate_and_save(self) -> None:
        """Whatever is due after this step: evaluation, the best checkpoint, the periodic one, the last one."""
        train, step = self.settings.train, self.state.step
        last = step == self.total_steps
        best = False
        due = last or bool(train.eval_every and step % train.eval_every == 0)
        if self.dev and due:
            best = self._evaluate(self.dev)
            last = last or self.gave_up()
        elif due:
            self._log_perplexity()
        # No checkpoint of a skipped step: it might be the one to roll back to.
        every = self.settings.checkpoint.every if not self.state.spikes.in_a_row else None
        if best or last or step == self.last_step or (every and step % every == 0):
            self._save()

    def _save(self) -> None:
        """Begin a checkpoint of this step; none before the first update: other ranks could not resume from it."""
        if not self.state.updates:
            return
        start = time.perf_counter()
        with self.throughput.pause():
            self.log.flush()  # the curves of a resumed run must not lack the steps of its checkpoint
            self.saver.begin(
                state=self.state,
                identity=self.identity(self.state.step),
                canary=score_canary(self.engine, self.canary, self.world),
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
        """Evaluate, log, and remember whether this is the best so far."""
        train = self.settings.train
        # Not the weights of the step: a joint loss whose weights move could not be compared with an earlier one.
        sections = self.settings.objectives.sections()
        with self.throughput.pause():
            found = evaluate(self.engine, dev, self.world, self.train_step.terms, **self._batches())
            # One rank decides, so that all take the same branch whatever their floating point does.
            weights = {name: sections[name].weight for name in found.losses}
            metrics = self.world.broadcast(dev_metrics(found, self.labels, weights) | self._perplexity())
        if self.world.is_main:
            self.log.evaluation(self.state.step, metrics, reliability(found, self.labels))
        values = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        logger.info("step %d dev: %s", self.state.step, values)
        value = metrics.get(metric_name(train.best_metric), math.nan)
        best = is_better(train.best_metric, value, self.state.best_value)
        if best:
            self._update(best_step=self.state.step, best_value=value, evaluations_without_gain=0)
        else:
            self._update(evaluations_without_gain=self.state.evaluations_without_gain + 1)
        return best

    def _log_perplexity(self) -> None:
        """Of general texts, where nothing else is evaluated: before the first step, and without dev rows."""
        if found := self.world.broadcast(self._perplexity()):
            logger.info("step %d: perplexity of general texts %.3f", self.state.step, *found.values())
            if self.world.is_main:
                self.log.evaluation(self.state.step, found, None)

    def _perplexity(self) -> dict[str, float]:
        """Of general texts, if there are any; collective."""
        texts = self.general
        return {"general/perplexity": perplexity(self.engine, texts, self.world, **self._batches())} if texts else {}

    def _batches(self) -> dict[str, Any]:
        """The batches of an evaluation."""
        budget = self.settings.train.micro_batch_tokens
        return {"budget": budget, "padded": self.stream.padded, "watchdog": self.watchdog}

    def gave_up(self) -> bool:
        """Whether the dev metric has stopped improving."""
        return self.state.evaluations_without_gain >= (self.settings.train.early_stop_patience or math.inf)
