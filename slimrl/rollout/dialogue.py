"""A conversation with a policy: one reply at a time, shown while it is decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from slimrl.errors import SettingsError
from slimrl.model.policy import Policy
from slimrl.model.prompts import Prompter
from slimrl.randomness import uniforms
from slimrl.rollout import Request
from slimrl.rollout.engine import RolloutEngine

Show = Callable[[str], object]


@dataclass
class Dialogue:
    """The turns so far. What is drawn depends on the seed, the number of the turn and the question."""

    policy: Policy
    prompter: Prompter
    instruction: str
    """System message; empty for none."""
    budget: Callable[[int], int]
    """Tokens of a reply at most, behind a prompt of so many."""
    temperature: float
    """0 takes the most probable tokens."""
    seed: int = 0
    kept: Callable[[str], str] = str
    """The part of a reply that stays in the conversation: all but its thinking."""
    turns: list[tuple[str, str]] = field(default_factory=list)
    """Questions and replies."""
    asked: int = 0

    def reset(self) -> None:
        """Forget all turns."""
        self.turns.clear()

    def ask(self, question: str, show: Show) -> str:
        """Show the reply piece by piece; returns a remark on it, empty for a reply that is whole.

        Raises SettingsError for a question that exceeds the context by itself, DataError where the template cannot render it.
        Whatever is raised, the turns are those of before.
        """
        ids, budget, forgotten = self._prompt(question)
        draws = uniforms(self.seed, "sample", self.asked, question, samples=1, positions=budget)
        self.asked += 1
        greedy = self.temperature == 0
        request = Request(ids, draws[:0], greedy=1) if greedy else Request(ids, draws)
        shown = Shown(self.policy, show)
        engine = RolloutEngine(self.policy, slots=1)
        engine.on_tokens = shown.more
        ((completion,),) = engine.generate([request], max_new_tokens=budget, temperature=self.temperature or 1.0)
        text = shown.end(completion.token_ids)
        self.turns = [*self.turns[forgotten:], (question, self.kept(text))]
        cut = f"cut off after {budget} tokens" if completion.finish == "length" else ""
        lost = f"the first {forgotten} turns no longer fit the context" if forgotten else ""
        empty = "" if text.strip() else "an empty reply"
        return "; ".join(remark for remark in (empty, cut, lost) if remark)

    def _prompt(self, question: str) -> tuple[tuple[int, ...], int, int]:
        """Prompt ids, the budget behind them, and the number of the first turns that are left out so that both fit."""
        for forgotten in range(len(self.turns) + 1):
            ids = self.prompter.ids(self._messages(self.turns[forgotten:], question))
            budget = self.budget(len(ids))
            if len(ids) + budget <= self.policy.context:
                return ids, budget, forgotten
        raise SettingsError(
            f"a prompt of {len(ids)} tokens and {budget} new ones exceed the model's context of {self.policy.context}; shorten "
            "the question or lower rollout.max_new_tokens"
        )

    def _messages(self, turns: Sequence[tuple[str, str]], question: str) -> list[dict[str, str]]:
        said = [("system", self.instruction)] if self.instruction else []
        for asked, reply in turns:
            said += [("user", asked), ("assistant", reply)]
        return [{"role": role, "content": content} for role, content in (*said, ("user", question))]


class Shown:
    """The part of a reply that is on the screen: never half a character, nor the beginning of a stop text."""

    def __init__(self, policy: Policy, show: Show) -> None:
        self._policy, self._show, self._text = policy, show, ""

    def more(self, ids: Sequence[int]) -> None:
        """Show what these ids add that cannot change any more."""
        self._extend(self._settled(self._policy.decode(ids)))

    def end(self, ids: Sequence[int]) -> str:
        """Show the rest; returns the whole text."""
        text = self._policy.decode(ids)
        self._extend(text)
        return text

    def _settled(self, text: str) -> str:
        text = text.rstrip("\ufffd")
        starts = {stop[:n] for stop in self._policy.stop_texts.texts for n in range(1, len(stop))}
        return text[: len(text) - max((len(start) for start in starts if text.endswith(start)), default=0)]

    def _extend(self, text: str) -> None:
        if text.startswith(self._text) and len(text) > len(self._text):
            self._show(text[len(self._text) :])
            self._text = text
