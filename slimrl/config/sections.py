"""The sections of settings other than the task, rewards and the algorithm: model, rollout, optimizer, evaluation and the rest."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from slimrl.config.base import Count, CountOrZero, Needs, NonNegative, Positive, Section, Share
from slimrl.terms import Engine, Schedule, TokenLog, Tracker


def _no_empty_text(texts: list[str]) -> list[str]:
    if "" in texts:
        raise ValueError("rollout.stop holds an empty text, which would end every completion; remove it")
    return texts


def _as_list(names: object) -> object:
    """The names of `wandb, mlflow` as a list; a list, and anything that is no text, as it is."""
    return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else names


class LoraConfig(Section):
    prefix = "model.lora"

    rank: CountOrZero = 0
    """Of the two factors that are trained beside every adapted weight, which is frozen; 0 trains the weights themselves."""
    alpha: Annotated[Count, Needs("rank")] = 32
    """What the factors add is multiplied by alpha / rank."""
    targets: Annotated[Literal["all-linear"] | list[str], Needs("rank")] = "all-linear"
    """The adapted layers: all linear ones but the head, or those of these names, as `[q_proj, v_proj]`."""


class ModelConfig(Section):
    path: str = "builtin"
    """Folder or Hub name of a transformers causal LM; `builtin` and, for the environments `calculator` and
    `guess`, `builtin-tools` are tiny models shipped with SlimRL."""
    revision: str = "main"
    """Hub revision (branch, tag or commit). For a local folder only with `trust_remote_code`: 40 digits that stand for its
    Python files, which the refusal of any others names."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random` draws new weights for the config found at `path` (for training from scratch with `slimrl sft`)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the module; `auto` is bfloat16 on a GPU, and on a CPU that multiplies it (AVX512-BF16, with a C++ compiler)
    for models of hidden size 512 and more, else float32. Masters are always float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is a GPU where there is one."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; needs a `revision` that pins it: the full commit hash."""
    pickled_weights: bool = False
    """Take weights from `pytorch_model.bin`: tensors only, torch refuses a pickle that holds anything else."""
    lora: LoraConfig = LoraConfig()
    """Train an adapter of low rank (LoRA, arXiv:2106.09685) in place of the weights. A `path` that is an adapter is trained on as
    it is."""
    quantize: Literal["none", "4bit", "8bit"] = "none"
    """Hold the weights beside an adapter in 4 bits (NF4 with quantized scales: QLoRA, arXiv:2305.14314) or in 8; they are widened
    for every product. Needs a GPU and bitsandbytes (the extra `quantize`). `final/` is a plain model all the same."""

    @model_validator(mode="after")
    def _weights_beside_an_adapter_are_good(self) -> Self:
        for key, given in (("lora", self.lora.rank), ("quantize", self.quantize != "none")):
            if given and self.init == "random":
                raise ValueError(f"model.init=random draws weights that model.{key} would never train; remove one")
        return self


class RolloutConfig(Section):
    engine: Engine = "builtin"
    """Sampler of completions: `builtin` is the trained module itself; `vllm` gives the weights to vLLM after every step, for
    models above 4B with an adapter on a GPU (docs/scale.md says what it costs). Needs vLLM (the extra `vllm`)."""
    problems: Count = 32
    """P: problems per step."""
    group_size: Count = 8
    """G: completions per problem; the baseline is taken within them."""
    max_new_tokens: Count | Literal["auto"] = "auto"
    """Token budget of a completion, in training and in evaluation. `auto`: by task and model (64 for the built-in model, 512
    for GSM8K, at most what the context leaves; docs/defaults.md), shown when the run begins."""
    stop: Annotated[list[str], AfterValidator(_no_empty_text)] | Literal["auto"] = "auto"
    """Texts that end a completion, in addition to the model's stop tokens, and are no part of its text; one that is a special
    token, as `<|im_end|>`, becomes another stop token. `auto`: those with which SlimRL trained the model, else a new line
    with `Question:` where prompts are plain and the tokenizer's tokens are bytes, and none with a chat template."""
    temperature: Positive = 1.0
    """Log-probabilities are of softmax(logits / temperature), the distribution that was sampled."""
    top_p: float = 1.0
    """Must stay 1: a truncated support makes importance ratios wrong (huggingface/trl#6789)."""
    top_k: int = 0
    """Must stay 0 (off), for the same reason."""
    compile: bool = False
    """Decode steps through torch.compile: about a minute at the start (a C++ compiler on a CPU), then a third faster."""
    slots: Count | Literal["auto"] = "auto"
    """Completions decoded at once; `auto`: all of a step or of an evaluation, as far as memory allows. Other slots round
    otherwise, which now and then decides a draw (docs/reliability.md, Rounding)."""

    @property
    def budget(self) -> int:
        """`max_new_tokens` as a number, which it is wherever a run has begun (slimrl/config/defaults.py)."""
        assert self.max_new_tokens != "auto"
        return self.max_new_tokens

    @model_validator(mode="after")
    def _full_support(self) -> Self:
        for key, value, off in (("top_p", self.top_p, 1.0), ("top_k", self.top_k, 0)):
            if value != off:
                raise ValueError(
                    f"rollout.{key}={value} would train on another distribution than it samples; set {off}"
                )
        return self

    @model_validator(mode="after")
    def _engine_takes_them(self) -> Self:
        if self.engine == "vllm" and self.compile:
            raise ValueError("rollout.compile has no effect with rollout.engine=vllm; remove it")
        return self


