"""The outer loop: a searcher proposes, an evaluation scores, and everything found so far counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nas.protocols import ExhaustedError, PlanningSearcher, Searcher
from nas.space import Architecture
from nas.types import Candidate, SearchResult


def search(
    searcher: Searcher, evaluate: Callable[[Architecture], Candidate], *, num_evaluations: int,
    known: Iterable[Candidate] = (), on_candidate: Callable[[Candidate], None] = lambda candidate: None,
    ahead: Callable[[Sequence[Architecture]], None] = lambda archs: None, max_repeats: int = 200,
) -> SearchResult:  # fmt: skip
    """Asks, evaluates and tells until `num_evaluations` different architectures are known.

    An architecture is never evaluated twice: one that comes again, or is in `known`, is told with the score that it has. An
    evaluation that raises ValueError fails that architecture alone. `on_candidate` is called with each new candidate before it is
    told, so that a run stopped between the two finds it in `known` again. The search also ends when `max_repeats` questions in a
    row were for what it had been told, or the searcher has nothing left to propose.

    A `PlanningSearcher` is asked for as many at once as it says, and told of them in the order of the questions: so it finds the
    same as if it were told of each before the next. `ahead` is called with those of them that `evaluate` will be called with,
    each once, and may begin with all of them.
    """
    found = {candidate.arch.id: candidate for candidate in known}
    told: set[str] = set()
    failures: dict[str, tuple[Architecture, str]] = {}
    repeats = 0
    while (left := num_evaluations - len(found) - len(failures)) > 0 and repeats < max_repeats:
        batch = _asked(searcher, most=left)
        if not batch:
            break
        ahead([arch for arch in dict.fromkeys(batch) if arch.id not in found and arch.id not in failures])
        for arch in batch:
            if repeats == max_repeats:
                break
            repeats = repeats + 1 if arch.id in told else 0
            told.add(arch.id)
            if arch.id in failures:
                searcher.fail(arch, failures[arch.id][1])
                continue
            if arch.id not in found:
                try:
                    candidate = evaluate(arch)
                except ValueError as error:
                    failures[arch.id] = (arch, str(error))
                    searcher.fail(arch, str(error))
                    continue
                on_candidate(candidate)
                found[arch.id] = candidate
            searcher.tell(found[arch.id])
    return SearchResult(tuple(found.values()), tuple(failures.values()))


def _asked(searcher: Searcher, *, most: int) -> list[Architecture]:
    """The next batch; nothing if there is nothing left to propose."""
    num = min(most, searcher.batch) if isinstance(searcher, PlanningSearcher) else 1
    archs: list[Architecture] = []
    try:
        while len(archs) < num:
            archs.append(searcher.ask())
    except ExhaustedError:  # of what was asked for before, the searcher is told
        pass
    return archs
