"""A number is to be found: the text of a package of `verifiers` that the tests write to a file and load."""

GUESS = """
import verifiers as vf
from datasets import Dataset
from verifiers.types import UserMessage


class Guess(vf.MultiTurnEnv):
    ended = 0

    async def setup_state(self, state):
        state["secret"], state["won"] = int(state["answer"]), False
        return state

    async def env_response(self, messages, state, **kwargs):
        guess = "".join(filter(str.isdigit, messages[-1].content))
        if guess == str(state["secret"]):
            state["won"] = True
            state["final_env_response"] = [UserMessage(content="Yes.")]
            return state["final_env_response"]
        return [UserMessage(content="Higher." if guess and int(guess) < state["secret"] else "Lower.")]

    @vf.cleanup
    async def count(self, state):
        Guess.ended += 1


async def won(state, **kwargs):
    return float(state["won"])


def tries(completion, parser):
    parser.parse_answer(completion)
    return len([message for message in completion if message.role == "assistant"])


def bonus(answer, info):
    return float(int(answer) == info["secret"])


def rows(numbers):
    return Dataset.from_list([{"question": f"From {n} on?", "answer": str(n + 1), "info": {"secret": n + 1}} for n in numbers])


def load_environment(problems=20, **arguments):
    rubric = vf.RubricGroup([vf.Rubric(funcs=[won, tries], weights=[1.0, -0.25]), vf.Rubric(funcs=[bonus], weights=[0.5])])
    return Guess(dataset=rows(range(problems)), system_prompt="Guess.", rubric=rubric, **arguments)
"""
