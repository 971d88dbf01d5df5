"""The settings in a Python script of TRL, read as a tree and never executed.

Arguments of `GRPOConfig(...)`, `GRPOTrainer(...)`, `LoraConfig(...)`, `load_dataset(...)` and `from_pretrained(...)` are found
wherever they stand. A name is followed to the one literal that the file assigns to it; what only running the file would tell is
listed as unread.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from slimrl.errors import SettingsError
from slimrl.translate.assignments import Changes, bound_once, entries, mutated
from slimrl.translate.source import RewardName, Source, read_text, said

CONFIGS = ("GRPOConfig", "UnslothGRPOConfig")
PEFT = {
    "r": "lora_r", "target_modules": "lora_target_modules", "modules_to_save": "lora_modules_to_save",
    "target_parameters": "lora_target_parameters", "task_type": "lora_task_type", "bias": "lora_bias",
}  # fmt: skip
"""Names of `LoraConfig`, and of Unsloth's `get_peft_model`, as TRL's command line spells them."""
PEFT_DEFAULTS = {"lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
UNSLOTH_DEFAULTS = {
    "lora_r": 16, "lora_alpha": 16, "lora_dropout": 0.0,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}  # fmt: skip
TRAINER = ("reward_processing_classes", "callbacks", "tools", "rollout_func", "environment_factory")
"""Arguments of `GRPOTrainer` that the table of names knows; the others are configs, models and data."""
POSITIONS = ("model", "reward_funcs", "args", "train_dataset", "eval_dataset")
"""Arguments of `GRPOTrainer` without names, in their order."""
PROMPTS = ("SYSTEM_PROMPT", "system_prompt", "SYSTEM_MESSAGE", "system_message")
OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}  # fmt: skip
LONGEST = 100_000  # characters that a product of a text may have


class UnreadError(Exception):
    """An expression whose value only running the file would tell."""


def script_source(file: str) -> Source:
    """The settings of a script; raises SettingsError where it is no Python or holds no `GRPOConfig(...)`."""
    text = read_text(file)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        raise SettingsError(f"{file}{f':{line}' if line else ''} is no valid Python; mend it first") from None
    return _Script(file, tree).source()


class _Script:
    """A script on its way to a Source."""

    def __init__(self, file: str, tree: ast.Module) -> None:
        self.file, self.tree = file, tree
        self.calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        self.calls.sort(key=lambda call: (call.lineno, call.col_offset))
        self.defined = {
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        self.assigned, self.changes = bound_once(tree), Changes(tree)
        self.mutated = mutated(tree)
        self.given: dict[str, Any] = {}
        self.unread: dict[str, str] = {}
        self.notes: list[str] = []

    def source(self) -> Source:
        configs = self._named(*CONFIGS)
        if not configs:
            parses = self._named("TrlParser", "HfArgumentParser", "ArgumentParser")
            why = "its settings come from the command line; give the YAML file or the arguments that it is run with"
            raise SettingsError(
                f"{self.file} holds no GRPOConfig(...) whose arguments can be read"
                + (f": {why}" if parses else "; give a script of TRL's GRPOTrainer")
            )
        made = self._followed(self._trained().get("args", configs[0]))
        config = next((one for one in configs if one is made), configs[0])
        if len(configs) > 1:
            which = "the trainer's" if config is made else "the first"
            self.notes.append(
                f"{len(configs)} GRPOConfig(...) are in the file; {which}, on line {config.lineno}, is read"
            )
        self._take(config)
        self._adapter()
        rewards = self._trainer()
        self._model()
        self._data()
        for name, argument in (("model_name_or_path", "model"), ("dataset_name", "train_dataset")):
            if name not in self.given and argument in self._trained():
                self.unread.setdefault(name, ast.unparse(self._trained()[argument]))
        for name in PROMPTS:
            if isinstance(prompt := self._known(ast.Name(name)), str):
                self.given.setdefault("system_prompt", prompt)
        return Source(self.file, said(self.given), self.unread, tuple(rewards), tuple(self.notes))

    def _named(self, *names: str) -> list[ast.Call]:
        """Calls of functions with these names, whatever they are attributes of, in the order of the file."""
        return [call for call in self.calls if _leaf(call.func) in names]

    def _take(self, call: ast.Call, renamed: Mapping[str, str] | None = None) -> None:
        """The arguments of a call that have names, and what is set later in the object that it makes."""
        later = self.changes.of(self._names_of(call), call, before=False)
        for name, node in (*self._arguments(call), *later):
            name = (renamed or {}).get(name, name)
            try:
                self.given[name] = self.value(node)
                self.unread.pop(name, None)
            except UnreadError:
                self.unread[name] = ast.unparse(node)
        for node in call.args:
            self.unread[f"an argument of {_leaf(call.func)} without a name"] = ast.unparse(node)

    def _names_of(self, node: ast.expr) -> set[str]:
        """The names that stand for an expression."""
        return {name for name in self.assigned if self._followed(ast.Name(name)) is node}

    def _arguments(self, call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
        """Arguments with names; `**settings` stands for the entries that a dictionary has when the call is made."""
        for keyword in call.keywords:
            if keyword.arg is not None:
                yield keyword.arg, keyword.value
                continue
            node = self._followed(keyword.value)
            if isinstance(node, ast.Dict):
                yield from entries(node)
                yield from self.changes.of(self._names_of(node), call, before=True)
            else:
                self.unread[f"arguments of {_leaf(call.func)}"] = f"**{ast.unparse(keyword.value)}"

    def _adapter(self) -> None:
        for call in self._named("LoraConfig")[:1]:
            self.given |= {"use_peft": True, **PEFT_DEFAULTS}
            self._take(call, PEFT)
        for call in self._named("get_peft_model")[:1]:
            if _leaf(getattr(call.func, "value", call.func)).startswith("Fast"):  # Unsloth's; peft's takes a LoraConfig
                self.given |= {"use_peft": True, **UNSLOTH_DEFAULTS}
                call.args.clear()  # the model
                self._take(call, PEFT)
        for call in self._named("BitsAndBytesConfig")[:1]:
            self._take(call)

    def _trainer(self) -> list[RewardName]:
        """The arguments of GRPOTrainer that are settings, and its reward functions."""
        arguments = self._trained()
        for name in TRAINER:
            if name in arguments:
                self.given[name] = ast.unparse(arguments[name])
        if "model" in arguments and isinstance(model := self._known(arguments["model"]), str):
            self.given["model_name_or_path"] = model
        if "reward_funcs" not in arguments:
            return []
        if self._is_changed(arguments["reward_funcs"]):
            self.unread["reward_funcs"] = "the list is changed after it is made; its first functions are read"
        node = self._followed(arguments["reward_funcs"])
        nodes = node.elts if isinstance(node, ast.List | ast.Tuple) else [node]
        return [self._reward(one) for one in nodes]

    def _trained(self) -> dict[str, ast.expr]:
        """The arguments of the first GRPOTrainer by their names."""
        for call in self._named("GRPOTrainer")[:1]:
            return dict(zip(POSITIONS, call.args, strict=False)) | dict(self._arguments(call))
        return {}

    def _reward(self, node: ast.expr) -> RewardName:
        node = self._followed(node)
        if isinstance(node, ast.Call):
            arguments = {name: self._known(value) for name, value in self._arguments(node)}
            positional = (
                "max_completion_len",
                "soft_punish_cache",
            )  # of the one function of TRL that is made by a call
            arguments |= {name: self._known(value) for name, value in zip(positional, node.args, strict=False)}
            return RewardName(_leaf(node.func), arguments, _leaf(node.func) in self.defined)
        name = str(node.value) if isinstance(node, ast.Constant) else _leaf(node) or ast.unparse(node)
        return RewardName(name, is_local=name in self.defined)

    def _model(self) -> None:
        """The model's name from the call that loads it, and what Unsloth's says besides."""
        model = self._followed(self._trained().get("model", ast.Name("")))
        for call in sorted(self._named("from_pretrained"), key=lambda call: call is not model):
            owner = _leaf(getattr(call.func, "value", call.func))
            if owner.startswith("Fast"):
                arguments = dict(self._arguments(call))
                arguments |= dict(zip(("model_name",), call.args, strict=False))
                if name := self._known(arguments.pop("model_name", None)):
                    self.given.setdefault("model_name_or_path", name)
                for key, node in arguments.items():
                    if key != "dtype" or self._known(node):
                        self.given[key] = self._known(node)
            elif "SequenceClassification" in owner:  # a reward model
                continue
            elif "Model" in owner or "ForCausalLM" in owner or "Tokenizer" in owner:
                name = self._known(
                    call.args[0] if call.args else dict(self._arguments(call)).get("pretrained_model_name_or_path")
                )
                if isinstance(name, str):
                    self.given.setdefault("model_name_or_path", name)
                for key, node in self._arguments(call):
                    if "Tokenizer" not in owner and key in ("torch_dtype", "dtype", "attn_implementation", "revision"):
                        self.given.setdefault("model_revision" if key == "revision" else key, self._known(node))

    def _data(self) -> None:
        """The first data set that the script loads."""
        for call in self._named("load_dataset"):
            arguments = dict(zip(("path", "name"), call.args, strict=False)) | dict(self._arguments(call))
            found = {key: self._known(node) for key, node in arguments.items()}
            files = found.get("data_files")
            path = files if isinstance(files, str) else found.get("path")
            if isinstance(path, str):
                self.given.setdefault("dataset_name", path)
                self.given.setdefault("dataset_config", found.get("name"))
                if isinstance(found.get("split"), str):
                    self.given.setdefault("dataset_train_split", found["split"])
                elif "split" in arguments:
                    self.unread["dataset_train_split"] = ast.unparse(arguments["split"])
                return

    def _known(self, node: ast.expr | None) -> Any:
        """The value of an expression; None where it cannot be told."""
        try:
            return None if node is None else self.value(node)
        except UnreadError:
            return None

    def _followed(self, node: ast.expr) -> ast.expr:
        """The expression that a name stands for."""
        for _ in range(8):  # names may name each other
            if not (isinstance(node, ast.Name) and node.id in self.assigned):
                break
            node = self.assigned[node.id]
        return node

    def _is_changed(self, node: ast.expr) -> bool:
        """True for a name whose list or dictionary the file changes later."""
        made = self._followed(node)
        return isinstance(node, ast.Name) and bool(self.mutated & (self._names_of(made) | {node.id}))

    def value(self, node: ast.expr, depth: int = 0) -> Any:
        """The value of an expression of literals, and of names that the file assigns one to; raises UnreadError."""
        changed = self._is_changed(node)
        node = self._followed(node)
        if depth > 20 or changed:
            raise UnreadError
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None as value):
                return value
            case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
                return [self.value(part, depth + 1) for part in parts]
            case ast.Dict(keys=keys, values=values) if all(keys):
                pairs = zip(keys, values, strict=True)
                return {str(self.value(key, depth + 1)): self.value(part, depth + 1) for key, part in pairs if key}
            case ast.UnaryOp(op=ast.USub(), operand=part):
                return _computed(operator.sub, 0, self.value(part, depth + 1))
            case ast.UnaryOp(op=ast.Not(), operand=part):
                return not self.value(part, depth + 1)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return _computed(OPERATORS[type(op)], self.value(left, depth + 1), self.value(right, depth + 1))
            case ast.JoinedStr(values=parts):
                return "".join(str(self.value(part, depth + 1)) for part in parts)
            case ast.FormattedValue(value=part, format_spec=None):
                return self.value(part, depth + 1)
            case ast.Attribute(value=ast.Name(id="torch"), attr=name):
                return name
        raise UnreadError


def _computed(operation: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """A result of two literals; raises UnreadError where there is none, or it is as long as nobody writes."""
    size = max((len(side) for side in (left, right) if isinstance(side, str | list)), default=0)
    if (
        operation is operator.mul
        and size * max((side for side in (left, right) if isinstance(side, int)), default=0) > LONGEST
    ):
        raise UnreadError
    try:
        return operation(left, right)
    except (TypeError, ValueError, ArithmeticError):
        raise UnreadError from None


def _leaf(node: ast.AST) -> str:
    """The last name of a dotted one; empty for other expressions."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
