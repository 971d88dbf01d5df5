"""Every setting, once: the command line, YAML files and Python build the same frozen objects from here.

This module imports no torch, so settings can be checked and shown in a moment. settings.py reads them from files.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from slimrl.machine.signals import seconds_of

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _moment(value: str) -> str:
    """Refuse what is neither `auto` nor a local date or time in ISO's form."""
    if value != "auto":
        try:
            zone = datetime.fromisoformat(value).tzinfo
        except ValueError:
            raise ValueError(f"task.date={value!r} is no date; write it as 2026-11-25, or auto") from None
        if zone is not None:
            raise ValueError(f"task.date={value!r} has a time zone, and chat templates read local time; remove it")
    return value


Moment = Annotated[str, AfterValidator(_moment)]


class Section(BaseModel):
    """A frozen group of settings; the string under a field documents it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, strict=True, allow_inf_nan=False
    )


class ModelConfig(Section):
    path: str = "builtin"
    """Folder or Hub name of a transformers causal LM; `builtin` is the tiny model shipped with SlimRL."""
    revision: str = "main"
    """Hub revision (branch, tag or commit). For a local folder only with `trust_remote_code`: 40 digits that stand for its
    Python files, which the refusal of any others names."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random` draws new weights for the config found at `path` (for training from scratch with `slimrl sft`)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the module; `auto` is float32 on a CPU and bfloat16 on a GPU. Masters are always float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is a GPU where there is one."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; needs a `revision` that pins it: the full commit hash."""
    pickled_weights: bool = False
    """Take weights from `pytorch_model.bin`: tensors only, torch refuses a pickle that holds anything else."""


class ArithmeticConfig(Section):
    max_steps: Annotated[int, Field(ge=1, le=6)] = 3
    """Training and test problems take 1 to this many reasoning steps."""
    harder_steps: Annotated[int, Field(ge=1, le=8)] = 4
    """The harder split takes exactly this many steps; more than `max_steps`."""
    max_number: Annotated[int, Field(ge=10, le=999)] = 20
    """Largest number in a question, a solution or an answer."""

    @model_validator(mode="after")
    def _harder_is_harder(self) -> Self:
        if self.harder_steps <= self.max_steps:
            raise ValueError(
                f"harder_steps ({self.harder_steps}) must exceed max_steps ({self.max_steps}); raise harder_steps"
            )
        return self


class TaskConfig(Section):
    name: Literal["arithmetic", "gsm8k", "aime", "math", "svamp", "jsonl"] = "arithmetic"
    """What is asked: `arithmetic` is built in; the others read local files or the Hub; `jsonl` any file of yours."""
    path: str = ""
    """Local file of training problems (JSONL or JSON); empty: the Hub (not for `jsonl`)."""
    test_path: str = ""
    """Local file of held-out problems; empty: the Hub's test split, or, with a local `path`, about
    a tenth of its questions, chosen by a hash of the question: the order of the file does not matter, and rows stay on their
    side when others are added."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`error`: a row that is malformed, repeated, both trained on and held out, or changed by the chat template ends the run;
    `skip` leaves it out."""
    style: Literal["hashes", "boxed", "tags", "answer"] = "hashes"
    """How an answer must be written: `#### 72`, `\\boxed{72}`, the case study's tags, or `Answer: 72`."""
    instruction: str = "auto"
    """The system message; empty sends none. `auto`: what `slimrl sft` taught the model with, else the style's own."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """`chat`: the tokenizer's chat template; `plain`: "Question: ... Answer:"; `auto`: chat where there is one."""
    template_arguments: dict[str, bool | int | float | str] = {}
    """What the chat template is given beside the messages, as `{enable_thinking: false}` for Qwen3."""
    date: Moment = "auto"
    """What a chat template takes for today, with or without a time of day (2026-11-25T09:30:00). `auto`: the moment at which the
    run or the study begins, which stays when it is resumed or evaluated later."""
    checker: Literal["numeric", "symbolic"] = "numeric"
    """`numeric`: exact fractions; `symbolic`: LaTeX through math-verify (the extra `math`)."""
    arithmetic: ArithmeticConfig = ArithmeticConfig()
    """Shape of the built-in task's problems."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name == "jsonl" and not self.path:
            raise ValueError("task.name=jsonl needs task.path=FILE.jsonl with fields question and answer")
        if self.name == "arithmetic" and (self.path or self.test_path):
            raise ValueError("task.name=arithmetic makes its own problems; remove task.path, or set task.name=jsonl")
        if self.name == "arithmetic" and self.on_bad_row != "error":
            raise ValueError("task.on_bad_row has no effect with task.name=arithmetic, which reads no rows; remove it")
        if self.name != "arithmetic" and self.arithmetic != ArithmeticConfig():
            raise ValueError(f"task.arithmetic has no effect with task.name={self.name}; remove it")
        return self


class RolloutConfig(Section):
    problems: Count = 32
    """P: problems per step."""
    group_size: Count = 8
    """G: completions per problem; the baseline is taken within them."""
    max_new_tokens: Count | Literal["auto"] = "auto"
    """Token budget of a completion, in training and in evaluation. `auto`: by task and model (64 for the built-in model, 512
    for GSM8K, at most what the context leaves; docs/defaults.md), shown when the run begins."""
    temperature: Positive = 1.0
    """Log-probabilities are of softmax(logits / temperature), the distribution that was sampled."""
    top_p: float = 1.0
    """Must stay 1: a truncated support makes importance ratios wrong (huggingface/trl#6789)."""
    top_k: int = 0
    """Must stay 0 (off), for the same reason."""
    compile: bool = False
    """Decode steps through torch.compile: about a minute at the start (a C++ compiler on a CPU), then a third faster."""
    slots: Count | Literal["auto"] = "auto"
    """Completions decoded at once; `auto`: all of a step, as far as memory allows. Other slots round otherwise, which now
    and then decides a draw (docs/reliability.md, Rounding)."""

    @property
    def budget(self) -> int:
        """`max_new_tokens` as a number, which it is wherever a run has begun (slimrl/config/defaults.py)."""
        assert self.max_new_tokens != "auto"
        return self.max_new_tokens

    @model_validator(mode="after")
    def _full_support(self) -> Self:
        if self.top_p != 1.0:
            raise ValueError(f"rollout.top_p={self.top_p} would train on another distribution than it samples; set 1.0")
        if self.top_k != 0:
            raise ValueError(f"rollout.top_k={self.top_k} would train on another distribution than it samples; set 0")
        return self


class CustomReward(Section):
    """A reward function of yours, named `file.py:function`, with TRL's signature."""

    weight: float = 1.0
    """Factor before the sum."""
    low: float
    """Lowest value it can return."""
    high: float
    """Highest value it can return; the gold answer must earn it."""
    completions: Literal["text", "messages"] = "text"
    """Whether it takes strings or, as TRL's conversational data sets, lists of {"role", "content"}."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


class RewardsConfig(Section):
    correct: float = 1.0
    """Weight of: 1 when the strict answer equals the gold answer, else 0."""
    format: float = 0.0
    """Weight of: 1 when the completion has the required form, else 0."""
    match_format_exactly: float = 0.0
    """Weight of the case study's exact format reward (0 or 3 points; needs task.style=tags)."""
    match_format_approximately: float = 0.0
    """Weight of the case study's tag counts (-2 to 2 points; needs task.style=tags)."""
    check_answer: float = 0.0
    """Weight of the case study's tiered answer reward (-1 to 3 points; needs task.style=tags)."""
    check_numbers: float = 0.0
    """Weight of the case study's number reward (0 or 1.5 points; needs task.style=tags)."""
    as_published: bool = False
    """Use the case study's four functions with their published defects (docs/techniques.md lists them)."""
    soft_overlong: NonNegative = 0.0
    """Weight of DAPO's soft overlong punishment, -1 to 0, added once to the sum (arXiv:2503.14476, eq. 13). DAPO pays 1 and -1,
    so that the punishment is at most half of what right and wrong differ by; beside a reward of 1 and 0 that is 0.5."""
    zero_truncated: bool = False
    """A truncated completion is paid 0, whatever it would have earned; rewards that can fall below 0 then favour it."""
    overlong_buffer: Count | Literal["auto"] = "auto"
    """Tokens before the budget at which the punishment begins (L_cache in DAPO); `auto`: a fifth of the budget, as there."""
    custom: dict[str, CustomReward] = {}
    """Your own functions by `file.py:function`, each with its bounds `low` and `high`, and with `weight` (1) and `completions`
    (`text`) where these differ."""
    workers: CountOrZero | Literal["auto"] = "auto"
    """Processes that score groups while others are still generated; 0 scores in this one. What is paid is the same. `auto`: a
    few where there are functions of your own, none where all is built in."""
    deadline: Positive = 10.0
    """Seconds that a function of your own may take for a group before its worker is killed and the group is unscorable."""
    memory: Positive = 4.0
    """GiB that a worker may take."""
    unscorable_limit: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The run stops where a larger share of the completions of 20 steps was unscorable; 1: never."""
    gold_check: Literal["refuse", "report"] = "refuse"
    """What happens when a gold answer cannot earn the maximum: refuse to start, or only report."""

    def buffer(self, max_new_tokens: int) -> int:
        """The overlong buffer in tokens."""
        return max(1, max_new_tokens // 5) if self.overlong_buffer == "auto" else self.overlong_buffer

    def check_buffer(self, max_new_tokens: int) -> None:
        """Raises ValueError for a buffer that is larger than the budget."""
        if self.soft_overlong and self.buffer(max_new_tokens) > max_new_tokens:
            raise ValueError(
                f"rewards.overlong_buffer={self.overlong_buffer} exceeds rollout.max_new_tokens={max_new_tokens}; lower it"
            )

    @property
    def custom_paid(self) -> bool:
        """Whether a function of the user's own is paid."""
        return any(custom.weight for custom in self.custom.values())

    @model_validator(mode="after")
    def _no_dead_switch(self) -> Self:
        for key in ("deadline", "memory"):
            here = self.workers == 0 or not self.custom_paid
            if here and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"rewards.{key} acts on rewards.custom in workers, and there are none; remove it")
        return self

    @model_validator(mode="after")
    def _something_is_paid(self) -> Self:
        case_study = (
            self.match_format_exactly, self.match_format_approximately, self.check_answer, self.check_numbers
        )  # fmt: skip
        if not any((self.correct, self.format, *case_study, *(c.weight for c in self.custom.values()))):
            raise ValueError("every reward has weight 0; set rewards.correct=1 or another one")
        if self.zero_truncated and self.soft_overlong:
            raise ValueError(
                "rewards.zero_truncated pays a completion that is cut off more than rewards.soft_overlong pays one that "
                "nearly is; set one"
            )
        if self.as_published and not any(case_study):
            raise ValueError(
                "rewards.as_published has no effect without one of the case study's four rewards; remove it"
            )
        return self


