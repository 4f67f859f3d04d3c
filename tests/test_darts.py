"""The differentiable search: relaxations, second order, budget and projection, guards, resume."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from latency_models.additive import AdditiveLatency
from nas import guards
from nas.compute import Compute
from nas.constraints import within_ms
from nas.darts import Darts
from nas.darts_config import DartsConfig
from nas.projection import USED, BudgetError, discretise
from nas.proposals import Proposal
from nas.protocols import Batch
from nas.relaxations import RELAXATIONS, cooled, relax
from nas.supernet import call, skeleton
from nas.training import stream
from nas.types import Measurement, Workload
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.support.invented import FAMILY as BIG
from tests.support.invented import measurements
from tests.support.tiny_search import FAMILY, Task, darts, latency_model


@pytest.fixture(scope="module")
def latency():
    return latency_model()


def test_relaxation_is_one_distribution_for_each_choice():
    logits = torch.randn(FAMILY.space.encoding_size)
    encoding = relax(FAMILY.space, logits, temperature=0.5)
    for choice in FAMILY.space:
        part = encoding.probabilities(choice.name)
        assert part.sum().item() == pytest.approx(1.0)
        torch.testing.assert_close(part, torch.softmax(logits[FAMILY.space.offsets[choice.name]] / 0.5, dim=0))


@pytest.mark.parametrize("kind", RELAXATIONS)
def test_draws_are_distributions_with_the_mean_that_is_said_and_a_gradient(kind):
    logits = torch.randn(FAMILY.space.encoding_size, generator=torch.Generator().manual_seed(0), requires_grad=True)
    values = [relax(FAMILY.space, logits, kind=kind, seed=(1, number)).values for number in range(3000)]
    assert torch.equal(relax(FAMILY.space, logits, kind=kind, seed=(1, 0)).values, values[0])
    for part in FAMILY.space.offsets.values():
        torch.testing.assert_close(values[0][part].sum(), torch.tensor(1.0))
    drawn = torch.stack(values).detach()
    torch.testing.assert_close(drawn.mean(0), relax(FAMILY.space, logits.detach(), kind=kind).values, rtol=0, atol=0.04)
    assert (kind == "gumbel") == bool(((drawn < 1e-6) | (drawn > 1 - 1e-6)).all())
    (gradient,) = torch.autograd.grad((values[0] * torch.randn(len(logits))).sum(), [logits])
    for choice in FAMILY.space:
        assert torch.any(gradient[FAMILY.space.offsets[choice.name]] != 0), choice.name


def test_the_temperature_falls_geometrically():
    assert [cooled((1.0, 0.25), done) for done in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.25])


def test_entropy_is_one_when_undecided_and_zero_when_decided():
    uniform = np.concatenate([np.full(len(c.options), 1 / len(c.options)) for c in FAMILY.space])
    assert guards.mean(guards.entropies(FAMILY.space, uniform)) == pytest.approx(1.0)
    decided = np.concatenate([np.eye(len(c.options))[0] for c in FAMILY.space])
    assert guards.mean(guards.entropies(FAMILY.space, decided)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_what_comes_out_is_within_the_budget_and_uses_it(seed):
    """Random probabilities and budgets over a space of 10^9: the upper bound is within, and no single larger size would be."""
    model = AdditiveLatency().fit(BIG, measurements(60, noise=0.05))
    rng = np.random.default_rng(seed)
    probabilities = np.concatenate([rng.dirichlet(np.ones(len(c.options))) for c in BIG.space])
    ends = model.predict([BIG.space.smallest(), BIG.space.largest()])
    budget = float(math.exp(rng.uniform(*np.log([ends.upper_ms[0] * 1.05, ends.upper_ms[1]]))))
    arch = discretise(BIG.space, np.log(probabilities), [within_ms(model, budget)])
    upper = model.predict([arch]).upper_ms[0]
    assert upper <= budget
    for choice in BIG.space:
        if choice.name in arch and choice.is_nested:
            for larger in choice.options[choice.index(arch[choice.name]) + 1 :]:
                picks = BIG.space.complete(arch, np.random.default_rng(0)) | {choice.name: larger}
                grown = model.predict([BIG.space.canonical(picks)]).upper_ms[0]
                assert grown > budget or grown <= upper or choice.name == "depth"


def test_budgets_spread_over_the_space_are_used():
    """40 budgets from the fastest network's time to the largest's, and random probabilities, decided and undecided in turn."""
    model = AdditiveLatency().fit(BIG, measurements(44, noise=0.03))
    ends = model.predict([BIG.space.smallest(), BIG.space.largest()]).upper_ms
    rng, used = np.random.default_rng(0), []
    for budget, concentration in zip(np.geomspace(*ends, 40), itertools.cycle([0.1, 1.0, 10.0]), strict=False):
        p = np.concatenate([rng.dirichlet(np.full(len(c.options), concentration)) for c in BIG.space])
        arch = discretise(BIG.space, np.log(np.clip(p, 1e-9, 1.0)), [within_ms(model, float(budget))])
        used.append(model.predict([arch]).upper_ms[0] / budget)
    assert max(used) <= 1 + 1e-9
    assert np.mean([use >= USED for use in used]) >= 0.95


def test_the_projection_is_close_to_the_most_probable_architecture_that_fits(latency):
    """All architectures of a small space are known: what is given up is that of the best one, or of one near it."""
    space = FAMILY.space
    rng = np.random.default_rng(0)
    archs = list({a.id: a for a in (space.sample(rng) for _ in range(8000))}.values())
    upper_ms = latency.predict(archs).upper_ms

    def given_up(arch, log_p):
        parts = {c.name: log_p[space.offsets[c.name]] for c in space}
        return sum(parts[n].max() - parts[n][space.by_name[n].index(pick)] for n, pick in arch.picks)

    lost = []
    for _ in range(20):
        log_p = np.log(np.concatenate([rng.dirichlet(np.ones(len(c.options))) for c in space]))
        budget = float(rng.uniform(*np.quantile(upper_ms, (0.2, 1.0))))
        arch = discretise(space, log_p, [within_ms(latency, budget)])
        use = latency.predict([arch]).upper_ms[0] / budget
        as_full = [a for a, u in zip(archs, upper_ms, strict=True) if min(use, USED) * budget - 1e-9 <= u <= budget]
        lost.append(given_up(arch, log_p) - min(given_up(a, log_p) for a in as_full))
    assert np.median(lost) <= 0.5


def test_a_budget_that_nothing_meets_is_named(latency):
    uniform = np.concatenate([np.full(len(c.options), 1 / len(c.options)) for c in FAMILY.space])
    with pytest.raises(BudgetError, match=r"budget_ms: 0.01 is below the least that was reached, 0\.\d+ ms"):
        discretise(FAMILY.space, np.log(uniform), [within_ms(latency, 0.01)])


def test_a_smaller_budget_gives_a_faster_network(latency):
    search = darts(latency)
    wide = search.propose(0.9, steps=12)
    narrow = search.propose(0.4, steps=12)
    assert wide.upper_ms <= 0.9
    assert narrow.upper_ms <= 0.4
    assert narrow.predicted_ms < wide.predicted_ms
    assert narrow.relaxed_ms < wide.relaxed_ms


def test_the_unrolled_gradient_is_that_of_the_loss_after_a_step(latency):
    search = darts(latency, unroll_rate=0.5, relaxation="softmax")
    search.auxiliary_skip = 0.5
    search.supernet.double()
    train, held_out = list(Task().batches("train", tokens_per_batch=1, seed=0))[:2]
    direction = torch.randn(FAMILY.space.encoding_size, dtype=torch.float64)
    direction[FAMILY.space.offsets["width"]] = 0.0  # the norms' epsilon follows the width without a gradient
    search.logits = torch.nn.Parameter(torch.randn(FAMILY.space.encoding_size, dtype=torch.float64))

    def loss() -> torch.Tensor:
        weights = search._unrolled(train, 1.0)
        return search._loss(held_out, search._drawn(search.logits, 1.0, 1), weights)

    (gradient,) = torch.autograd.grad(loss(), [search.logits])
    there, back = [], []
    for sign, found in ((1, there), (-1, back)):
        search.logits.data += sign * 1e-5 * direction
        found.append(loss().item())
        search.logits.data -= sign * 1e-5 * direction
    assert (gradient @ direction).item() == pytest.approx((there[0] - back[0]) / 2e-5, rel=1e-5)
    first_order = search._loss(
        held_out, search._drawn(search.logits, 1.0, 1), {n: w.detach() for n, w in search._unrolled(train, 1.0).items()}
    )
    (without,) = torch.autograd.grad(first_order, [search.logits])
    assert (gradient - without).norm() > 1e-3 * gradient.norm(), "the second order adds something"


def test_sharpness_is_the_largest_eigenvalue():
    torch.manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    hessian = basis @ torch.diag(torch.tensor([1.0, -8.0, 2.0, 0.5, 0.0, -1.0], dtype=torch.float64)) @ basis.T
    logits = torch.randn(6, dtype=torch.float64)
    assert guards.sharpness(lambda at: at @ hessian @ at / 2, logits, seed=(0,)) == pytest.approx(-8.0, rel=0.02)


def test_an_alarm_wants_skips_and_an_unused_budget():
    assert guards.alarm(skip_share=0.9, used=0.5).startswith("90 % of what can be skipped is skipped, though only 50 %")
    assert not guards.alarm(skip_share=0.9, used=0.9)
    assert not guards.alarm(skip_share=0.5, used=0.5)


class NeedsAttention(Task):
    """Which token stands behind the marker? In half of the examples that token is also the most frequent one."""

    def batches(self, split, *, tokens_per_batch, seed):
        rng = np.random.default_rng([seed, len(split)])
        rows = np.arange(64)
        for _ in range(8):
            ids, place = rng.integers(4, 12, size=(64, 8)), rng.integers(2, 6, size=64)
            targets, easy = ids[rows, place + 1].copy(), rng.random(64) < 0.5
            ids[np.ix_(easy, [0, 7])] = targets[easy, None]
            ids[rows, place] = 3
            yield Batch((torch.as_tensor(ids), torch.ones(64, 8, dtype=torch.int64)), torch.as_tensor(targets - 4))


def planted(*budgets: tuple[float, int], **changes) -> tuple[Proposal, list[guards.Health], float]:
    """A supernet whose smallest network alone is trained, so that every other one is worse at first; the proposal for the last of
    budgets in ms (with their steps) that allow attention or large feed-forwards, the guards' record, and the proposal's loss with
    the search's weights."""
    options = {"width": (16,), "depth": (1, 2, 3), "heads": (1,), "ffn": (8, 64, 128), "attention": ("full", "none")}
    family = EncoderFamily(encoder_space(**options), vocab_size=24, num_classes=8, max_tokens=8, head_size=8)
    archs = {a.id: a for a in (family.space.sample(np.random.default_rng(s)) for s in range(60))}.values()

    def invented_ms(arch) -> float:
        layers = [f"layer{layer}" for layer in range(1, arch.size("depth") + 1)]
        return 0.1 + sum(0.1 + 0.002 * arch.size(f"{n}.ffn") + 0.1 * (arch[f"{n}.attention"] == "full") for n in layers)

    model = AdditiveLatency().fit(
        family, [Measurement(a, "d", Workload(tokens=8), ((invented_ms(a),),), ((1.0,),), 1.0, {}) for a in archs]
    )
    torch.manual_seed(0)
    supernet, task = family.supernet(), NeedsAttention()
    with torch.no_grad():
        for block in supernet.stack.blocks.values():
            block.attention.out.weight *= 3
            block.ffn.down.weight *= 3
    optimizer = torch.optim.AdamW(supernet.parameters(), lr=3e-3)
    smallest = skeleton(family, family.space.smallest(), Compute())
    for batch in itertools.islice(stream(task, "train", tokens_per_batch=512, seed=0), 60):
        optimizer.zero_grad()
        task.loss(call(supernet, smallest, batch.inputs), batch.targets).backward()
        optimizer.step()
    config = DartsConfig(steps=50, logit_rate=0.3, weight_rate=3e-3, tokens_per_batch=512, check_every=10, **changes)
    search = Darts(family, supernet, model, task, config, compute=Compute(), seed=0)
    checks: list[guards.Health] = []
    proposals = [search.propose(ms, steps=steps, on_check=checks.append) for ms, steps in budgets or ((0.55, config.steps),)]
    proposal = proposals[-1]
    batches = list(task.batches("validation", tokens_per_batch=512, seed=0))
    network = skeleton(family, proposal.arch, Compute())
    with torch.no_grad():
        losses = [task.loss(call(search.supernet, network, b.inputs), b.targets).item() for b in batches]
    return proposal, checks, float(np.mean(losses))


