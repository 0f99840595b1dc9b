"""Training: rows in, two losses down, checkpoints out.

One optimizer step: take the step's micro-batches from the stream, count what they hold over all ranks, run forward and
backward on each, check that the losses are finite, step. Two all-reduces of three numbers besides ZeRO-3's own traffic.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clsgen_dist.config import Settings, to_yaml
from clsgen_dist.data.encode import Encoder
from clsgen_dist.data.loader import Step, TrainStream, ahead
from clsgen_dist.data.pack import Sample
from clsgen_dist.data.row_set import RowSet
from clsgen_dist.data.shards import ShardedRows
from clsgen_dist.engine import checkpoint
from clsgen_dist.engine.build import build_engine, zero_config
from clsgen_dist.engine.checkpoint import RunIdentity, TrainState
from clsgen_dist.engine.dist import World, launched_ranks, process_group
from clsgen_dist.engine.evaluation import dev_metrics, evaluate, is_better
from clsgen_dist.engine.optim import lr_factor, set_lr
from clsgen_dist.engine.probe import probe_sample, score_probe
from clsgen_dist.engine.rows import read_rows
from clsgen_dist.engine.stream import plan_stream, weight_schedule
from clsgen_dist.errors import NonFiniteLossError, SettingsError
from clsgen_dist.loss.dual import StepCounts, backward_loss, mean
from clsgen_dist.loss.weights import LossWeights
from clsgen_dist.model.backbone import backbone_path, load_tokenizer
from clsgen_dist.model.label_space import LabelSpace
from clsgen_dist.track.progress import Progress
from clsgen_dist.track.shown import ShownLog
from clsgen_dist.track.tensorboard import TensorBoardLog
from clsgen_dist.track.throughput import Throughput, peak_memory_gib


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    state: TrainState
    checkpoint: Path
    """The best checkpoint by the dev metric, or the last without dev rows."""


def train(settings: Settings) -> TrainResult:
    """Run a training from settings to its last checkpoint; every rank calls it.

    Raises:
        SettingsError, DataError, CheckpointError, FileNotFoundError: what the user can mend, said before training.
        NonFiniteLossError: a loss diverged; the checkpoints before it are whole.
    """
    output = Path(settings.output_dir)
    zero = zero_config(settings, launched_ranks())
    with process_group(settings.train.collective_timeout_s) as world:
        say = _speaker(world)
        resume_from = _prepare_output(settings, output, world, say)
        backbone = backbone_path(settings.model.backbone)
        tokenizer = load_tokenizer(backbone)
        encoder = Encoder(
            tokenizer,
            system=settings.prompt.system,
            question=settings.prompt.question,
            max_prompt_length=settings.data.max_prompt_length,
        )
        quarantine = output if world.is_main else None
        rows = read_rows(settings.data, encoder, quarantine, say, settings.seed, run=settings.output_dir)
        for note in rows.notes:
            say(note)
        stream = plan_stream(settings, rows, rank=world.rank, world_size=world.size, say=say)
        labels = LabelSpace.of(rows.labels, settings.data.positive_label)
        engine = build_engine(settings, zero, backbone, encoder, labels)
        run = _Run(settings, world, engine, stream, rows.dev, labels, probe_sample(encoder), output, say)
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
        dev: RowSet | None,
        labels: LabelSpace,
        probe: Sample,
        output: Path,
        say: Callable[[str], None],
    ) -> None:
        self.settings, self.world, self.engine = settings, world, engine
        self.stream, self.dev, self.labels, self.probe, self.say = stream, dev, labels, probe, say
        self.checkpoints = output / "checkpoints"
        self.log_dir = output / "tensorboard"
        self.total_steps = min(stream.steps, settings.train.max_steps or stream.steps)
        self.state = TrainState(step=0)
        self.throughput = Throughput()
        frozen_sum, frozen_square_sum = checkpoint.frozen_sums(engine.module, world)
        self.identity = lambda step: RunIdentity(
            labels=list(labels.names),
            rows=len(stream.rows),
            rows_sha256=stream.rows.fingerprint,
            order=stream.order.shown_by(step),
            seed=settings.seed,
            batch_size=settings.train.batch_size,
            finetune=settings.model.finetune,
            top_layers=settings.model.top_layers,
            frozen_sum=frozen_sum,
            frozen_square_sum=frozen_square_sum,
        )

    def go(self, resume_from: Path | None) -> TrainResult:
        """Resume if asked, then step until the stream ends or the dev metric stops improving."""
        if resume_from is not None:
            self.state = checkpoint.load(self.engine, self.world, resume_from, self.identity)
            self.say(f"resumed from {resume_from} at step {self.state.step} of {self.total_steps}")
        settings_yaml = to_yaml(self.settings)
        with (
            TensorBoardLog(
                self.log_dir if self.world.is_main else None,
                settings_text=settings_yaml,
                first_step=self.state.step + 1 if self.state.step else 0,
            ) as self.log,
            Progress(self.total_steps, start=self.state.step, enabled=self.world.is_main) as self.progress,
            ShownLog(
                self.log_dir.parent / "rows.jsonl" if self.world.is_main and self.settings.train.log_rows else None,
                first_step=self.state.step + 1,
            ) as shown,
        ):
            for step, waited in ahead(self.stream.step, self.state.step, self.total_steps):
                if self._gave_up():
                    break
                if self.settings.curriculum.stages and step.stage.first_step == self.state.step:
                    self.progress.note(f"step {self.state.step} stage: {step.stage.stage.name}")
                scalars = {**self._step(self.state.step, step), "data/wait_seconds": waited}
                self.state = dataclasses.replace(self.state, step=self.state.step + 1)
                self.log.step(self.state.step, scalars)
                if self.settings.train.log_rows:
                    shown.step(self.state.step, step.stage.stage.name, step.ids)
                self.progress.update(
                    generation=scalars["loss/generation"], classification=scalars["loss/classification"]
                )
                self._evaluate_and_save(settings_yaml)
        best = self.state.best_step if self.state.best_step is not None else self.state.step
        result = TrainResult(self.state, self.checkpoints / checkpoint.folder_name(best))
        self.say(f"{'best' if self.state.best_step is not None else 'last'} checkpoint: {result.checkpoint}")
        return result

    def _step(self, step: int, share: Step) -> dict[str, float]:
        """One optimizer step; returns what the log shows of it."""
        batches = share.batches
        counts = StepCounts(
            *self.world.sum(
                sum(b.supervised for b in batches),
                sum(b.labelled for b in batches),
                sum(b.tokens for b in batches if b.supervised or b.labelled),
            )
        )
        schedule, progress = weight_schedule(self.settings.loss, share.stage, step, self.total_steps)
        weights = schedule.at(progress)
        optim = self.settings.optim
        factor = share.stage.stage.lr_factor * lr_factor(
            step, self.total_steps, warmup_fraction=optim.warmup_fraction, final_fraction=optim.final_lr_fraction
        )
        rates = set_lr(self.engine.optimizer, factor)
        sums = torch.zeros(3, dtype=torch.float64, device=self.world.device)
        for micro_step, batch in enumerate(batches):
            # Dropout is a function of the position too, so that no generator's state needs saving.
            torch.manual_seed(_dropout_seed(self.settings.seed, step, micro_step, self.world.rank))
            last = micro_step == len(batches) - 1
            self.engine.set_gradient_accumulation_boundary(last)
            output = self.engine(**batch.inputs(self.world.device))
            loss = backward_loss(output, counts, weights, self.world.size)
            self.engine.backward(loss, scale_wrt_gas=False)
            sums += torch.stack(
                [output.generation_loss.detach().sum(), output.class_loss.detach().sum(), output.token_hit.sum()]
            )
            if not last:
                self.engine.step()
        generation_sum, classification_sum, hits = self.world.sum(*sums.tolist())
        generation, classification = (
            mean(generation_sum, counts.supervised),
            mean(classification_sum, counts.labelled),
        )
        self._check_finite(step, share, generation_sum, classification_sum)
        self.engine.step()
        self.throughput.add(int(counts.tokens), int(counts.supervised))
        staged = bool(self.settings.curriculum.stages)
        weighted = weights.generation * (generation if counts.supervised else 0.0) + weights.classification * (
            classification if counts.labelled else 0.0
        )
        return {
            "loss/generation": generation,
            "loss/classification": classification,
            "loss/total": weighted,
            "accuracy/token": mean(hits, counts.supervised),
            "loss_weight/generation": weights.generation,
            "loss_weight/classification": weights.classification,
            "optim/lr": rates.get("backbone.matrices", rates["head.matrices"]),
            "optim/lr_head": rates["head.matrices"],
            "optim/grad_norm": float(self.engine.get_global_grad_norm() or float("nan")),
            "optim/skipped_steps": float(self.engine.skipped_steps),
            "curriculum/stage": float(share.stage.index) if staged else float("nan"),
            "curriculum/difficulty": share.difficulty if staged else float("nan"),
            "packing/efficiency": share.load.efficiency,
            "packing/rank_imbalance": share.load.imbalance,
            "packing/micro_steps": float(share.load.micro_steps),
            "memory/peak_gib": peak_memory_gib(),
            **self.throughput.rates(),
        }

    def _check_finite(self, step: int, share: Step, generation_sum: float, classification_sum: float) -> None:
        if torch.isfinite(torch.tensor([generation_sum, classification_sum])).all():
            return
        raise NonFiniteLossError(
            f"step {step + 1}: generation loss sum {generation_sum}, classification loss sum {classification_sum}, "
            f"expected finite numbers. Rows of the step: {', '.join(share.ids)}. No update was made; lower optim.lr, "
            "or look at these rows, and go on with --resume auto"
        )

    def _evaluate_and_save(self, settings_yaml: str) -> None:
        """Whatever is due after this step: evaluation, the best checkpoint, the periodic one, the last one."""
        train, step = self.settings.train, self.state.step
        last = step == self.total_steps
        best = False
        if self.dev and (last or (train.eval_every and step % train.eval_every == 0)):
            best = self._evaluate(self.dev)
            last = last or self._gave_up()
        every = self.settings.checkpoint.every
        if best or last or (every and step % every == 0):
            with self.throughput.pause():
                self.log.flush()  # a checkpoint's own steps must not be missing from the curves of its resumption
                checkpoint.save(
                    self.engine,
                    self.world,
                    self.checkpoints,
                    state=self.state,
                    identity=self.identity(self.state.step),
                    probe=score_probe(self.engine, self.probe, self.world),
                    settings_yaml=settings_yaml,
                )
                if self.world.is_main:
                    checkpoint.prune(
                        self.checkpoints,
                        keep_last=self.settings.checkpoint.keep_last,
                        best_step=self.state.best_step,
                    )

    def _evaluate(self, dev: RowSet) -> bool:
        """Evaluate, log, and note whether this is the best so far."""
        from clsgen_dist.evaluate.calibration import reliability_bins
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
        value = metrics.get(train.best_metric, float("nan"))
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


def _prepare_output(settings: Settings, output: Path, world: World, say: Callable[[str], None]) -> Path | None:
    """Make the output folder, and find the checkpoint to resume from; collective."""
    root = output / "checkpoints"
    if settings.resume not in ("never", "auto"):
        folder = Path(settings.resume)
        checkpoint.verify(folder)
        return folder
    found = None
    if world.is_main:
        if settings.resume == "auto":
            found = checkpoint.newest_valid(root, say)
            say("nothing to resume: starting at step 0" if found is None else f"newest valid checkpoint: {found.name}")
        elif settings.overwrite:
            for part in (root, output / "tensorboard"):
                shutil.rmtree(part, ignore_errors=True)
            (output / "rows.jsonl").unlink(missing_ok=True)
        output.mkdir(parents=True, exist_ok=True)
        occupied = settings.resume == "never" and bool(checkpoint.committed(root))
        (output / checkpoint.SETTINGS_FILE).write_text(to_yaml(settings)) if not occupied else None
    else:
        occupied = False
    found, occupied = world.broadcast((found, occupied))
    if occupied:
        raise SettingsError(
            f"{output} already holds checkpoints of a run; go on with it (--resume auto), choose another --output_dir, "
            "or delete it (--overwrite true)"
        )
    return found


def _speaker(world: World) -> Callable[[str], None]:
    """Print on rank 0, nothing elsewhere."""
    return (lambda text: print(text, flush=True)) if world.is_main else (lambda text: None)


def _dropout_seed(seed: int, step: int, micro_step: int, rank: int) -> int:
    key = f"{seed}/{step}/{micro_step}/{rank}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
