"""Timing with care: when a visit is warm and ends, what is an outlier, how good a session was, and what else the machine did."""

import gc
import itertools
import json
import math
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest

from experiments.calibration import ATTEMPTS, Calibrator
from experiments.settings import CalibrationSettings
from hardware import environment
from hardware.load import LEAST_CORES, Load, other_load
from hardware.quality import Session, drift, outlier_flags, outliers, uncertainty
from hardware.timing import PATIENCE, CutShortError, measure, measure_on
from hardware.visit import LEAST_SECONDS, WINDOW, Visit, wall
from nas.protocols import DeviceError
from nas.types import Measurement
from tests.support.simulated import NETWORKS, SENTINEL, TIMES, WORKLOAD, Heard, Metered, SimulatedDevice, arch_of


class Machine:
    """A clock, and a run on it that takes what `seconds(run number)` says."""

    def __init__(self, seconds):
        self.seconds, self.now, self.runs = seconds, 0, 0

    def clock(self):
        return self.now

    def sample(self):
        passed = self.seconds(self.runs)
        self.now += round(1e9 * passed)
        self.runs += 1
        return 1e3 * passed


def visiting(seconds, **rule):
    machine = Machine(seconds)
    return machine, Visit(clock=machine.clock, **rule)


# --- visits


def test_a_network_that_is_warm_at_once_is_warm_after_two_windows():
    machine, visit = visiting(lambda run: 0.002, warmup_seconds=1)
    assert visit.warm_up(machine.sample)
    assert machine.runs == 2 * WINDOW


def test_a_fast_network_is_warmed_up_as_long_as_a_clock_needs_to_rise():
    machine, visit = visiting(lambda run: 0.0001, warmup_seconds=1)
    assert visit.warm_up(machine.sample)
    assert machine.now == pytest.approx(1e9 * LEAST_SECONDS)


def test_warm_up_goes_on_while_runs_become_faster():
    """They lose a tenth a run until the fortieth: five runs are then 40 % faster than the five before."""
    machine, visit = visiting(lambda run: 0.01 * 0.9 ** min(run, 40), warmup_seconds=10)
    assert visit.warm_up(machine.sample)
    assert 40 < machine.runs <= 40 + 2 * WINDOW


def test_single_slow_runs_do_not_keep_a_network_from_being_warm():
    machine, visit = visiting(lambda run: 0.05 if run % 4 == 0 else 0.002, warmup_seconds=10)
    assert visit.warm_up(machine.sample)
    assert machine.runs == 2 * WINDOW


def test_warm_up_on_a_machine_that_is_never_steady_ends_after_its_seconds():
    machine, visit = visiting(lambda run: 0.001 * 1.1**run, warmup_seconds=0.3)
    assert not visit.warm_up(machine.sample)
    assert 0.3 <= machine.now / 1e9 < 0.3 + 1.1 * machine.seconds(machine.runs - 1)


def test_one_run_is_the_least_warm_up():
    machine, visit = visiting(lambda run: 5.0, warmup_seconds=0, min_samples=3, visit_seconds=0.1)
    assert visit.times(machine.sample) == (5000.0,) * 3
    assert machine.runs == 1 + 3


@pytest.mark.parametrize(
    ("seconds", "num"),
    [
        (0.001, 50),  # the seconds of the visit
        (0.02, 10),  # the least number of runs takes longer
        (0.0001, 80),  # the largest number of runs comes first
    ],
)
def test_a_visit_ends_by_runs_and_by_seconds(seconds, num):
    machine, visit = visiting(lambda run: seconds, warmup_seconds=0, visit_seconds=0.05, min_samples=10, max_samples=80)
    assert len(visit.times(machine.sample)) == num


def test_samples_are_raw_and_in_their_order():
    machine, visit = visiting(lambda run: 0.001 + 0.0001 * (run * 7 % 10), warmup_seconds=0, max_samples=20)
    samples = visit.times(machine.sample)
    assert samples == pytest.approx([1 + 0.1 * (run * 7 % 10) for run in range(1, 1 + len(samples))])
    assert len(samples) >= 10


def test_a_run_that_fails_leaves_the_garbage_collector_as_it_was():
    def fails():
        assert not gc.isenabled()
        raise OSError("the device is gone")

    with pytest.raises(OSError, match="the device is gone"):
        Visit().times(fails)
    assert gc.isenabled()


def test_wall_time_is_in_ms():
    assert 20 <= wall(lambda: time.sleep(0.02))() < 2000