def test_a_planted_collapse_trips_the_alarm_and_recovers():
    collapsed, checks, loss_before = planted(remedy="none", relaxation="softmax")
    assert collapsed.alarm
    assert not collapsed.remedy
    assert collapsed.alarm_sentence.endswith("nothing was done about it.")
    assert checks[-1].skip_share > 0.9
    recovered, checks, loss = planted(remedy="perturbation", relaxation="softmax")
    assert (recovered.alarm != "", recovered.remedy) == (True, "perturbation")
    with_it, without = recovered.remedy_losses
    assert with_it < without
    said = f"it began again with the remedy 'perturbation', which helps (loss {with_it:.3f}, without it {without:.3f})."
    assert recovered.alarm_sentence.endswith(said)
    assert [bool(check.alarm) for check in checks] == [False, True] + [False] * 3
    assert recovered.arch["layer1.attention"] == "full"
    assert loss < loss_before - 0.2


def test_a_collapse_at_a_later_and_brief_budget_trips_the_alarm_and_recovers():
    recovered, checks, _ = planted((0.6, 2), (0.55, 10), remedy="perturbation", relaxation="softmax")
    assert [(check.step, bool(check.alarm)) for check in checks] == [
        (2, False),
        (12, False),
        (22, True),
        (32, False),
        (42, False),
    ]
    assert recovered.alarm_sentence.startswith("For 0.550 ms it seemed to collapse: 99 % of what can be skipped is skipped")
    with_it, without = recovered.remedy_losses
    assert with_it < without
    assert recovered.arch["layer1.attention"] == "full"
    _, checks, _ = planted((0.6, 2), (0.55, 10), remedy="none", relaxation="softmax")
    assert [check.step for check in checks] == [2, 12], "steps are added where something would be done"


