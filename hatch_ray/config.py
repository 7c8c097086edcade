"""The configuration of a run: YAML file, dotted overrides, every field documented beside itself.

Unknown keys are refused with the nearest known name; every mistake is a ConfigError of one line.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from hatch_ray.config_sections import (
    CheckpointsConfig,
    DataConfig,
    DeadlinesConfig,
    EvalConfig,
    GrpoConfig,
    LearnerConfig,
    ModelConfig,
    Precision,
    RecoveryConfig,
    RewardActorsConfig,
    RolloutConfig,
    Section,
    ServeConfig,
    StorageConfig,
)
from hatch_ray.run_folder import bucket_address, write_atomic
from hatch_ray.systems import load_system


class ConfigError(ValueError):
    """A mistake in a config file, an override or the machine it asks for: one line that says what to change."""


def _place(path: object) -> object:
    """A bucket's address stays text; anything else is a path."""
    if not isinstance(path, str | Path) or "://" not in str(path):
        return Path(path) if isinstance(path, str) else path
    return bucket_address(str(path))


class Config(Section):
    """What every system's config has; `systems.base.System.Config` adds its own sections (HATCH: `HatchConfig`)."""

    system: str = "hatch"
    """What is taught: hatch, or a system of your own as module:CLASS (docs/your-own-system.md)."""
    run_dir: Annotated[Path | str, BeforeValidator(_place)] = Path("runs/default")
    """The run folder; an existing one is resumed. Or its home in a bucket, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER
    (docs/cluster.md#shared-storage)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of data, order, sampling and weights."""
    stages: list[str] = []  # noqa: RUF012 - pydantic copies it
    """Stages to run, in order; all of the system's where they are not named."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    grpo: GrpoConfig = GrpoConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward_actors: RewardActorsConfig = RewardActorsConfig()
    learner: LearnerConfig = LearnerConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    deadlines: DeadlinesConfig = DeadlinesConfig()
    storage: StorageConfig = StorageConfig()
    eval: EvalConfig = EvalConfig()
    serve: ServeConfig = ServeConfig()
    colocated: bool = False
    """GRPO's engines share the learner's nodes, one beside each worker, and with GPUs its GPUs: they take turns
    (docs/cluster.md)."""
    tensorboard: bool = True
    """Write a stage's scalars to RUN/tensorboard when it is done."""

    @property
    def precision(self) -> Precision:
        """The coarsest that learner or engines compute with: how closely they can agree."""
        kinds = (self.learner.master, self.learner.compute, self.rollout.dtype)
        return "bfloat16" if "bfloat16" in kinds else "float32"

    def settings(self, stage: str) -> Any:
        """The section of a stage (`config_sections.Trained`)."""
        return getattr(self, stage)

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [stage.name for stage in load_system(self.system).stages]
        if not self.stages:
            raise ValueError(f"stages is empty; name at least one of {', '.join(names)}")
        if unknown := [stage for stage in self.stages if stage not in names]:
            raise ValueError(f"stages names {unknown[0]!r}; the system {self.system} has {', '.join(names)}")
        if len(set(self.stages)) != len(self.stages):
            raise ValueError("stages names a stage twice")
        if self.stages != [stage for stage in names if stage in self.stages]:
            raise ValueError(f"stages must keep the order {', '.join(names)}")
        if self.grpo.prompts_per_step % self.learner.workers:
            raise ValueError(
                f"grpo.prompts_per_step={self.grpo.prompts_per_step} must be a multiple of "
                f"learner.workers={self.learner.workers}"
            )
        for stage in load_system(self.system).stages:
            if stage.name in self.stages:
                self._check_trainable(stage.name, stage.kind)
        if self.colocated:
            self._check_colocated()
        return self

    def _check_trainable(self, stage: str, kind: str) -> None:
        part = self.settings(stage).trainable
        if part == "all":
            return
        if kind == "pasta":
            raise ValueError(f"{stage}.trainable={part}: this stage trains the image encoder alone; leave it out")
        if self.model.lora_rank:
            raise ValueError(
                f"{stage}.trainable={part}: LoRA trains its adapters alone; leave it out, or set model.lora_rank=0"
            )

    def _check_colocated(self) -> None:
        learner, rollout = self.learner, self.rollout
        if rollout.actors != learner.workers:
            raise ValueError(
                f"colocated puts one engine beside each learner worker: set rollout.actors={rollout.actors} and "
                f"learner.workers={learner.workers} to one number"
            )
        if self.grpo.max_staleness:
            raise ValueError(
                "colocated engines and learner take turns: set grpo.max_staleness=0, or give each nodes of its own"
            )
        if rollout.resources:
            raise ValueError("colocated engines go where the learner is: set learner.resources, not rollout.resources")
        if bool(learner.gpus) != bool(rollout.gpus):
            raise ValueError("colocated roles both have a share of a GPU (learner.gpus, rollout.gpus), or none")
        if not learner.gpus:
            return
        if learner.gpus <= 0.5 or learner.gpus + rollout.gpus > 1:
            raise ValueError(
                f"colocated: learner.gpus={learner.gpus:g} must be above 0.5, so that no two workers have one GPU, and "
                f"with rollout.gpus={rollout.gpus:g} at most 1"
            )
        if rollout.gpu_memory_utilization > rollout.gpus:
            raise ValueError(
                f"colocated: rollout.gpu_memory_utilization={rollout.gpu_memory_utilization:g} is more than the "
                f"engine's share of the GPU; set it to at most rollout.gpus={rollout.gpus:g}"
            )