class OptimizerConfig(Section):
    learning_rate: Positive | Literal["auto"] = "auto"
    """Peak rate of AdamW. `auto`: by model size (2e-4 for the built-in model, 1e-5 from 5 million parameters on, 1e-6 from 250
    million on; more for an adapter and in slimrl sft; docs/defaults.md), shown when the run begins."""
    schedule: Schedule = "constant"
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
    reference_offload: Literal["auto", "on", "off"] = "auto"
    """Have the weights of the KL penalty's reference in memory only while they are read, before there are gradients: on a CPU
    they lie in a file without a name under `output`, on a GPU in the host's memory. `auto`: where memory is short otherwise."""
    sharded: bool = False
    """Divide AdamW's moments and the float32 master weights among the devices of the run. Each keeps all weights and gradients.
    No number changes by it. `parallel=fsdp` divides them too."""

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
    twins: CountOrZero = 0
    """Twins of so many test problems, which have other numbers (built-in task and SVAMP): a model that knows a problem but
    cannot do it fails on its twin; 0 is off."""
    every: CountOrZero = 0
    """Evaluate after every so many steps as well; 0: only before and after."""


class CurriculumConfig(Section):
    prefix = "curriculum"

    order: Literal["shuffled", "easy_first", "learnability"] = "shuffled"
    """All problems with equal weight; by known difficulty or number of steps, easiest first; or by how much there is to learn,
    p(1-p) with p the success rate so far. Evaluation is never weighted."""
    floor: Annotated[float, Field(ge=0, le=1), Needs("order", "learnability")] = 0.05
    """Weight of every problem in addition to p(1-p), so that none is forgotten."""
    decay: Annotated[float, Field(gt=0, le=1), Needs("order", "learnability")] = 0.9
    """Factor on earlier successes and failures of a problem each time it is seen again."""


class LogConfig(Section):
    samples_every: CountOrZero = 10
    """Show a few completions after every so many steps; 0 is off."""
    samples: Count = 2
    """Completions shown each time."""
    rollouts: bool = True
    """Store every completion with its scores under rollouts/."""
    tokens: TokenLog = "samples"
    """Completions of which rollouts/ has the numbers of every token too (log-probabilities, ratio, entropy, KL, weight in the
    loss), for the run's page: `samples` are those of the first four problems of each step (docs/run-page.md)."""
    model: bool = True
    """Store the trained model under final/."""
    profile: bool = False
    """Measure where each step's time goes, and which share of this machine's limits it reaches."""
    to: Annotated[list[Tracker], BeforeValidator(_as_list)] = Field(default=[])
    """Trackers that get the numbers of the run as well, as `[wandb, tensorboard]`; each is an extra of that name. A run without
    any sends nothing anywhere (docs/trackers.md)."""
    project: str = "slimrl"
    """Name of the trackers' project (MLflow's experiment) that holds the run."""
    group: str = ""
    """Name under which trackers put runs together; the runs of a study have its name."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.to) > len({*self.to}):
            raise ValueError(f"log.to names a tracker twice ({', '.join(self.to)}); remove one")
        if self.tokens == "all" and not self.rollouts:
            raise ValueError("log.tokens=all has no effect without log.rollouts=true; remove one")
        if not self.project.strip():
            raise ValueError("log.project is empty; give the project a name, or leave the setting out")
        return self


class SftConfig(Section):
    batch_size: Count = 64
    """Solutions per optimizer update."""
    mixture: dict[str, NonNegative] = Field(default={"solution": 1.0})
    """Shares of the task's demonstrators; `solution` is the right worked solution, the built-in task has others."""
    show_every: Count = 50
    """Report the loss after every so many updates."""


class CheckpointConfig(Section):
    every: CountOrZero = 10
    """Steps from one checkpoint to the next; 0: only when the run is told to stop."""
    keep: Count = 2
    """Newest checkpoints that are kept during the run; one is written before another is removed."""
    keep_best: bool = True
    """The checkpoint with the best held-out accuracy stays as well, and outlives the run; needs evaluation.every."""
