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
from slimrl.translate.source import RewardName, Source, read_text

CONFIGS = ("GRPOConfig", "UnslothGRPOConfig")
PEFT = {
    "r": "lora_r", "target_modules": "lora_target_modules", "modules_to_save": "lora_modules_to_save",
    "target_parameters": "lora_target_parameters", "task_type": "lora_task_type", "bias": "lora_bias",
}  # fmt: skip
"""Names of `LoraConfig`, and of Unsloth's `get_peft_model`, as TRL's command line spells them."""
PEFT_DEFAULTS = {"lora_r": 8, "lora_alpha": 8}
UNSLOTH_DEFAULTS = {
    "lora_r": 16, "lora_alpha": 16,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}  # fmt: skip
TRAINER = ("reward_processing_classes", "callbacks", "tools", "rollout_func", "environment_factory")
"""Arguments of `GRPOTrainer` that the table of names knows; the others are configs, models and data."""
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
        self.assigned = _assigned(tree)
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
        if len(configs) > 1:
            self.notes.append(
                f"{len(configs)} GRPOConfig(...) are in the file; the first, on line {configs[0].lineno}, is read"
            )
        self._take(configs[0])
        self._changed_later(configs[0])
        self._adapter()
        rewards = self._trainer()
        self._model()
        self._data()
        for name in PROMPTS:
            if isinstance(prompt := self._known(ast.Name(name)), str):
                self.given.setdefault("system_prompt", prompt)
        given = {name: value for name, value in self.given.items() if value is not None}
        return Source(self.file, given, self.unread, tuple(rewards), tuple(self.notes))

    def _named(self, *names: str) -> list[ast.Call]:
        """Calls of functions with these names, whatever they are attributes of, in the order of the file."""
        return [call for call in self.calls if _leaf(call.func) in names]

    def _take(self, call: ast.Call, renamed: Mapping[str, str] | None = None) -> None:
        """The arguments of a call that have names."""
        for name, node in self._arguments(call):
            name = (renamed or {}).get(name, name)
            try:
                self.given[name] = self.value(node)
            except UnreadError:
                self.unread[name] = ast.unparse(node)
        for node in call.args:
            self.unread[f"an argument of {_leaf(call.func)} without a name"] = ast.unparse(node)

    def _changed_later(self, call: ast.Call) -> None:
        """Settings that are assigned to the object which a call makes, as `args.learning_rate = 5e-6`."""
        names = {name for name, made in self.assigned.items() if made is call}
        assigned = (node for node in ast.walk(self.tree) if isinstance(node, ast.Assign) and len(node.targets) == 1)
        for node in sorted(assigned, key=lambda node: node.lineno):
            target = node.targets[0]
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id in names:
                try:
                    self.given[target.attr] = self.value(node.value)
                except UnreadError:
                    self.unread[target.attr] = ast.unparse(node.value)

    def _arguments(self, call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
        """Arguments with names; `**settings` stands for the entries of the dictionary that the file assigns."""
        for keyword in call.keywords:
            if keyword.arg is not None:
                yield keyword.arg, keyword.value
                continue
            node = self._followed(keyword.value)
            if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
                yield from ((str(key.value), value) for key, value in zip(node.keys, node.values, strict=True))  # type: ignore[union-attr]
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
        rewards: list[RewardName] = []
        for call in self._named("GRPOTrainer")[:1]:
            arguments = dict(zip(("model", "reward_funcs"), call.args, strict=False)) | dict(self._arguments(call))
            for name in TRAINER:
                if name in arguments:
                    self.given[name] = ast.unparse(arguments[name])
            if "model" in arguments and isinstance(model := self._known(arguments["model"]), str):
                self.given["model_name_or_path"] = model
            if "reward_funcs" in arguments:
                node = self._followed(arguments["reward_funcs"])
                nodes = node.elts if isinstance(node, ast.List | ast.Tuple) else [node]
                rewards = [self._reward(one) for one in nodes]
        return rewards

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
        for call in self._named("from_pretrained"):
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

    def value(self, node: ast.expr, depth: int = 0) -> Any:
        """The value of an expression of literals, and of names that the file assigns one to; raises UnreadError."""
        node = self._followed(node)
        if depth > 20:
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


def _assigned(tree: ast.Module) -> dict[str, ast.expr]:
    """The expression of each name that the file assigns once; a name with several values stands for none of them."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                found.setdefault(target.id, []).append(node.value)
        changed = node.target if isinstance(node, ast.AugAssign | ast.For) else None
        names = [changed.id] if isinstance(changed, ast.Name) else [node.arg] if isinstance(node, ast.arg) else []
        for name in names:
            found.setdefault(name, []).append(ast.Name("?"))
    return {name: values[0] for name, values in found.items() if len({ast.dump(value) for value in values}) == 1}


def _leaf(node: ast.AST) -> str:
    """The last name of a dotted one; empty for other expressions."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