def test_a_later_budget_that_overshoots_at_first_is_no_collapse():
    sound, checks, _ = planted((0.7, 10), (0.6, 10), (0.5, 10), remedy="perturbation", relaxation="softmax")
    assert not sound.alarm
    *_, doubtful, last = checks
    assert guards.alarm(skip_share=doubtful.skip_share, used=doubtful.used)
    assert (doubtful.step, last.step) == (30, 40)
    assert last.used > doubtful.used


def test_sound_budgets_take_the_steps_that_were_asked_for():
    sound, checks, _ = planted((0.8, 20), (0.6, 10), (0.45, 10), (0.35, 10))
    assert [(check.step, check.alarm) for check in checks] == [(step, "") for step in (10, 20, 30, 40, 50)]
    assert not sound.alarm


def test_the_planted_case_does_not_collapse_by_default():
    sound, checks, _ = planted(remedy="none")
    assert not sound.alarm
    assert checks[-1].skip_share < 0.8
    assert sound.arch["layer1.attention"] == "full"


@pytest.mark.parametrize("remedy", ["auxiliary_skip", "beta_decay", "operation_early_stopping", "perturbation"])
def test_a_false_alarm_leaves_the_search_where_it_was(latency, monkeypatch, remedy):
    monkeypatch.setattr(guards, "alarm", lambda **_: "all is skipped")
    search = darts(latency, check_every=2, remedy=remedy)
    looks: list[tuple[str, torch.Tensor, list[float]]] = []
    monkeypatch.setattr(search, "_loss_of", lambda arch: 1.0)
    proposal = search.propose(
        0.8, steps=12, on_check=lambda health: looks.append((health.alarm, search.logits.detach().clone(), search.multipliers))
    )
    assert [alarm for alarm, *_ in looks] == ["", "all is skipped", "", *["all is skipped"] * 3], (
        "4 steps, and the 8 that are left"
    )
    assert proposal.remedy_losses == (1.0, 1.0)
    said = (
        f"the remedy {remedy!r}, which does not help, so that it went on as before: a false alarm (loss 1.000, without it 1.000)."
    )
    assert proposal.alarm_sentence.endswith(said)
    _, logits, multipliers = looks[1]
    torch.testing.assert_close(search.logits.detach(), logits, rtol=0, atol=0)
    assert search.multipliers == multipliers
    assert proposal.arch == search._discrete([within_ms(latency, 0.8)])
    second = search.propose(0.7, steps=2)
    assert (second.alarm, second.remedy, second.remedy_losses) == ("", "", ())
    assert "nothing was done about it" in search.propose(0.6, steps=4).alarm_sentence


