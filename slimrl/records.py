"""The records that flow through the line; each stage returns a new one and never writes into an earlier one.

    Problem -> Completion -> Rollout -> Group -> Rows -> Batch

P problems per step, G completions per problem, B = P * G rows, L tokens, V vocabulary.
Log-probabilities are in nats, lengths in tokens, times in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

if TYPE_CHECKING:
    from torch import Tensor

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row of data that is left out.

    Example: Rejected("train.jsonl:7", "has no answer; add one", '{"question": "..."}')
    """

    where: str
    """`file:line`; of Parquet and the Hub, which have no lines, the name and the row, counted from 0."""
    reason: str
    """The mistake and the way to correct it, as the rest of a sentence that begins with the place."""
    row: str
    """The row as the file has it (of a table, as JSON), at most its first 2,000 characters; bytes that are not UTF-8 as \\xe9."""


class Answer(str):
    """A gold answer beside which others are right too. As a text it is the first of them.

    Example: Answer("7", ["seven"]) == "7", and a completion that answers `seven` is right.
    """

    others: tuple[str, ...]

    def __new__(cls, first: str, others: Sequence[str] = ()) -> Self:
        made = super().__new__(cls, first)
        made.others = tuple(others)
        return made

    def __reduce__(self) -> tuple[type[Answer], tuple[str, tuple[str, ...]]]:
        return type(self), (str(self), self.others)


def right_answers(answer: str) -> tuple[str, ...]:
    """All right answers of a problem, given its gold answer."""
    return (str(answer), *answer.others) if isinstance(answer, Answer) else (answer,)


Turns = tuple[tuple[str, str], ...]
"""Role (`system`, `user`, `assistant` or `tool`) and content of chat messages."""


def turns_of(messages: Iterable[Mapping[str, str]]) -> Turns:
    """Role and content of each message, as plain texts where they are of a class of somebody's own."""
    return tuple((str.__str__(message["role"]), str.__str__(message["content"])) for message in messages)


def policy_turns(turns: Turns) -> int:
    """The number of turns of the policy among what was said behind a prompt."""
    return sum(role == "assistant" for role, _ in turns)


TWIN = "/twin"
"""The end of the id of a problem with other numbers, behind that of its original (`slimrl/tasks/twins.py`)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with a checkable answer.

    Example: Problem("gsm8k/test/00000", "Janet's ducks lay 16 eggs ...", "18", "Janet sells ...", 2.0)
    """

    id: str
    """Stable across runs, so that evaluations can be paired and random draws repeated."""
    question: str
    answer: str
    """The gold answer as the data set writes it, "1,080" stays "1,080"; an `Answer` where several are right, and empty where
    the data has none.
    """
    solution: str = ""
    """The worked solution without the final answer line; empty where the data set has none."""
    difficulty: float = 0.0
    """Number of reasoning steps where it is known (arithmetic, GSM8K), the data set's own scale otherwise."""
    columns: Mapping[str, object] = field(default_factory=dict)
    """Every other field of the data row, handed to reward functions as TRL does."""
    turns: Turns = ()
    """The prompt of data that writes its own: earlier turns, the last of which is the question, and a system message that stands
    in the place of the task's. Empty where the question is all that is asked.
    """
    episode: Turns = ()
    """A demonstration of several turns behind the prompt, of the policy and of what answers it; `solution` is then of its last
    turn. Empty where the solution is one turn.
    """