class GklConfig(Section):
    """The parts of the generalized KL divergence (arXiv:2503.08038), for algorithm.kl_estimator=gkl."""

    mse: NonNegative = 1.0
    """Factor of half the weighted variance of the log-ratio."""
    cross_entropy: NonNegative = 1.0
    """Factor of the cross-entropy with the reference as soft labels."""
    weights: Literal["policy", "reference", "global"] = "policy"
    """Of the variance: the policy's probabilities, the reference's, or the reference's mean over the step's tokens."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Exponent of reference and global weights; below 1 they are smoother."""

    @model_validator(mode="after")
    def _no_dead_switch(self) -> Self:
        if not self.mse and not self.cross_entropy:
            raise ValueError("algorithm.gkl.mse=0 and cross_entropy=0 leave nothing; set one of them")
        if self.gamma != 1 and (self.weights == "policy" or not self.mse):
            raise ValueError("algorithm.gkl.gamma acts on reference and global weights of the variance; remove it")
        if self.weights != "policy" and not self.mse:
            raise ValueError("algorithm.gkl.weights has no effect with algorithm.gkl.mse=0; remove it")
        return self


class AlgorithmConfig(Section):
    baseline: Literal["group_mean", "leave_one_out", "none", "critic"] = "group_mean"
    """What a reward is compared with: the group's mean, the mean of its others (RLOO), nothing, or a critic (PPO)."""
    scale_rewards: Literal["group", "batch", "none", "mean"] = "group"
    """Advantages are divided by the group's or the batch's standard deviation (+1e-4), by nothing (Dr. GRPO), or by the
    group's mean reward (MaxRL)."""
    normalize_components: bool = False
    """Each reward is normalised within its group before they are summed, then the sum over the batch (GDPO)."""
    surrogate: Literal["clip", "reinforce", "gpg", "cispo", "gspo", "gspo_token", "sapo"] = "clip"
    """What is differentiated; docs/techniques.md has the equations."""
    clip_low: Annotated[float, Field(ge=0, le=1)] = 0.2
    """The importance ratio is clipped at 1 - clip_low."""
    clip_high: NonNegative = 0.2
    """The importance ratio is clipped at 1 + clip_high; DAPO's clip-higher is 0.28."""
    dual_clip: NonNegative = 0.0
    """What a token with a negative advantage costs is at most this many times the advantage (3 is usual); 0: no bound."""
    sapo_up: Positive = 1.0
    """Temperature of SAPO's gate where the advantage is positive."""
    sapo_down: Positive = 1.05
    """Temperature of SAPO's gate elsewhere."""
    aggregation: Literal[
        "sequence_mean", "token_mean", "prompt_token_mean", "fixed_length", "microbatch_token_mean"
    ] = "sequence_mean"
    """GRPO, DAPO over the batch, DAPO's equation to the letter, Dr. GRPO; the last one only replicates TRL's bnpo."""
    kl_coef: NonNegative = 0.04
    """Weight of the KL penalty to the initial model; 0 loads no reference at all."""
    kl_estimator: Literal["k1", "k2", "k3", "k3_k2", "reverse", "forward", "gkl"] = "k3"
    """Of the sampled token (Schulman 2020), or exact over the whole vocabulary: KL either way, or the generalized KL."""
    kl_place: Literal["loss", "reward"] = "loss"
    """A term of the loss, or subtracted from the reward (k1 of the sampled tokens)."""
    gkl: GklConfig = GklConfig()
    """Parts of the generalized KL."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy, which is raised."""
    entropy_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only this share of the tokens, those of highest entropy, carries the policy gradient (arXiv:2506.01939)."""
    importance: Literal["off", "truncate", "mask"] = "off"
    """Correction for a sampler whose log-probabilities differ from the trainer's: weights up to importance_cap, or none
    outside of it."""
    importance_level: Literal["token", "sequence"] = "token"
    """Whether a weight is a token's or a whole completion's."""
    importance_cap: Annotated[float, Field(gt=1)] = 2.0
    """Largest weight; `mask` also drops those below its inverse."""
    overlong_filtering: bool = False
    """Truncated completions carry no loss; they still count in their group's baseline and in denominators."""
    dynamic_sampling: Literal["off", "filter", "refill", "replace"] = "off"
    """Groups without a signal: kept, dropped, replaced by groups of further problems (DAPO), or by copies of groups that
    have one (POLARIS)."""
    signal: Literal["correct", "reward"] = "correct"
    """What must differ in a group: correctness (DAPO's own) or reward (by more than 1e-6)."""
    refill_budget: Annotated[float, Field(ge=1)] = 3.0
    """Completions sampled for one step at most, in multiples of problems x group_size; then it trains on what it has."""
    refill_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Refill until this share of the groups carries a signal and keep the rest as they are (GPG's threshold)."""

    @model_validator(mode="after")
    def _no_dead_switch(self) -> Self:
        for key, needed, acts in (
            ("signal", "dynamic_sampling=filter, refill or replace", self.dynamic_sampling != "off"),
            ("refill_budget", "dynamic_sampling=refill", self.dynamic_sampling == "refill"),
            ("refill_share", "dynamic_sampling=refill", self.dynamic_sampling == "refill"),
            ("kl_estimator", "kl_coef above 0", self.kl_coef > 0),
            ("kl_place", "kl_coef above 0", self.kl_coef > 0),
            ("gkl", "kl_estimator=gkl", self.kl_estimator == "gkl"),
            ("dual_clip", "surrogate=clip", self.surrogate == "clip"),
            ("sapo_up", "surrogate=sapo", self.surrogate == "sapo"),
            ("sapo_down", "surrogate=sapo", self.surrogate == "sapo"),
            ("clip_low", "a surrogate with a clip", self.surrogate in ("clip", "cispo", "gspo", "gspo_token")),
            ("clip_high", "a surrogate with a clip", self.surrogate in ("clip", "cispo", "gspo", "gspo_token")),
            ("importance_level", "importance=truncate or mask", self.importance != "off"),
            ("importance_cap", "importance=truncate or mask", self.importance != "off"),
        ):
            if not acts and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"algorithm.{key} has no effect without algorithm.{needed}; remove one")
        token_weighed = self.importance != "off" and self.importance_level == "token"
        if self.dual_clip and self.dual_clip <= 1:
            raise ValueError(
                f"algorithm.dual_clip={self.dual_clip} would cut what is not clipped; set more than 1, or 0"
            )
        if self.kl_place == "reward" and self.scale_rewards not in ("none", "batch"):
            raise ValueError(
                f"algorithm.kl_place=reward with scale_rewards={self.scale_rewards} would blow up the penalty where all rewards "
                "of a group are equal; set algorithm.scale_rewards=none or batch"
            )
        if self.surrogate == "gpg" and self.baseline not in ("group_mean", "leave_one_out"):
            raise ValueError(
                "algorithm.surrogate=gpg scales by the groups whose advantages are all 0, which needs "
                "algorithm.baseline=group_mean or leave_one_out"
            )
        if self.surrogate == "gspo" and (self.entropy_share < 1 or self.baseline == "critic" or token_weighed):
            raise ValueError(
                "algorithm.surrogate=gspo gives every token of a completion one gradient, so nothing can weigh single tokens "
                "(entropy_share, a critic, importance_level=token); set algorithm.surrogate=gspo_token"
            )
        if self.kl_place == "reward" and self.kl_estimator != "k1":
            raise ValueError("algorithm.kl_place=reward subtracts k1; set algorithm.kl_estimator=k1")
        if self.normalize_components and (
            self.scale_rewards != "group" or self.baseline not in ("group_mean", "leave_one_out")
        ):
            raise ValueError(
                "algorithm.normalize_components divides each reward by its group's spread; leave scale_rewards=group and "
                "baseline=group_mean or leave_one_out"
            )
        if self.normalize_components and self.kl_coef and self.kl_place == "reward":
            raise ValueError(
                "algorithm.normalize_components takes rewards apart, and kl_place=reward adds to their sum; set one"
            )
        if self.baseline == "critic" and self.scale_rewards != "none":
            raise ValueError("algorithm.baseline=critic knows no groups; set algorithm.scale_rewards=none")
        return self