def test_a_visit_refuses_a_share_that_is_none():
    with pytest.raises(ValueError, match="stable_within: 0 is not above 0"):
        Visit(stable_within=0)


# --- outliers


def test_outliers_of_the_textbook():
    """The example of Iglewicz and Hoaglin: its two large values hide each other from the ordinary Z-score."""
    samples = [2.1, 2.6, 2.4, 2.5, 2.3, 2.1, 2.3, 2.6, 8.2, 8.3]
    assert outliers(samples).tolist() == [False] * 8 + [True] * 2
    assert all(abs(x - statistics.mean(samples)) / statistics.stdev(samples) < 3 for x in samples)


def test_outliers_agree_with_the_definition():
    samples = np.random.default_rng(0).lognormal(sigma=1.0, size=301)
    middle = statistics.median(samples)
    mad = statistics.median(abs(x - middle) for x in samples)
    expected = [abs(0.6745 * (x - middle) / mad) > 3.5 for x in samples]
    assert outliers(samples).tolist() == expected
    assert 10 < sum(expected) < 150


def test_samples_that_are_mostly_equal_have_outliers_too():
    assert outliers([1.0] * 20 + [9.0]).tolist() == [False] * 20 + [True]
    assert not outliers([1.0] * 20).any()
    assert not outliers([3.0]).any()


def test_the_outliers_of_a_measurement_are_flagged_visit_by_visit_and_none_is_dropped():
    """The second visit is twice as slow, and so is the sentinel beside it: that is drift, and no outlier."""
    quiet, slow = (1.0, 1.01, 0.99, 1.02, 5.0), (2.0, 2.02, 1.98, 2.04)
    m = measurement([quiet, slow], [(1.0,), (2.0,)])
    assert outlier_flags(m) == ((False, False, False, False, True), (False,) * 4)
    assert len(m.wall_ms) == 9


# --- noise and drift


def measurement(samples, sentinel, *, reference=1.0, width=8, **facts):
    return Measurement(arch_of(width, 1), "simulated", WORKLOAD, samples, sentinel, reference, {"time": "now", **facts})


def session(rng, *, visits, num=6):
    """Networks whose visits in the same rounds are disturbed by the same factors, in part."""
    return [
        measurement([(v,) for v in rng.lognormal(sigma=visits, size=num)], [(1.0,)] * num, width=width) for width in (8, 16, 32)
    ]


@pytest.mark.parametrize("spread", [0.005, 0.05])
def test_the_uncertainty_is_what_sessions_differ_by(spread):
    rng = np.random.default_rng(1)
    sessions = [session(rng, visits=spread) for _ in range(300)]
    first, second = ([s[i] for s in sessions] for i in (0, 1))
    claimed = np.sqrt(np.mean([uncertainty(m) ** 2 for m in first]))
    true = np.std([math.log(m.latency_ms) for m in first])
    assert 0.7 < claimed / true < 1.4
    claimed = np.sqrt(np.mean([uncertainty(a, beside=b) ** 2 for a, b in zip(first, second, strict=True)]))
    true = np.std([math.log(a.latency_ms / b.latency_ms) for a, b in zip(first, second, strict=True)])
    assert 0.7 < claimed / true < 1.4


def test_what_disturbs_both_networks_alike_does_not_blur_their_ratio():
    factors = np.random.default_rng(0).lognormal(sigma=0.3, size=10)
    a, b = (measurement([(time_ms * f,) for f in factors], [(1.0,)] * 10, width=w) for time_ms, w in ((1.0, 8), (3.0, 16)))
    assert uncertainty(a) > 0.01
    assert uncertainty(a, beside=b) < 1e-9


def test_a_single_round_tells_nothing_of_its_uncertainty():
    assert math.isnan(uncertainty(measurement([(1.0,)], [(1.0,)])))


def test_disturbed_rounds_are_no_uncertainty_while_two_are_quiet():
    visits = [(1.0,), (3.0,), (1.001,), (2.0,), (1.8,), (9.0,)]
    assert uncertainty(measurement(visits, [(1.0,)] * 6)) < 0.002
    assert uncertainty(measurement([*visits[:2], *visits[3:]], [(1.0,)] * 5)) > 0.3


