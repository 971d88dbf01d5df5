"""GRPO on one page, with the functions that `slimrl train` is made of and no settings.

    python recipes/minimal.py [steps]

The built-in model learns the built-in task on a CPU. After the same number of steps its weights, whose SHA-256 is printed,
are those of `slimrl train optimizer.microbatch_tokens=16384 rollout.slots=256` to the bit (tests/test_minimal.py).
`slimrl train` adds held-out evaluation, checkpoints, memory planning, logs and all other techniques; slimrl/train.py is its loop.

P problems a step, G completions each, B = P * G rows, L tokens.
"""

from __future__ import annotations

import sys
from itertools import islice

import torch

from slimrl.algorithm.advantages import group_advantages
from slimrl.algorithm.batch import at_tokens, make_rows, microbatches, rewards_of, take
from slimrl.algorithm.kl import kl_penalty
from slimrl.algorithm.loss import clipped_surrogate, token_weights
from slimrl.config.sections import ModelConfig, OptimizerConfig
from slimrl.config.task import TaskConfig
from slimrl.learner.optimizer import MasterAdamW
from slimrl.model.head import token_logprobs
from slimrl.model.loading import load_policy
from slimrl.model.packing import pack
from slimrl.model.policy import Policy, freeze
from slimrl.model.prompts import make_prompter
from slimrl.randomness import uniforms
from slimrl.records import Group, Rollout, Rows
from slimrl.rollout import Request
from slimrl.rollout.engine import RolloutEngine
from slimrl.runs.durable import digest
from slimrl.tasks import load_task
from slimrl.tasks.curriculum import problems_for_step

SEED, PROBLEMS, GROUP_SIZE, NEW_TOKENS = 0, 32, 8, 64
LEARNING_RATE, CLIP, KL_COEF = 2e-4, 0.2, 0.04
MICROBATCH_TOKENS = 16384


def train(steps: int) -> Policy:
    """The policy after so many steps of GRPO."""
    policy = load_policy(ModelConfig())
    reference = freeze(policy)
    prompter = make_prompter(policy.tokenizer, "auto")
    task = load_task(TaskConfig(), instruction="", seed=SEED)
    engine = RolloutEngine(policy, slots=PROBLEMS * GROUP_SIZE)
    optimizer = MasterAdamW(policy.trainable, OptimizerConfig())

    for step in range(steps):
        # Problems -> completions: the random number behind each token is a function of (seed, step, problem, sample, position).
        problems = list(islice(problems_for_step(task.train, seed=SEED, step=step, count=PROBLEMS), PROBLEMS))
        requests = [
            Request(
                prompter.ids(task.messages(problem)),
                uniforms(SEED, "train", step, problem.id, samples=GROUP_SIZE, positions=NEW_TOKENS),
            )
            for problem in problems
        ]
        sampled = engine.generate(requests, max_new_tokens=NEW_TOKENS)

        # Completions -> rollouts -> groups: the reward is 1 for a right answer in the required form and 0 otherwise.
        groups = []
        for problem, completions in zip(problems, sampled, strict=True):
            texts = [policy.decode(completion.token_ids) for completion in completions]
            rights = [task.grade(text, problem.answer).strict for text in texts]
            rollouts = zip(completions, texts, rights, strict=True)
            groups.append(Group(tuple(Rollout(problem, c, t, r, {}, float(r)) for c, t, r in rollouts), step))

        # Groups -> rows: advantages within groups [P, G], then at every token of the completion [B, L].
        rows = make_rows(groups, overlong_filtering=False, step=step, pad_id=policy.pad_id)
        rewards, scorable = rewards_of(groups)
        advantages = at_tokens(group_advantages(rewards, scorable, "group"), rows.completion_mask)
        weights = token_weights(
            rows.loss_mask, rows.completion_mask, rows.groups, "sequence_mean", max_new_tokens=NEW_TOKENS
        )
        parts = microbatches(rows.lengths, rows.prompt_lengths, rows.groups, max_tokens=MICROBATCH_TOKENS)
        with torch.no_grad():
            reference_logprobs = [logprobs_of(reference, take(rows, part)) for part in parts]

        # Rows -> loss -> step. With one update a step the policy is the one that sampled, so the ratio is 1 and the clip idle.
        for part, wanted in zip(parts, reference_logprobs, strict=True):
            micro = take(rows, part)
            width = micro.inputs.shape[1]
            logprobs = logprobs_of(policy, micro)
            surrogate = clipped_surrogate(
                logprobs, logprobs.detach(), advantages[part, :width], clip_low=CLIP, clip_high=CLIP
            )
            value = micro.loss_mask * surrogate + KL_COEF * kl_penalty("k3", logprobs, wanted)
            optimizer.backward((weights[part, :width] * value).sum())
        optimizer.step(LEARNING_RATE, optimizer.gradient_norm())
        print(f"step {step + 1}: accuracy {rewards.mean():.3f}")
    return policy


def logprobs_of(policy: Policy, rows: Rows) -> torch.Tensor:
    """[B, L] nats of the tokens that carry loss, 0 elsewhere: all rows as one, each prompt once for its group."""
    packed = pack(rows.inputs, rows.lengths, rows.prompt_lengths, rows.groups, device=policy.device)
    hidden = policy.packed_hidden(packed).index_select(0, packed.places[rows.loss_mask])
    logprobs, _ = token_logprobs(policy.head, hidden, rows.targets[rows.loss_mask], temperature=1.0)
    return torch.zeros(rows.inputs.shape).masked_scatter(rows.loss_mask, logprobs)


if __name__ == "__main__":
    print(digest(train(int(sys.argv[1]) if len(sys.argv) > 1 else 20).trainable))
