"""Profiling: measure many candidates of a network on a device, resumable at any moment."""

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from tqdm import tqdm

from latency.bench import Bench, OpenBench, local_bench
from latency.device import DeviceSettings
from latency.errors import InputError, MeasurementError
from latency.grid import Grid
from latency.journal import ProfileJournal, RowSink, open_journal, require_same
from latency.measure import Protocol
from latency.number_formats import base_in
from latency.probe import ProbeResult
from latency.profile_rows import ProfileHeader, ProfileRow, RowKey, Split
from latency.profiles import ProfileSet, Round
from latency.sampling import SplitWidths, split_widths, with_rounds
from latency.space import SearchSpace
from latency.worker import WorkerSetup

PROFILING_PROTOCOL = Protocol(warmup_runs=2, min_pairs=8, max_pairs=16)
"""Few pairs, since all candidates are visited twice. Where a session's weights lie in memory and what the neighbours do
outlast a visit: of MobileNetV2's 1.7 % between two visits 0.5 % come from its 16 pairs. A candidate's third inference
is as fast as its sixteenth."""

MOST_PASSES = 50
"""Visits to each network at most, where a precision is asked for."""

# So many failures one after the other are the network's or the machine's fault, not the candidates'.
_MOST_FAILURES_IN_A_ROW = 10


@dataclass(frozen=True, slots=True)
class ProfilePlan:
    """What to measure, besides on what.

    Attributes:
        n_candidates: networks to train a predictor on.
        n_held_out: networks to judge it by.
        passes: how often each is measured, at different times.
        precision: half-width of the 95 % interval that every network's latency is to be known within, relative: all
            are visited again, minutes later, as often as it takes; None is no more than `passes`.
        minutes: time after which no further network is begun, the later passes kept room for; None is no limit.
        seed: seed of their choice.
        protocol: how each is measured.
        grid: widths they take; None to find the device's step by probing.
        probe: what probing found out, if that has been done; read where there is no grid.
        new_round: further networks to train on, chosen by what has been measured, see `latency.active`.
    """

    n_candidates: int = 300
    n_held_out: int = 60
    passes: int = 2
    precision: float | None = None
    minutes: float | None = None
    seed: int = 0
    protocol: Protocol = PROFILING_PROTOCOL
    grid: Grid | None = None
    probe: ProbeResult | None = None
    new_round: Round = ()

    def __post_init__(self) -> None:
        if self.n_candidates < 1 or self.n_held_out < 0:
            raise InputError(
                "A profile needs at least 1 candidate and 0 held-out ones, got "
                f"{self.n_candidates} and {self.n_held_out}."
            )
        if self.passes < 1:
            raise InputError(f"Networks are measured at least once, got {self.passes} passes.")
        if self.precision is not None and not 0 < self.precision < 1:
            raise InputError(f"The precision is a share above 0, such as 0.005; got {self.precision:g}.")
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"Profiling takes more than 0 minutes, got {self.minutes:g}.")
        if self.minutes is not None and self.precision is not None:
            raise InputError("A precision takes the time it takes: give either minutes or a precision.")


def profile(
    space_path: Path,
    out_path: Path,
    settings: DeviceSettings | None = None,
    plan: ProfilePlan | None = None,
    *,
    show_progress: bool = True,
    open_bench: OpenBench = local_bench,
    sinks: Sequence[RowSink] = (),
) -> ProfileSet:
    """Measure candidates of a network, each against the network itself.

    Every measurement is on disk before the next one starts. Called again with the same arguments after
    an interruption, or with larger numbers, it measures only what is missing; failures count as measured.

    Args:
        space_path: the base ONNX file, in fp32; in another number format it is written beside it.
        out_path: the profile set, begun or continued.
        settings: provider, threads, batch size, number format; fp32 on the CPU with one thread if left out.
        plan: how many candidates, which, measured how.
        show_progress: whether to show a bar with the remaining time on stderr.
        open_bench: gives the devices to measure on; this one if left out.
        sinks: where rows go besides the file, once they are on disk; they begin with those of earlier calls.

    Returns:
        Everything in the file. A space smaller than the numbers asked for is measured as far as it goes.

    Raises:
        ModelFileError: the base ONNX file cannot be read.
        UnsupportedGraphError: the network cannot be converted to the number format.
        ProfileError: the file belongs to another network or plan, or is damaged or being written.
        DeviceMismatchError: the file belongs to another device.
        DeviceBusyError: another measurement holds the device.
        MeasurementError: ten candidates in a row failed.
    """
    settings, plan = settings or DeviceSettings(), plan or ProfilePlan()
    space_path = base_in(space_path, settings.precision)
    space = SearchSpace.load(space_path)
    setup = WorkerSetup(space_path, settings, plan.protocol)
    with open_journal(out_path) as journal, open_bench(setup) as bench:
        header = _ensure_header(journal, bench, space, plan)
        for sink in sinks:
            sink.start(header, journal.profile.rows)
        chosen = _chosen(space, header.grid, journal, plan)
        keys = list(measuring_order(chosen, plan.passes))
        missing = [key for key in keys if key not in journal.keys]
        planned = missing if plan.minutes is None else within_time(missing, journal.keys, 60 * plan.minutes)
        bar = tqdm(
            bench.rows(planned),
            "profiling" if plan.minutes is None else f"profiling for {plan.minutes:g} min",
            len(keys) if plan.minutes is None else None,
            unit="net",
            initial=len(keys) - len(missing),
            disable=not show_progress,
        )
        _record_all(bar, journal, sinks)
        journal.fix_reference()
        if plan.precision is not None:
            _visit_again(journal, bench, chosen, plan, plan.precision, show_progress, sinks)
        return journal.profile