@pytest.mark.parametrize(
    ("slowdown", "least", "most"),
    [
        (lambda visit: 1.0, 0.0, 0.01),
        (lambda visit: 1.5 if visit % 3 == 0 else 1.0, 0.0, 0.01),  # disturbed visits are no drift
        (lambda visit: 1.0 + (visit >= 24), 0.9, 1.1),
        (lambda visit: 1.0 + 0.4 * visit / 48, 0.15, 0.25),  # to its middle
        (lambda visit: 1.6, 0.55, 0.65),  # slower than its reference throughout
    ],
)
def test_drift_is_the_change_of_the_quiet_speed(slowdown, least, most):
    device = SimulatedDevice(TIMES, slowdown)
    measured = measure(device, NETWORKS, sentinel=SENTINEL, workload=WORKLOAD, sentinel_reference_ms=TIMES["s"])
    assert least <= drift(measured) <= most
    assert least <= drift(measured[:1]) <= most


def test_drift_between_groups_that_were_measured_one_after_the_other():
    first, second = (measurement([(1.0,)] * 4, [(t,)] * 4, time=time_) for t, time_ in ((1.0, "10:00"), (1.3, "10:05")))
    assert drift([first]) == 0
    assert drift([first, second]) == pytest.approx(0.3)


# --- sessions


def disturbed(noise, slowdown=1.0, num=6, **facts):
    """Each round is slower than the one before."""
    visits = [(1.0 + noise * index,) for index in range(num)]
    return [measurement(visits, [(slowdown,)] * num, width=width, **facts) for width in (8, 16, 32)]


BUSY = Load("compiler", 4711, 0.93)


def test_a_quiet_session_is_fitted_to_without_a_word():
    good = Session.of(disturbed(0.005))
    good.check()
    assert good.advice() == ""
    assert 0 < good.noise < 0.01
    assert good.drift == 0


def test_a_noisy_session_is_named_with_what_to_do_and_a_very_noisy_one_is_refused():
    facts = {"governor": "powersave", "other_load": [BUSY.to_json()]}
    noisy = Session.of(disturbed(0.1, **facts))
    noisy.check()
    assert "latencies are uncertain by" in noisy.advice()
    assert "close compiler (process 4711): 93% of a core" in noisy.advice()
    assert "set the CPU governor to performance (it is powersave)" in noisy.advice()
    assert "taskset" in noisy.advice()
    assert "cool down" not in noisy.advice()
    with pytest.raises(ValueError, match=r"too disturbed to fit a latency model to: .*close compiler \(process 4711\)"):
        Session.of(disturbed(0.5, **facts)).check()


def test_one_noisy_network_does_not_condemn_a_session():
    Session.of([*disturbed(0.005), disturbed(3.0)[0]]).check()


def test_a_session_that_drifted_is_named_and_one_that_halved_its_speed_is_refused():
    drifted = Session.of(disturbed(0.001, slowdown=1.3))
    drifted.check()
    assert "the quiet speed of the machine changed by 30%" in drifted.advice()
    assert "let the machine cool down" in drifted.advice()
    with pytest.raises(ValueError, match="changed by 150%"):
        Session.of(disturbed(0.001, slowdown=2.5)).check()


def test_too_few_rounds_tell_nothing_of_noise():
    few = Session.of(disturbed(3.0, num=3))
    assert math.isnan(few.noise)
    few.check()


def test_what_ran_meanwhile_is_known_from_all_moments_and_also_from_a_board():
    other = Load("update", 7, 0.4)
    facts = {
        "other_load": [BUSY.to_json()],
        "conditions_after": {"other_load": [other.to_json(), replace(BUSY, cores=0.5).to_json()], "governor": "performance"},
        "before": {"governor": "ondemand"},
    }
    known = Session.of(disturbed(0.1, **facts))
    assert known.loads == (BUSY, other)
    assert known.governors == ("ondemand", "performance")


class Uneven(SimulatedDevice):
    """What slows it slows the sentinel twice as much as the others."""

    def run(self, onnx_path, inputs):
        slowdown = self.slowdown
        if onnx_path.stem == "s":
            self.slowdown = lambda visit: 2 * slowdown(visit) - 1
        try:
            return super().run(onnx_path, inputs)
        finally:
            self.slowdown = slowdown


ROUND = 1 + 2 * 6 * len(NETWORKS)  # visits of six rounds


def measured_on(slowdown, **how):
    device = Uneven(TIMES, slowdown)
    found = measure_on(device, NETWORKS, sentinel=SENTINEL, workload=WORKLOAD, rounds=6, sentinel_reference_ms=TIMES["s"], **how)
    return found, len(device.visited) / ROUND


