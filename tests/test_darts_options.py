"""Options of the differentiable search against collapse: auxiliary skips, early stopping of operations, perturbation."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from nas import guards
from nas.compute import Compute
from nas.darts import JUDGES, Darts
from nas.darts_config import DartsConfig
from nas.early_stopping import EarlyStopping
from nas.encoding import Encoding
from nas.perturbation import RANKERS, option_losses
from nas.relaxations import relax
from nas.skips import skip_share, skips, with_auxiliary_skip
from nas.training import stream
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.support.tiny_search import FAMILY, Task, darts, latency_model


@pytest.fixture(scope="module")
def latency():
    return latency_model()


def random_encoding(space, dtype=torch.float64) -> Encoding:
    logits = torch.randn(space.encoding_size, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return relax(space, logits)


def test_skips_are_the_options_that_leave_least():
    skipped = skips(FAMILY.space)
    assert skipped["depth"] == 1
    assert skipped["layer3.attention"] == "none"
    assert set(skipped) == {"depth", *(f"layer{layer}.attention" for layer in (1, 2, 3))}
    for arch, share in ((FAMILY.space.largest(), 0.0), (FAMILY.space.smallest(), 1.0)):
        assert skip_share(Encoding(FAMILY.space, FAMILY.space.encode([arch])[0])) == pytest.approx(share)


def test_a_choice_of_sharing_or_of_heads_has_no_skip():
    """Fewer choices hang on one head, which has no groups of them, and on shared weights; both leave nothing out."""
    space = encoder_space(
        width=(8, 16), depth=(1, 2), heads=(1, 2), kv_heads=(1, 2), ffn=(8,), sharing=("none", "all"), ffn_kind=("mlp", "none")
    )
    assert set(skips(space)) == {"depth", "layer1.attention", "layer1.ffn_kind", "layer2.attention", "layer2.ffn_kind"}
    everything = Encoding(space, space.encode([space.canonical({**space.largest().as_dict, "sharing": "all"})])[0])
    assert skip_share(everything) < 0.5
    assert not skips(encoder_space(width=(8, 16), depth=(2,), heads=(1, 2), ffn=(8, 16), attention=("full",)))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_an_auxiliary_skip_is_what_goes_in_beside_what_comes_out(norm):
    """(beta x + branch(x)) / (1 + beta), of a branch that may be none: the feed-forward here."""
    options = {"width": (8, 16), "depth": (2,), "heads": (1, 2), "ffn": (8, 16), "attention": ("full",)}
    space = encoder_space(**options, ffn_kind=("mlp", "none"))
    family = EncoderFamily(space, vocab_size=9, num_classes=2, max_tokens=6, head_size=4, norm=norm)
    block = family.supernet().double().stack.blocks["0"]
    encoding, beta = random_encoding(space), 0.7

    def in_and_out(relaxed: Encoding) -> tuple[torch.Tensor, torch.Tensor]:
        """What goes into the feed-forward's branch, and what comes out of the block."""
        masks, bias = family.masks(relaxed).stack, torch.zeros(3, 1, 1, 6, dtype=torch.float64)
        noise = torch.randn(3, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        x_BTD, layout = masks.width.centre(noise), family.trunk.attention.layout(6, bias, [(1, 1.0)])
        layer = masks.layers[0]
        nothing = dataclasses.replace(layer.ffn, gate=0 * layer.ffn.gate, hidden=0 * layer.ffn.hidden)
        without = dataclasses.replace(layer, ffn=nothing)
        return tuple(block.relaxed(x_BTD, bias, layout, masks.width, one) for one in (without, layer))

    goes_in, comes_out = in_and_out(encoding)
    also_in, with_skip = in_and_out(with_auxiliary_skip(encoding, beta))
    torch.testing.assert_close(also_in, goes_in)
    torch.testing.assert_close(with_skip, (beta * goes_in + comes_out) / (1 + beta))


def test_no_logit_learns_from_the_auxiliary_skip():
    logits = torch.zeros(FAMILY.space.encoding_size, requires_grad=True)
    encoding = with_auxiliary_skip(relax(FAMILY.space, logits), 1.0)
    for choice in FAMILY.space:
        part = encoding.probabilities(choice.name)
        assert part.sum().item() == pytest.approx(1.0)
        has_skip = choice.name in skips(FAMILY.space)
        assert part.max().item() == pytest.approx(0.5 + 0.5 / len(part) if has_skip else 1 / len(part))
    depth = FAMILY.space.offsets["depth"]
    (gradient,) = torch.autograd.grad(encoding.probability("depth", 1), [logits])
    (plain,) = torch.autograd.grad(relax(FAMILY.space, logits).probability("depth", 1), [logits])
    torch.testing.assert_close(gradient[depth], plain[depth] / 2)


@pytest.mark.parametrize("remedy", ["", "auxiliary_skip"])
def test_the_auxiliary_skip_falls_to_nothing_within_each_budget(latency, remedy):
    search = darts(latency, auxiliary_skip=0.0 if remedy else 1.0)
    search.remedy, weights, seen = remedy, [], []

    def look(*_) -> None:
        weights.append(search.auxiliary_skip)
        seen.append(search._drawn(search.logits.detach(), 1.0, 0).values)

    for budget in (0.8, 0.7):
        search.propose(budget, steps=5, on_step=look)
    assert weights == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0] * 2)
    one_hot = [bool(((values < 1e-6) | (values > 1 - 1e-6)).all()) for values in seen]
    assert one_hot == [False, False, False, False, True] * 2, "draws with noise are, but for the skip"