class CriticConfig(Section):
    """PPO's value function, for algorithm.baseline=critic."""

    learning_rate: Positive | Literal["auto"] = "auto"
    """Peak rate of the critic's own AdamW; `auto`: five times the policy's."""
    discount: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of later rewards (gamma)."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Weight of longer returns in the advantage; 1 (as verl) is the return less the value. 0.95 (as TRL) lets a reward at the
    end reach only about the last 90 tokens until the critic has learned."""
    value_clip: Positive = 0.2
    """A value may leave that of the rollout by no more than this without paying for it."""
    whiten: bool = True
    """Advantages are centred and scaled over the tokens of a step."""


class OptimizerConfig(Section):
    learning_rate: Positive | Literal["auto"] = "auto"
    """Peak rate of AdamW. `auto`: by model size (2e-4 for the built-in model, 1e-6 from 50 million parameters on, 2e-5 there in
    slimrl sft; docs/defaults.md), shown when the run begins."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the rate after warm-up; linear and cosine end at 0."""
    warmup_steps: CountOrZero = 0
    """Optimizer updates over which the rate rises linearly from 0."""
    beta1: Share = 0.9
    """Decay of AdamW's first moment."""
    beta2: Share = 0.99
    """Decay of AdamW's second moment."""
    epsilon: Positive = 1e-8
    """AdamW's denominator constant."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay, on matrices only."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this global norm."""
    minibatches: Count = 1
    """Optimizer updates per pass over the rollout batch; whole groups stay together."""
    epochs: Count = 1
    """Passes over a rollout batch."""
    microbatch_tokens: Count | Literal["auto"] = "auto"
    """Tokens in one forward pass, a shared prompt counted once; `auto`: up to 16,384, as far as memory allows. The
    gradient depends on it by no more than rounding."""
    activation_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Compute layers again in the backward pass instead of keeping what they computed; `auto`: where memory is short."""

    @property
    def peak_rate(self) -> float:
        """`learning_rate` as a number, which it is wherever a run has begun (slimrl/config/defaults.py)."""
        assert self.learning_rate != "auto"
        return self.learning_rate


class EvaluationConfig(Section):
    problems: Count = 400
    """Held-out problems; the same ones before, during and after."""
    samples: Count = 1
    """Sampled completions per held-out problem, at the training temperature."""
    greedy: bool = True
    """Also decode greedily."""
    harder_problems: CountOrZero = 200
    """Problems of the harder split, where the task has one, evaluated before and after; 0 is off."""
    every: CountOrZero = 0
    """Evaluate after every this many steps as well; 0: only before and after."""


class CurriculumConfig(Section):
    order: Literal["shuffled", "easy_first", "learnability"] = "shuffled"
    """Every problem alike; by known difficulty or number of steps, easiest first; or by how much there is to learn, p(1-p)
    with p the success rate so far. Evaluation is never weighted."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Weight of every problem beside p(1-p), so that none is forgotten."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    """What earlier successes and failures of a problem still count when it is seen again."""

    @model_validator(mode="after")
    def _no_dead_switch(self) -> Self:
        for key in ("floor", "decay"):
            if self.order != "learnability" and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"curriculum.{key} has no effect without curriculum.order=learnability; remove one")
        return self