def test_one_attempt_is_enough_in_the_conditions_that_latencies_are_expressed_in():
    found, attempts = measured_on(lambda visit: 1.3 if visit % 5 == 0 else 1.0)
    assert attempts == 1
    assert [m.latency_ms for m in found] == pytest.approx([TIMES[n.path.stem] for n in NETWORKS], rel=0.01)


def test_networks_are_measured_on_until_the_sentinel_is_as_fast_as_its_reference():
    """What one factor cannot take out: the sentinel lost 20 % where the networks lost 10."""
    truth = [TIMES[n.path.stem] for n in NETWORKS]
    once, _ = measured_on(lambda visit: 1.1 if visit < ROUND else 1.0, attempts=1)
    assert [m.latency_ms for m in once] == pytest.approx([1.1 / 1.2 * t for t in truth], rel=0.01)
    found, attempts = measured_on(lambda visit: 1.1 if visit < ROUND else 1.0)
    assert attempts == 2
    assert [m.latency_ms for m in found] == pytest.approx(truth, rel=0.01)
    assert [len(m.samples_ms) for m in found] == [12] * len(NETWORKS)


def test_a_device_that_stays_slower_is_measured_a_few_times_and_no_more():
    _, attempts = measured_on(lambda visit: 1.1)
    assert attempts == PATIENCE


# --- a device that is lost


class Dying(SimulatedDevice):
    """Is lost with a visit, and stays so."""

    def __init__(self, visits, **facts):
        super().__init__(TIMES, **facts)
        self.visits = visits

    def run(self, onnx_path, inputs):
        if len(self.visited) >= self.visits:
            raise DeviceError("board: No route to host")
        return super().run(onnx_path, inputs)


@pytest.mark.parametrize("rounds", [1, 2, 6])
def test_complete_rounds_outlive_a_device_that_is_lost(rounds):
    every = 2 * len(NETWORKS)
    device = Dying(1 + rounds * every + 3)
    with pytest.raises(CutShortError, match=r"^board: No route to host$") as caught:
        measure(device, NETWORKS, sentinel=SENTINEL, workload=WORKLOAD, rounds=400)
    assert caught.value.rounds == rounds
    assert [m.arch for m in caught.value.measured] == [n.arch for n in NETWORKS]
    for network, m in zip(NETWORKS, caught.value.measured, strict=True):
        assert [len(m.samples_ms), len(m.sentinel_ms), m.environment["rounds"]] == [rounds] * 3
        assert m.latency_ms == pytest.approx(TIMES[network.path.stem], rel=0.02)
    with pytest.raises(DeviceError) as caught:
        measure(Dying(every), NETWORKS, sentinel=SENTINEL, workload=WORKLOAD, rounds=400)
    assert not isinstance(caught.value, CutShortError), "no round was complete"


@pytest.mark.parametrize(("beyond", "rounds"), [(0, 6), (4, 6), (20, 8)])
def test_what_earlier_attempts_measured_outlives_it_too(beyond, rounds):
    device = Dying(1 + 6 * 2 * len(NETWORKS) + beyond)
    how = {"workload": WORKLOAD, "rounds": 6, "sentinel_reference_ms": None, "enough": lambda _: False}
    with pytest.raises(CutShortError) as caught:
        measure_on(device, NETWORKS, sentinel=SENTINEL, **how)
    assert caught.value.rounds == rounds


def calibrator_of(device, run=None):
    heard = Heard()
    return Calibrator(None, device, WORKLOAD, CalibrationSettings(), run, None, heard), heard


def test_a_calibration_uses_what_is_left_of_a_group_if_it_can_be_judged():
    every = 2 * len(NETWORKS)
    job, heard = calibrator_of(Dying(1 + 4 * every + 5))
    chunk = job._measure_together(NETWORKS, SENTINEL, None)
    assert [len(m.samples_ms) for m in chunk] == [4] * len(NETWORKS)
    assert heard.lines == ["board: No route to host; 4 complete rounds until then are used"]
    job, heard = calibrator_of(Dying(1 + 3 * every + 5))
    with pytest.raises(CutShortError):
        job._measure_together(NETWORKS, SENTINEL, None)
    assert heard.lines == []


def calibrator(slowdown):
    device, heard = SimulatedDevice(TIMES, slowdown), Heard()
    return Calibrator(None, device, WORKLOAD, CalibrationSettings(), None, None, heard), device, heard