def config_class(system: str) -> type[Config]:
    """The config of a system, with its own sections. Raises ConfigError when there is no such system."""
    try:
        return load_system(system).Config
    except ValueError as error:
        raise ConfigError(str(error)) from None


def known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of the schema."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += known_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


NOTHING = ("", "null", "Null", "NULL", "~")
"""What YAML calls null: None for a field that may be None, text elsewhere."""


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that a field's annotation names: `Annotated[list[str], ..] | None` -> {list, NoneType}."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return set().union(*map(_kinds, get_args(annotation)))
    if origin is Literal:
        return {type(value) for value in get_args(annotation)}
    return {origin or annotation}


def _field_kinds(key: str, section: Any) -> set[Any]:
    """The types of the field with this dotted key; empty for a section or a key that is not known."""
    *parents, last = key.split(".")
    for part in parents:
        field = section.model_fields.get(part)
        section = field.annotation if field else None
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return set()
    field = section.model_fields.get(last)
    return _kinds(field.annotation) if field else set()


def parse_override(text: str, section: type[Config] | None = None) -> tuple[str, Any]:
    """ "grpo.beta=0.02" -> ("grpo.beta", "0.02"): text, which the schema reads as what the field is.

    Lists and mappings are read as YAML ("[a, b]", "{rollout: 1}"); what they hold is text again. A field that is text
    takes all that stands behind the =. section: the config's class, HATCH's where None.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"override {text!r} is not KEY=VALUE (for example grpo.beta=0.02)")
    kinds = _field_kinds(key, section or config_class("hatch"))
    if kinds & {str, Path} and value[:1] not in ("'", '"'):
        return key, value
    try:
        return key, _read_yaml(value) if value else ""
    except yaml.YAMLError:
        raise ConfigError(f"override {text!r}: the value is not readable as YAML") from None


def _read_yaml(text: str) -> Any:
    """Lists and mappings of text: YAML's own guesses (dates, octal and sexagesimal numbers) are nobody's meaning."""
    loader = yaml.BaseLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _completed(tree: Any, section: type[BaseModel]) -> Any:
    """The tree with None where a field that may be None says so, and the defaults of its sections."""
    if not isinstance(tree, dict):
        return tree
    found = {}
    for name, value in tree.items():
        field = section.model_fields.get(name)
        kind = field.annotation if field else None
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            value = _completed(value, kind)
            if isinstance(value, dict) and field and isinstance(field.default, BaseModel):
                value = field.default.model_dump(exclude_unset=True) | value  # what the section has by default stays
        elif field and isinstance(value, str) and value in NOTHING and type(None) in _kinds(kind):
            value = None
        found[name] = value
    return found


def set_dotted(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set tree["a"]["b"] for "a.b"; ConfigError when a part of the path holds a plain value."""
    *parents, last = key.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{key}: {part} is a value, not a section")
    tree[last] = value


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML config, apply dotted overrides, validate.

    Raises ConfigError with one line: the first mistake, where it is and what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"config file {path} does not exist")
    try:
        tree = _read_yaml(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of sections")
    overrides = overrides or []
    chosen = [text.partition("=")[2] for text in overrides if text.partition("=")[0].strip() == "system"]
    section = config_class((chosen or [str(tree.get("system", "hatch"))])[-1])
    for override in overrides:
        set_dotted(tree, *parse_override(override, section))
    return make_config(tree, where=str(path))


def make_config(tree: dict[str, Any], where: str = "config") -> Config:
    """Validate a nested dictionary with the class of its system."""
    section = config_class(str(tree.get("system", "hatch")))
    names = [stage.name for stage in load_system(str(tree.get("system", "hatch"))).stages]
    try:
        return section.model_validate(_completed({"stages": names} | tree, section))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_mistake(error, section)}") from None


REPLACED = {
    "grpo.micro_batch": "grpo.token_budget",
    "model.dtype": "learner.master, learner.compute and rollout.dtype",
}
"""Keys of earlier versions, and what to set now."""
PRECISION = ("learner.master", "learner.compute", "rollout.dtype")
"""Keys that change results, although their sections say only what runs where."""


def _first_mistake(error: ValidationError, section: type[Config]) -> str:
    mistake = error.errors()[0]
    key = ".".join(str(part) for part in mistake["loc"])
    if key in REPLACED:
        return f"{key} was replaced by {REPLACED[key]} (docs/configuration.md)"
    if mistake["type"] == "extra_forbidden":
        known = known_keys(section)
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        by_name = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
        hint = near[0] if near else (by_name[0] if by_name else "")
        return f"unknown key {key!r}" + (f"; did you mean {hint!r}?" if hint else "; see docs/configuration.md")
    message = mistake["msg"].removeprefix("Value error, ")
    return f"{key}: {message}, got {mistake['input']!r}" if key and mistake["type"] != "value_error" else message


def save_config(config: Config, path: Path) -> None:
    """Write the resolved config as YAML, atomically."""
    write_atomic(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