class LogConfig(Section):
    samples_every: CountOrZero = 10
    """Show a few completions after every this many steps; 0 is off."""
    samples: Count = 2
    """How many to show."""
    rollouts: bool = True
    """Store every completion with its scores under rollouts/."""
    model: bool = True
    """Store the trained model under final/."""
    profile: bool = False
    """Measure where each step's time goes, and which share of this machine's limits it reaches."""


class SftConfig(Section):
    batch_size: Count = 64
    """Solutions per optimizer update."""
    mixture: dict[str, NonNegative] = {"solution": 1.0}
    """Shares of the task's demonstrators; `solution` is the right worked solution, the built-in task has others."""
    show_every: Count = 50
    """Report the loss after every this many updates."""


class CheckpointConfig(Section):
    every: CountOrZero = 10
    """Steps from one checkpoint to the next; 0: only when the run is told to stop."""
    keep: Count = 2
    """Newest checkpoints that stay while the run goes on; one is written before another is removed."""
    keep_best: bool = True
    """The checkpoint with the best held-out accuracy stays as well, and outlives the run; needs evaluation.every."""


class RootConfig(Section):
    """What `train` and `sft` have in common."""

    name: Annotated[str, Field(max_length=64, pattern=r"^([a-z0-9][a-z0-9._-]*)?$")] = ""
    """Name of the run, lower case; empty: made from the task and the time."""
    output: str = "runs"
    """Folder in which run directories are made."""
    seed: CountOrZero = 0
    """Decides problems and draws; nothing else is random."""
    steps: Count = 30
    """Rollout batches (train) or optimizer updates (sft)."""
    memory_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Part of the device's memory that `auto` settings may plan with; less than 1 where runs share a device."""
    model: ModelConfig = ModelConfig()
    """The policy."""
    task: TaskConfig = TaskConfig()
    """What is asked and what counts as right."""
    rollout: RolloutConfig = RolloutConfig()
    """How completions are sampled."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and how a batch is cut for it."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out measurement."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """What a run that was interrupted goes on from."""
    max_time: str = ""
    """Time after which the run stops by itself as at SIGTERM, with a checkpoint, like 3h50m or 90s; empty: never."""

    @model_validator(mode="after")
    def _time_is_one(self) -> Self:
        if self.max_time.isdigit():
            raise ValueError(
                f"max_time={self.max_time} has no unit; write {self.max_time}s, {self.max_time}m or {self.max_time}h"
            )
        try:
            seconds_of(self.max_time)
        except ValueError as error:
            raise ValueError(f"max_time: {error}; write it so, or leave it empty") from None
        return self

    @model_validator(mode="after")
    def _harder_exists(self) -> Self:
        default = type(self.evaluation).model_fields["harder_problems"].default
        if self.task.name != "arithmetic" and self.evaluation.harder_problems not in (0, default):
            raise ValueError(
                f"evaluation.harder_problems has no effect: task {self.task.name} has no harder split; remove it"
            )
        return self

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        pinned = len(self.model.revision) == 40 and all(c in "0123456789abcdef" for c in self.model.revision)
        if self.model.trust_remote_code and not pinned:
            raise ValueError(
                "model.trust_remote_code=true needs model.revision=<40-digit commit>, so that code is pinned; for a local folder "
                "give any 40 digits, and the right ones are named"
            )
        return self


class TrainConfig(RootConfig):
    """`slimrl train`: reinforcement learning from verifiable rewards."""

    max_tokens: CountOrZero = 0
    """Sampled tokens, for comparisons at equal cost: the run ends with the step that comes nearest; 0: `steps` decides."""
    rewards: RewardsConfig = RewardsConfig()
    """What is paid."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    """The policy gradient; a method is a set of these."""
    critic: CriticConfig = CriticConfig()
    """PPO's value function."""
    curriculum: CurriculumConfig = CurriculumConfig()
    """Which problems come when."""
    log: LogConfig = LogConfig()
    """What is shown and stored on the way."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        split_matters = self.algorithm.aggregation == "microbatch_token_mean"
        if split_matters and self.optimizer.microbatch_tokens == "auto":
            raise ValueError(
                "algorithm.aggregation=microbatch_token_mean depends on the split, which microbatch_tokens=auto leaves to "
                "the machine; set optimizer.microbatch_tokens to a number"
            )
        if self.optimizer.minibatches > self.rollout.problems:
            raise ValueError(
                f"optimizer.minibatches={self.optimizer.minibatches} exceeds rollout.problems={self.rollout.problems}, "
                "and groups are never split; lower it"
            )
        if self.rollout.max_new_tokens != "auto":
            self.rewards.check_buffer(self.rollout.max_new_tokens)
        unset = RewardsConfig.model_fields["overlong_buffer"].default
        if not self.rewards.soft_overlong and self.rewards.overlong_buffer != unset:
            raise ValueError("rewards.overlong_buffer has no effect with rewards.soft_overlong=0; remove one")
        if self.algorithm.baseline != "critic" and self.critic != CriticConfig():
            raise ValueError("the section critic has no effect without algorithm.baseline=critic; remove it")
        if self.rollout.group_size < 2 and self.algorithm.baseline in ("group_mean", "leave_one_out"):
            raise ValueError(
                f"rollout.group_size=1 has no group baseline, every advantage is 0; set 2 or more, or another "
                f"algorithm.baseline than {self.algorithm.baseline}"
            )
        if self.max_tokens and self.curriculum.order == "easy_first":
            raise ValueError(
                f"max_tokens={self.max_tokens} ends the run at a step that is not known before, and curriculum.order=easy_first "
                "moves over steps; set one"
            )
        if self.max_tokens and self.optimizer.schedule != "constant":
            raise ValueError(
                f"max_tokens={self.max_tokens} ends the run at a step that is not known before, so "
                f"optimizer.schedule={self.optimizer.schedule} would end anywhere; set optimizer.schedule=constant"
            )
        if self.model.init == "random":
            raise ValueError(
                "model.init=random starts from noise, where no completion earns a reward; use slimrl sft first"
            )
        return self


UNREAD_BY_SFT = {
    "rollout": ("problems", "group_size"),
    "optimizer": ("minibatches", "epochs"),
    "evaluation": ("every",),
    "checkpoint": ("keep_best",),
}
"""Settings of shared sections that only training reads: dropped from files, which both verbs share, refused as overrides."""


class SftRunConfig(RootConfig):
    """`slimrl sft`: warm start on a task's worked solutions, loss on the solution only."""

    sft: SftConfig = SftConfig()
    """The imitation."""

    @model_validator(mode="after")
    def _no_dead_switch(self) -> Self:
        for section, keys in UNREAD_BY_SFT.items():
            chosen = getattr(self, section)
            for key in keys:
                if getattr(chosen, key) != type(chosen).model_fields[key].default:
                    raise ValueError(f"{section}.{key} has no effect in slimrl sft; remove it")
        if not sum(self.sft.mixture.values()):
            raise ValueError("sft.mixture has no positive share; set sft.mixture.solution=1")
        return self