def test_a_calibration_measures_on_what_was_too_disturbed():
    visits = 1 + 2 * 6 * len(NETWORKS)
    random = np.random.default_rng(0).uniform(1, 4, size=visits)
    job, device, heard = calibrator(lambda visit: random[visit] if visit < visits else 1.0)
    chunk = job._measure_together(NETWORKS, SENTINEL, None)
    assert len(device.visited) == 2 * visits
    assert len(heard.lines) == 1
    assert heard.lines[0].endswith("these networks are measured longer")
    assert chunk[1].latency_ms == pytest.approx(TIMES["b"], rel=0.01)
    assert [len(m.samples_ms) for m in chunk] == [12] * len(NETWORKS)
    assert chunk[0].environment["rounds"] == 12


def test_more_rounds_help_where_quiet_moments_are_rare():
    """Seven in eight visits are disturbed, each by another factor."""
    rng = np.random.default_rng(1)
    slow = np.where(rng.random(4000) < 7 / 8, rng.uniform(1.2, 3, size=4000), 1.0)
    job, _, heard = calibrator(lambda visit: slow[visit])
    chunk = job._measure_together(NETWORKS, SENTINEL, None)
    assert heard.lines
    assert [m.latency_ms for m in chunk] == pytest.approx([TIMES[n.path.stem] for n in NETWORKS], rel=0.1)


def test_a_calibration_that_stays_too_disturbed_ends_with_advice():
    random = 10 ** np.random.default_rng(0).uniform(0, 9, size=1000)
    job, _, heard = calibrator(lambda visit: random[visit])
    with pytest.raises(ValueError, match=r"too disturbed to fit a latency model to: .* measure in more rounds"):
        job._measure_together(NETWORKS, SENTINEL, None)
    assert len(heard.lines) == ATTEMPTS - 1


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_a_calibration_beside_bursts_of_other_work_goes_on(share):
    """As on a shared machine: in every third or second visit something else has the core."""
    busy = np.random.default_rng(3).random(2000) < share
    job, _, heard = calibrator(lambda visit: 1.8 if busy[visit] else 1.0)
    for _ in range(10):
        job._measure_together(NETWORKS, SENTINEL, None)
    assert heard.lines == []


# --- what a measurement is taken with


def test_energy_and_conditions_are_kept():
    device = Metered(TIMES)
    a, b = measure(device, NETWORKS[:2], sentinel=SENTINEL, workload=WORKLOAD, rounds=3)
    assert a.environment["energy_mj"] == [0.25] * 3
    assert b.environment["energy_mj"] == [2.5] * 3
    assert a.environment["celsius"] == 40
    assert a.environment["conditions_after"] == {"celsius": 40 + len(device.visited)}
    assert json.loads(json.dumps(a.to_json()))["environment"]["energy_mj"] == [0.25] * 3


def test_a_device_without_a_meter_has_no_energy():
    [plain] = measure(SimulatedDevice(TIMES), NETWORKS[:1], sentinel=SENTINEL, workload=WORKLOAD, rounds=2)
    assert "energy_mj" not in plain.environment


# --- other load


@pytest.fixture
def busy_process():
    process = subprocess.Popen([sys.executable, "-c", "print('ready', flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    yield process
    process.kill()
    process.communicate()


def test_a_busy_process_is_named(busy_process):
    for _ in range(20):  # on a full machine it may wait for its turn
        found = {load.pid: load for load in other_load(0.2)}
        if busy_process.pid in found:
            break
    load = found[busy_process.pid]
    assert load.name == psutil.Process(busy_process.pid).name()
    assert LEAST_CORES <= load.cores < 2
    assert Load(**json.loads(json.dumps(load.to_json()))) == load
    assert f"{load.name} (process {load.pid}): " in str(load)
    shares = [load.cores for load in found.values()]
    assert shares == sorted(shares, reverse=True)


def test_this_process_is_no_other_load():
    done = threading.Event()
    spins = threading.Thread(target=lambda: [None for _ in itertools.takewhile(lambda _: not done.is_set(), itertools.count())])
    spins.start()
    try:
        assert psutil.Process().pid not in {load.pid for load in other_load(0.2)}
    finally:
        done.set()
        spins.join()


def test_conditions_hold_the_other_load(busy_process):
    for _ in range(20):
        conditions = environment.conditions()
        if busy_process.pid in {record["pid"] for record in conditions["other_load"]}:
            break
    else:
        pytest.fail("a process that computes all the time was never seen")
    assert json.loads(json.dumps(conditions)) == conditions
