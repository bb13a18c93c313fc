"""Draws ahead of a step are those at the step, and training resumes behind the last step that was taken."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from elder import problems
from elder.training.draws import Ahead
from elder.training.patches import Patches
from elder.training.update import draw

LAST = 6


def make(step: int, generator: torch.Generator) -> list[float]:
    """As many numbers as a step wants: a different number each."""
    return torch.rand(step, generator=generator, dtype=torch.float64).tolist()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def test_draws_ahead_are_those_in_time():
    in_time, generator, ahead = seeded(), seeded(), []
    with Ahead(make, generator, LAST) as draws:
        for step in range(1, LAST + 1):
            assert draws.take(step) == make(step, in_time)
            ahead.append(draws.state)
            assert torch.equal(draws.state, in_time.get_state())
    # Nothing is drawn beyond the last step.
    assert torch.equal(generator.get_state(), in_time.get_state())


def test_draws_resume_behind_the_last_step_that_was_taken():
    with Ahead(make, seeded(), LAST) as draws:
        expected = [draws.take(step) for step in range(1, LAST + 1)]
    for kept in range(LAST):
        with Ahead(make, seeded(), LAST) as draws:
            for step in range(1, kept + 1):
                draws.take(step)
            state = draws.state
        generator = torch.Generator()
        generator.set_state(state)
        with Ahead(make, generator, LAST) as draws:
            assert [draws.take(step) for step in range(kept + 1, LAST + 1)] == expected[kept:]


def test_the_next_draw_is_made_while_the_step_computes():
    made = threading.Event()

    def told(step: int, generator: torch.Generator) -> int:
        if step == 2:
            made.set()
        return step

    with Ahead(told, seeded(), LAST) as draws:
        assert draws.take(1) == 1
        assert made.wait(30)
        assert draws.take(2) == 2


def test_an_error_is_that_of_its_step_and_the_thread_ends():
    def fails(step: int, generator: torch.Generator) -> int:
        if step == 3:
            raise ValueError("no picture of step 3")
        return step

    with Ahead(fails, seeded(), LAST) as draws:
        assert [draws.take(1), draws.take(2)] == [1, 2]
        with pytest.raises(ValueError, match="no picture of step 3"):
            draws.take(3)
    deadline = time.monotonic() + 30
    while any(thread.name.startswith("draws") for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.name.startswith("draws") for thread in threading.enumerate())


def test_a_draw_is_measured_by_one_of_the_problems(rng):
    patches = Patches([torch.rand(1, 1, 20, 20, generator=rng) for _ in range(2)], 16, ["a", "b"])
    choices = [problems.make("csmri", {"ratio": ratio}) for ratio in (0.2, 0.5)]
    drawn = [draw(patches, 2, choices, rng, penalized=penalized) for penalized in (True, False) * 8]
    assert {batch.problem.settings["ratio"] for batch in drawn} == {0.2, 0.5}
    assert [batch.noise is None for batch in drawn] == [False, True] * 8
    for batch in drawn:
        torch.testing.assert_close(batch.y, batch.operator.A(batch.x))