def test_the_auxiliary_skip_is_no_part_of_what_is_found(latency):
    search = darts(latency, auxiliary_skip=1.0)
    proposal = search.propose(0.8, steps=4, on_step=lambda *_: None)
    search.auxiliary_skip = 1.0
    plain = relax(FAMILY.space, search.logits.detach(), temperature=0.4, kind="gumbel")
    torch.testing.assert_close(search._encoding(0.4).values, plain.values, rtol=0, atol=0)
    relaxed = Encoding(FAMILY.space, plain.values.double())
    assert proposal.relaxed_ms == pytest.approx(latency.expected_ms(relaxed).item())
    assert np.isfinite(proposal.loss)


def test_options_alone_are_ranked_by_the_mean_over_parts_of_several_batches(latency):
    search, space = darts(latency, discretisation="perturbation"), FAMILY.space
    encoding = search._encoding(1.0)
    losses = search._option_losses(encoding)
    expected = np.zeros(space.encoding_size)
    batches = itertools.islice(stream(Task(), "architecture", tokens_per_batch=2048, seed=0), JUDGES, JUDGES + RANKERS)
    for batch in batches:
        size = math.ceil(len(batch.targets) / RANKERS)
        for part in space.offsets.values():
            for index in range(part.start, part.stop):
                values = encoding.values.clone()
                values[part] = torch.eye(part.stop - part.start)[index - part.start]
                outputs = search.supernet(*(x[:size] for x in batch.inputs), masks=FAMILY.masks(Encoding(space, values)))
                expected[index] += Task.loss(outputs, batch.targets[:size]).item() / RANKERS
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def perturbed(most_passes: int, bend: float) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Estimates and the true means over 8 parts of losses that are linear in the probabilities but for `bend`, and the parts of
    the passes that had no gradient."""
    space, passes = FAMILY.space, []
    rng = np.random.default_rng(0)
    weights, bends = (torch.as_tensor(rng.normal(size=(8, space.encoding_size))) for _ in range(2))
    bends[:] = bends[0]

    def loss(part: int, encoding: Encoding) -> torch.Tensor:
        passes.extend([part] * (not torch.is_grad_enabled()))
        return weights[part] @ encoding.values + bend * bends[part] @ encoding.values**2

    encoding = random_encoding(space)
    estimates = option_losses(encoding, loss, 8, most_passes=most_passes)
    return estimates, option_losses(encoding, loss, 8, most_passes=10_000), passes[: -8 * space.encoding_size]


@pytest.mark.parametrize(("share", "each"), [(8, 8), (3.5, 3), (1, 1), (0.1, 1)])
def test_few_passes_for_each_option_rank_them_as_many_do(share, each):
    """What bends in all parts alike is known from any of them, and what is linear from the gradients."""
    size = FAMILY.space.encoding_size
    estimates, means, passes = perturbed(int(share * size), bend=1.0)
    np.testing.assert_allclose(estimates, means, atol=1e-12)
    assert len(passes) == each * size
    assert set(passes) == set(range(8)), "choices have their passes on different parts"
    assert not np.allclose(means, perturbed(8 * size, bend=0.0)[1]), "the bend matters"


def test_a_remedy_is_judged_by_the_loss_of_the_network_alone(latency):
    search = darts(latency)
    for seed in range(3):
        arch = FAMILY.space.sample(np.random.default_rng(seed))
        encoding = Encoding(FAMILY.space, torch.as_tensor(FAMILY.space.encode([arch])[0], dtype=torch.float32))
        losses = [search._loss(batch, encoding).item() for batch in search._judges(JUDGES)]
        assert search._loss_of(arch) == pytest.approx(np.mean(losses), rel=1e-5)


def gradients(supernet: nn.Module, sign_of: dict[str, float]) -> torch.Tensor:
    """A loss whose gradient is, for all weights of a part, the sign that is given for its name, else 1."""
    return sum(
        next((sign for part, sign in sign_of.items() if name.startswith(part)), 1.0) * parameter.sum()
        for name, parameter in supernet.named_parameters()
    )


def test_a_branch_whose_gradients_disagree_stands_still_while_others_learn():
    torch.manual_seed(0)
    supernet = FAMILY.supernet()
    first = {name: p.detach().clone() for name, p in supernet.named_parameters()}
    stopping = EarlyStopping(supernet, steps=3)
    assert set(stopping.branches) == {f"stack.blocks.{n}.{branch}" for n in range(3) for branch in ("attention", "ffn")}
    optimizer = torch.optim.AdamW(supernet.parameters(), lr=0.1, weight_decay=0.1, fused=True)
    apart, after = "stack.blocks.1.ffn.", {}
    for step in range(5):
        optimizer.zero_grad()
        gradients(supernet, {}).backward()
        stopping.look(lambda: gradients(supernet, {apart: -1.0}), 0.4)
        assert stopping.frozen == ({"stack.blocks.1.ffn"} if step >= 2 else set())
        optimizer.step()
        after[step] = {name: p.detach().clone() for name, p in supernet.named_parameters()}
    assert stopping.held() == {name for name in first if name.startswith(apart)}
    for name in first:
        assert not torch.equal(after[1][name], first[name])
        assert torch.equal(after[4][name], after[1][name]) == name.startswith(apart), name


@pytest.mark.parametrize(("threshold", "frozen"), [(-1.0, 0), (0.0, 1), (1.0, 5)])
def test_what_is_below_the_threshold_is_frozen_and_what_has_no_gradient_is_not(threshold, frozen):
    """One branch disagrees, one has no gradient, and the others agree, but not to the full."""
    supernet = FAMILY.supernet()
    stopping = EarlyStopping(supernet, steps=2)
    parts = {f"{name}.": 0.0 if name.endswith("2.ffn") else 1.0 for name in stopping.branches}
    disagrees, *others = [name for name, sign in parts.items() if sign]

    def held_out() -> torch.Tensor:
        agreeing = gradients(supernet, parts | {disagrees: -0.5} | dict.fromkeys(others[1:], 0.1))
        return agreeing + sum((torch.linspace(-1, 1, p.numel()) @ p.flatten()) for p in supernet.parameters())

    for _ in range(2):
        supernet.zero_grad()
        gradients(supernet, parts).backward()
        stopping.look(held_out, threshold)
    assert len(stopping.frozen) == frozen


def test_a_search_freezes_what_is_below_and_says_how_much(latency):
    checks = []
    none = darts(latency, check_every=2, operation_early_stopping=-1.0)
    some = darts(latency, check_every=2, operation_early_stopping=1.0, early_stopping_steps=4)
    for search in (none, some):
        proposal = search.propose(0.8, steps=3, on_check=checks.append)
        assert proposal.frozen == 0
    torch.testing.assert_close(some.logits, none.logits, rtol=0, atol=0, msg="it looks and changes nothing else")
    proposal = some.propose(0.8, steps=12, on_check=checks.append)
    assert proposal.frozen == checks[-1].frozen == len(some.stopping.frozen) > 0
    assert proposal.frozen_sentence == (
        f"After the search for 0.800 ms the weights of {proposal.frozen} branches stand still: "
        "the gradients on the two splits disagree."
    )
    before = {name: p.detach().clone() for name, p in some.supernet.named_parameters()}
    held = some.stopping.held()
    some.propose(0.7, steps=2)
    for name, parameter in some.supernet.named_parameters():
        assert not torch.equal(parameter, before[name]) or name in some.stopping.held(), name
        assert torch.equal(parameter, before[name]) or name not in held, name


def test_frozen_weights_take_no_virtual_step(latency):
    search = darts(latency, unroll_rate=0.5, relaxation="softmax", operation_early_stopping=0.4)
    weights = dict(search.supernet.named_parameters())
    batch = next(Task().batches("train", tokens_per_batch=1, seed=0))

    def moved() -> set[str]:
        return {name for name, weight in search._unrolled(batch, 1.0).items() if not torch.equal(weight, weights[name])}

    everything = moved()
    search.stopping.frozen = {"stack.blocks.0.ffn"}
    assert everything - moved() == {name for name in weights if name.startswith("stack.blocks.0.ffn.")}


@pytest.mark.parametrize(
    "options",
    [
        {"operation_early_stopping": 1.0, "early_stopping_steps": 4},
        {"operation_early_stopping": 1.0, "early_stopping_steps": 4, "auxiliary_skip": 1.0, "unroll_rate": 0.1},
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_search_with_them_that_goes_on_equals_one_that_was_not_stopped(latency, options, precision):
    def search() -> Darts:
        torch.manual_seed(0)
        config = DartsConfig(logit_rate=0.3, **options)
        return Darts(FAMILY, FAMILY.supernet(), latency, Task(), config, compute=Compute(precision=precision), seed=0)

    whole = search()
    whole.propose(0.9, steps=6)
    state, kept = copy.deepcopy(whole.state_dict()), dict(whole.stopping.cosines)
    assert whole.stopping.frozen, "something is frozen"
    assert kept, "a mean is half done"
    second = whole.propose(0.5, steps=5)
    again = search()
    again.load_state_dict(state)
    assert again.propose(0.5, steps=5) == second
    assert again.stopping.state_dict() == whole.stopping.state_dict()
    for mine, other in zip(again.supernet.parameters(), whole.supernet.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_a_setback_and_a_false_alarm_thaw_what_was_frozen_since(latency, monkeypatch):
    search, said = darts(latency, operation_early_stopping=1.0, early_stopping_steps=3), []
    search.propose(0.9, steps=2)
    before, at_step = copy.deepcopy(search.stopping.state_dict()), {}
    load = search.stopping.load_state_dict
    monkeypatch.setattr(search.stopping, "load_state_dict", lambda state: (at_step.update(state), load(state)))

    def breaks(step: int, _: float) -> None:
        if step == 6 and not said:
            assert search.stopping.frozen
            search.logits.data.fill_(float("nan"))

    search.propose(0.8, steps=7, on_step=breaks, on_setback=said.append)
    assert len(said) == 1
    assert at_step == before

    monkeypatch.setattr(guards, "alarm", lambda **_: "all is skipped")
    search = darts(latency, check_every=6, remedy="operation_early_stopping", early_stopping_steps=3)
    frozen = []
    monkeypatch.setattr(search, "_loss_of", lambda arch: 1.0)
    proposal = search.propose(0.8, steps=12, on_check=lambda health: frozen.append(health.frozen))
    assert frozen[:2] == [0, 0]
    assert frozen[-1] > 0
    assert proposal.frozen == 0, "the remedy did not help"


def test_a_supernet_without_branches_to_freeze_is_refused(latency):
    config = DartsConfig(operation_early_stopping=0.4)
    with pytest.raises(ValueError, match="operation_early_stopping: Linear has no attention and no feed-forward"):
        Darts(FAMILY, nn.Linear(2, 2), latency, Task(), config, compute=Compute(), seed=0)