def test_proposals_survive_json(latency):
    proposal = darts(latency).propose(0.8, steps=2)
    for known in (proposal, replace(proposal, alarm="skips", remedy="perturbation", remedy_losses=(1.0, 2.0))):
        assert Proposal.from_json(FAMILY.space, json.loads(json.dumps(known.to_json()))) == known


def test_it_leaves_the_supernet_alone(latency):
    torch.manual_seed(0)
    supernet = FAMILY.supernet()
    before = {n: p.clone() for n, p in supernet.named_parameters()}
    Darts(FAMILY, supernet, latency, Task(), DartsConfig(steps=2), compute=Compute(), seed=0).propose(0.8, steps=2)
    for name, parameter in supernet.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"relaxation": "softmax", "auxiliary_skip": 1.0},
        {"operation_early_stopping": 0.3, "early_stopping_steps": 4},
        {"operation_early_stopping": 0.3, "early_stopping_steps": 4, "auxiliary_skip": 1.0, "unroll_rate": 0.1},
        {"relaxation": "dirichlet", "discretisation": "perturbation"},
    ],
)
def test_a_search_that_goes_on_equals_one_that_was_not_stopped(latency, changes):
    whole = darts(latency, **changes)
    first, second = whole.propose(0.9, steps=6), whole.propose(0.5, steps=5)
    cut = darts(latency, **changes)
    assert cut.propose(0.9, steps=6) == first
    state = cut.state_dict()
    again = darts(latency, **changes)
    again.load_state_dict(state)
    assert again.propose(0.5, steps=5) == second
    torch.testing.assert_close(again.logits, whole.logits, rtol=0, atol=0)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_rate_of_the_weights_follows_its_schedule_in_each_budget(latency, schedule):
    search, rates = darts(latency, schedule=schedule), []
    optimizers = {"weights": search.weight_optimizer, "logits": search.logit_optimizer}
    for budget in (0.8, 0.7):
        search.propose(budget, steps=4, on_step=lambda *_: rates.append([o.param_groups[0]["lr"] for o in optimizers.values()]))
    shares = [1.0] * 4 if schedule == "constant" else [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert [weight for weight, _ in rates] == pytest.approx([search.config.weight_rate * share for share in shares * 2])
    assert {logit for _, logit in rates} == {search.config.logit_rate}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps: 0 is not positive"),
        ({"temperature": (1.0, 0.0)}, "is not a pair of positive numbers"),
        ({"unroll_rate": -1.0}, "unroll_rate: -1.0 is negative"),
        ({"logit_rate": math.nan}, "logit_rate: nan is not a finite number"),
        ({"logit_rate": ".nan"}, r"logit_rate: '\.nan' is not a finite number"),
        ({"auxiliary_skip": -0.1}, "auxiliary_skip: -0.1 is negative"),
        ({"operation_early_stopping": 1.5}, r"operation_early_stopping: 1.5 is not in \[-1, 1\], as cosines are"),
        ({"operation_early_stopping": math.nan}, "operation_early_stopping: nan is not a finite number"),
        ({"early_stopping_steps": 0}, "early_stopping_steps: 0 is not positive"),
        ({"weight_rate": 0.0}, "weight_rate: 0.0 is not positive"),
        ({"penalty": math.inf}, "penalty: inf is not a finite number"),
        ({"steps_more": 1.5}, "steps_more: 1.5 is not a whole number"),
        ({"temperature": (1.0, math.nan)}, "is not a pair of positive numbers"),
        ({"temperature": (1.0, "cold")}, "is not a pair of positive numbers"),
        ({"relaxation": "hard"}, r"relaxation: 'hard' is not one of \('softmax', 'gumbel', 'dirichlet'\)"),
        ({"schedule": "linear"}, r"schedule: 'linear' is not one of \('constant', 'cosine'\)"),
        (
            {"remedy": "hope"},
            r"remedy: 'hope' is not one of \('none', 'auxiliary_skip', 'beta_decay', 'operation_early_stopping', ",
        ),
    ],
)
def test_bad_configs(arguments, message):
    with pytest.raises(ValueError, match=message):
        DartsConfig(**arguments)