def _chosen(space: SearchSpace, grid: Grid, journal: ProfileJournal, plan: ProfilePlan) -> SplitWidths:
    """The plan's networks, with those that active rounds chose, now and before."""
    if plan.new_round:
        journal.begin_round(plan.new_round)
    sampled = split_widths(space, grid, n_train=plan.n_candidates, n_held_out=plan.n_held_out, seed=plan.seed)
    return with_rounds(sampled, journal.rounds)


def passes_needed(visit_stderr: float, precision: float) -> int:
    """Visits whose median has a 95 % interval of ± `precision`, `MOST_PASSES` at most.

    Args:
        visit_stderr: standard error of one visit, relative.
        precision: half-width wanted, relative.
    """
    stderr_of_median = math.sqrt(math.pi / 2) * visit_stderr
    return min(MOST_PASSES, math.ceil((1.96 * stderr_of_median / precision) ** 2))


def _passes_wanted(measured: ProfileSet, precision: float) -> int:
    """`passes_needed`; as many as there may be while nothing says how far visits lie apart."""
    stderr = measured.visit_stderr
    return MOST_PASSES if stderr is None else passes_needed(stderr, precision)


def _visit_again(
    journal: ProfileJournal,
    bench: Bench,
    chosen: SplitWidths,
    plan: ProfilePlan,
    precision: float,
    show_progress: bool,
    sinks: Sequence[RowSink],
) -> None:
    """Further passes over all candidates, until their latencies are known well enough."""
    pass_index = plan.passes
    while pass_index < _passes_wanted(journal.profile, precision):
        missing = [key for key in _one_pass(chosen, pass_index) if key not in journal.keys]
        title, rows = f"profiling, pass {pass_index + 1}", bench.rows(missing)
        _record_all(tqdm(rows, title, len(missing), unit="net", disable=not show_progress), journal, sinks)
        pass_index += 1


def measuring_order(chosen: SplitWidths, passes: int = 2) -> Iterator[RowKey]:
    """Keys of all measurements, pass after pass, training and held-out candidates mixed."""
    for pass_index in range(passes):
        yield from _one_pass(chosen, pass_index)


def _one_pass(chosen: SplitWidths, pass_index: int) -> Iterator[RowKey]:
    n_train, n_held_out = len(chosen.train), len(chosen.held_out)
    train = [_key(widths.tolist(), "train", pass_index) for widths in chosen.train]
    held_out = [_key(widths.tolist(), "held_out", pass_index) for widths in chosen.held_out]
    # A held-out candidate after every so many training ones, so that both see the machine's moods alike.
    every = max(1, n_train // max(1, n_held_out))
    blocks = [train[start : start + every] for start in range(0, n_train, every)]
    for block, single in zip_longest(blocks, held_out):
        yield from block or ()
        if single is not None:
            yield single


def within_time(
    keys: Sequence[RowKey],
    measured: Collection[RowKey],
    seconds: float,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[RowKey]:
    """Keys until the time is up, with all passes over every network that has a first one.

    Args:
        keys: what is missing, later passes at the end.
        measured: what is there already.
        seconds: time from the first key on.
        now: the clock, in seconds.
    """
    begun = {widths for widths, _, pass_index in measured if not pass_index}
    repeats = [key for key in keys if key[2]]
    n_repeats = Counter(widths for widths, _, _ in repeats)
    n_owed = sum(n for widths, n in n_repeats.items() if widths in begun)
    start = now()
    for n_done, key in enumerate(keys):
        elapsed = now() - start
        if key[2] or elapsed + n_owed * elapsed / max(n_done, 1) >= seconds:
            break
        yield key
        begun.add(key[0])
        n_owed += n_repeats[key[0]]
    yield from (key for key in repeats if key[0] in begun)


def _key(widths: list[int], split: Split, pass_index: int) -> RowKey:
    return tuple(widths), split, pass_index


def _ensure_header(
    journal: ProfileJournal, bench: Bench, space: SearchSpace, plan: ProfilePlan
) -> ProfileHeader:
    """The journal's header, checked against what is asked for, or a new one after probing the device."""
    probe = None
    grid = plan.grid or (journal.header.grid if journal.header else None)
    if grid is None:
        probe = plan.probe or bench.probe()
        grid = Grid.from_step(space.structure, probe.step)
    wanted = ProfileHeader.of_space(
        space, grid, bench.fingerprint, plan.protocol, seed=plan.seed, probe=probe
    )
    if journal.header is None:
        journal.start(wanted)
        return wanted
    require_same(journal.header, wanted, journal.path)
    return journal.header


def _record_all(rows: Iterable[ProfileRow], journal: ProfileJournal, sinks: Iterable[RowSink]) -> None:
    n_failures_in_a_row = 0
    for row in rows:
        journal.append(row)
        for sink in sinks:
            sink.append(row)
        n_failures_in_a_row = n_failures_in_a_row + 1 if row.status == "failed" else 0
        if n_failures_in_a_row >= _MOST_FAILURES_IN_A_ROW:
            raise MeasurementError(
                f"{n_failures_in_a_row} candidates in a row failed, the last one (widths {list(row.widths)}) "
                f"with: {row.error}. The measurements so far are kept in {journal.path}."
            )