@dataclass(frozen=True, slots=True)
class Completion:
    """Tokens that the sampler drew after a prompt; it knows nothing of rewards.

    Example: Completion(prompt_ids=(11, 12), token_ids=(7, 2), logprobs=(-0.1, -0.2), finish="stop")
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """[C] the stop token included when finish == "stop"."""
    logprobs: tuple[float, ...]
    """[C] nats, under softmax(logits / temperature): the distribution that was sampled from."""
    finish: Finish
    """"stop": a stop id was drawn, of an episode in its last turn; "length": the token budget ended it (truncated)."""
    given: tuple[bool, ...] = ()
    """[C] True at tokens that an environment wrote between the turns of an episode: they were not drawn, have 0 in `logprobs` and
    carry no loss. Empty where all tokens were drawn.
    """

    @property
    def drawn(self) -> int:
        """Number of tokens that were drawn."""
        return len(self.token_ids) - sum(self.given)

    @property
    def turns(self) -> int:
        """Number of turns: one, and one more behind each run of tokens that an environment wrote."""
        return 1 + sum(given and not next_one for given, next_one in pairwise(self.given))

    def last_turn(self) -> tuple[int, ...]:
        """The tokens behind the last that an environment wrote; all where it wrote none."""
        end = next((n for n, given in enumerate(reversed(self.given)) if given), len(self.token_ids))
        return self.token_ids[len(self.token_ids) - end :]

    def heard(self) -> tuple[int, ...]:
        """The tokens that an environment wrote between the last turn and the one before it; none where it wrote none."""
        end = len(self.token_ids) - len(self.last_turn())
        start = next((n + 1 for n in reversed(range(end)) if not self.given[n]), 0)
        return self.token_ids[start:end]


class ToolCall(NamedTuple):
    """A call of a tool by a policy, and what came of it.

    Example: ToolCall("price", "raised KeyError: 'plum' (shop.py:12 in price)")
    """

    tool: str
    """The function that was called; empty where the call was malformed, so that none was."""
    error: str = ""
    """Why it was answered with an error; empty where its result answered it."""


@dataclass(frozen=True, slots=True)
class Played:
    """An episode of several turns besides its tokens: what was said, and how it ended.

    Example: Played((("assistant", "6*7?"), ("tool", "42"), ("assistant", "#### 42")), score=1.0)
    """

    turns: Turns = ()
    """Everything that was said behind the prompt; empty where a completion is one turn."""
    score: float | None = None
    """The number that `score` of the environment returned, 0 of a class without it; None where it returned none."""
    failed: str = ""
    """Why the environment could not go on; empty where it did."""
    right: bool | None = None
    """The verdict where the score decides; None where the answer in the last turn does."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Further numbers that the environment gives, which are logged."""
    environment: object = None
    """The object of an episode of TRL's, which reward functions read in this process; None for any other."""
    rewards: tuple[float | None, ...] = ()
    """The reward of each turn that the environment has read, None where it gave none; a turn that was cut off has no entry. Empty
    where no turn has a reward.
    """
    calls: tuple[ToolCall, ...] | None = None
    """All calls of tools, in order; None where the environment has none, or calls them itself."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion and its reward.

    Example: Rollout(problem, completion, text="18", correct=True, scores={"correct": 1.0}, reward=1.0)
    """

    problem: Problem
    completion: Completion
    text: str
    """The completion decoded, without the stop token; of an episode its last turn."""
    correct: bool
    """The verdict of the task's strict checker, whatever the rewards are."""
    scores: Mapping[str, float]
    """By reward name, before weights, also of rewards that are not paid; one that could not score this row is absent."""
    reward: float
    """Weighted sum of the scores; 0 and without meaning when `unscorable` is not empty."""
    unscorable: str = ""
    """Why a reward could not score this row; empty when all did. Such a row carries no gradient and no baseline."""
    logged: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By reward name, the plain values that its function logged of this row, by column (TRL's `log_extra`)."""
    unmeasured: str = ""
    """Why a reward that is not paid could not score this row, which costs the row nothing; empty where none failed."""
    turns: Turns = ()
    """`Played.turns`."""
    turn_rewards: tuple[float | None, ...] = ()
    """`Played.rewards`, before the weight of `rewards.environment`."""
    environment_score: float | None = None
    """`Played.score`, likewise."""
    returns: tuple[float, ...] = ()
    """By turn of an episode whose turns are paid: the part of `reward` that was earned in this turn or later. The first is
    `reward`. Empty where no turn is paid, and the return of every turn is `reward`.
    """
    calls: tuple[ToolCall, ...] | None = None
    """`Played.calls`."""

    @property
    def turn_returns(self) -> tuple[float, ...]:
        """`returns`, written out."""
        return self.returns or (self.reward,) * self.completion.turns

    def sample(self, extracted: str) -> dict[str, Any]:
        """The rollout as screens and the report of `slimrl doctor` show it, with the answer that was `extracted`."""
        of_episodes = {"turns": self.turns, "turn_rewards": self.turn_rewards} if self.turns else {}
        return {
            "question": self.problem.question,
            "answer": self.problem.answer,
            "extracted": extracted,
            "reward": self.reward,
            "text": self.text,
            **of_episodes,
        }


@dataclass(frozen=True, slots=True)
class Group:
    """The G rollouts of one problem: the unit of the baseline and of dynamic sampling.

    Example: Group((right, wrong), step=0) with rewards 1 and 0 has advantages +0.71 and -0.71 under GRPO.
    """

    rollouts: tuple[Rollout, ...]
    step: int
    """The step whose policy sampled it; dynamic sampling may keep a surplus group for later steps."""
    metrics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Values that reward functions logged while they scored it, by name (TRL's `log_metric`)."""

    @property
    def problem(self) -> Problem:
        return self.rollouts[0].problem


@dataclass(frozen=True, slots=True)
class Rows:
    """The tokens of a step, one row per completion, padded right and shifted once: [B, L] tensors are aligned to `targets`.

    Masks come from lengths, never from token values.

    Example: the completion above is the row inputs [11, 12, 7], targets [12, 7, 2], completion_mask [0, 1, 1],
    sampler_logprobs [0, -0.1, -0.2], lengths 3, prompt_lengths 2.
    """

    inputs: Tensor
    """[B, L] long: prompt and completion without its last token."""
    targets: Tensor
    """[B, L] long: `inputs` one token later."""
    lengths: Tensor
    """[B] long: valid positions of a row."""
    prompt_lengths: Tensor
    """[B] long: tokens of the row's prompt; rows of a group have the same prompt."""
    completion_mask: Tensor
    """[B, L] bool: this target was sampled. Tokens of an environment, between two turns, were not."""
    loss_mask: Tensor
    """[B, L] bool: this target carries loss (sampled, scorable, not filtered as overlong)."""
    sampler_logprobs: Tensor
    """[B, L] float32 nats as the sampler returned them, 0 off the completion."""
    on_policy: Tensor
    """[B] bool: sampled by the policy as it is at the start of this step (false for carried surplus groups)."""
    groups: Tensor
    """[B] long: index of the row's group."""


@dataclass(frozen=True, slots=True)
class Batch(Rows):
    """Rows with everything that their loss needs, made once per step before any weight moves (`learner/targets.py`).

    All tensors are [B, L] float32 on the CPU and, except for `importance`, 0 off the completion. Where the settings have no
    use for one of them, it holds the neutral value that is given below.

    Example: for the row above, advantages [0, 0.71, 0.71], old_logprobs [0, -0.1, -0.2], importance [1, 1, 1].
    """

    advantages: Tensor
    """Reward units, or standard deviations when rewards are scaled; one number a row except with a critic, and one a turn where
    turns have credit of their own."""
    old_logprobs: Tensor
    """Nats under the policy before the step's first update, from which importance ratios are taken: the sampler's, unless
    these are not exact enough. With one update per step every ratio is 1 except in groups that were carried over, and only
    theirs are read.
    """
    reference_logprobs: Tensor
    """Nats under the reference; 0 without a KL penalty on sampled tokens."""
    importance: Tensor
    """Factors that correct for a sampler whose log-probabilities differ from the trainer's; 1 without a correction."""
    values: Tensor
    """The critic's values of the states from which tokens were drawn; 0 without a critic."""
    returns: Tensor
    """Targets of the critic: advantages plus values; 0 without a critic."""


TRACED = ("advantage", "gap", "log_ratio", "clipped", "entropy", "kl", "weight")
"""The numbers of a token that `Traced` keeps, in this order:

the advantage; the trainer's log-probability less the sampler's, nats; the logarithm of the importance ratio; 1 where the clip
acts on the token, 0 elsewhere; the entropy of the distribution that it was drawn from, nats; the KL penalty's estimate (of a
penalty in the reward, the log-ratio to the reference), nats; and the factor of the token's surrogate in the loss, where 1 is an
equal share for all tokens of the update.
"""


@dataclass(frozen=True, slots=True)
class Traced:
    """Copies of what the updates computed at the tokens of a step's first rows, for people; nothing trains on them.

    A row's numbers are those of the last update that computed it.
    """

    numbers: Tensor
    """[len(TRACED), R, L] float16, aligned with the targets; NaN where no update computed the number, and off the completion."""
    completion_mask: Tensor
    """[R, L] bool."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes that fit the machine's memory. They change speed and memory, and results by rounding only.

    Example: Plan(slots=64, microbatch_tokens=16384, recompute=False)
    """

    slots: int
    """Completions that are sampled at once."""
    microbatch_tokens: int
    """Packed tokens of one forward and backward pass at most; a single longer completion has a pass of its own."""
    recompute: bool
    """Whether activations are computed again in the backward pass (activation checkpointing)."""
    offload: bool = False
    """Whether the weights of the reference are in memory only while they are read."""
