"""The sections of a run's config: every key, its default, its bounds, and what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from hatch_ray.geometry.convention import Convention

Precision = Literal["float32", "bfloat16"]
WeightsCarrier = Literal["object_store", "nixl"]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]


def _one_at_most(gpus: float) -> float:
    if gpus > 1:
        uses = "an engine, a worker or a replica uses one GPU at most"
        what_to_do = "for several GPUs raise rollout.actors, learner.workers or serve.replicas, and leave this at 1"
        raise ValueError(f"{uses}; {what_to_do}")
    return gpus


NOTHING = ("", "null", "Null", "NULL", "~")
"""What YAML calls null: None for a field that may be None, text elsewhere."""
Gpus = Annotated[float, Field(ge=0), AfterValidator(_one_at_most)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _completed(cls, tree: Any) -> Any:
        """None where a field that may be None says so; of a section that is set in part, what it has by default."""
        found = dict(tree) if isinstance(tree, dict) else {}
        for name, field in cls.model_fields.items() if found else ():
            value = found.get(name)
            if isinstance(value, dict) and isinstance(field.default, BaseModel):
                found[name] = field.default.model_dump(exclude_unset=True) | value
            elif isinstance(value, str) and value in NOTHING and type(None) in get_args(field.annotation):
                found[name] = None
        return found or tree


class ModelConfig(Section):
    base: str = "hatch-tiny"
    """A Hugging Face folder or name of a Qwen2.5-VL or Qwen3-VL; "hatch-tiny" is the one in this package."""
    template: Literal["full-v1", "compact-v1"] = "full-v1"
    """Prompt template (`protocol/prompt.py`). A trained model must be asked with the one it was trained with."""
    reasoning: Literal["actions", "language"] = "actions"
    """What the cold start and GRPO teach a model to write before its answer: the camera motion as JSON actions, or in
    plain words, which no reward can verify (the paper's Table 3)."""
    max_images: Positive = 4
    """More views than this in one prompt are refused."""
    max_pixels: Positive = 512 * 28 * 28
    """An image with more pixels is scaled down to this before the encoder sees it."""
    max_length: Positive = 4096
    """Context: prompt (images included) and completion, tokens."""
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """0 trains all weights; r > 0 trains LoRA adapters of that rank on the language model's linear layers."""


class RoomsConfig(Section):
    train_scenes: Positive = 150
    """Rooms to train on."""
    heldout_scenes: Positive = 60
    """Rooms never trained on."""
    views_per_scene: Positive = 8
    """Cameras in one room."""
    image_size: Annotated[int, Field(ge=28, multiple_of=28)] = 112
    """Width and height of a view, pixels."""
    fov_deg: Annotated[float, Field(gt=20, lt=150)] = 90.0
    """Horizontal field of view."""
    compass: bool = True
    """Paint the four walls in fixed hue families by compass direction, so that a view shows its own heading."""


class SparConfig(Section):
    formats: Annotated[list[Literal["select", "fill", "sentence", "judge"]], Field(min_length=1)] = ["select", "fill"]
    """Answer formats to read. The paper's rewards judge select and fill; the others are free text."""
    sources: Annotated[list[Literal["scannet", "scannetpp", "structured3d", "rxr"]], Field(min_length=1)] = [
        "scannet",
        "scannetpp",
        "structured3d",
    ]
    """Sources to read. rxr has video tasks alone, which are not read."""
    views: Literal["multi", "single", "both"] = "multi"
    """Questions over several images, over one, or both."""
    leave_out: list[Path] = []
    """Lists of scenes or row ids, or folders of them (SPAR-Bench's), whose rooms are used by neither split; ScanNet's
    validation rooms never are."""
    leave_out_val: bool = True
    """Leave out every room that SPAR's own val/ rows show: SPAR-Bench was drawn from them."""
    index: Path | None = None
    """Folder of the row index; empty means hatch-index/ beside the sources."""
    hub: str = ""
    """Name of a dataset on the Hugging Face hub (owner/name), or a folder that `datasets` reads; streamed, in place
    of data.root."""


class DataConfig(Section):
    kind: Literal["rooms", "rgbd", "scenes", "spar"] = "rooms"
    """rooms: rendered. rgbd: posed RGB-D folders (7-Scenes or ScanNet form) below `root`. scenes: posed pictures in any
    form that docs/scenes.md has, at or below `root`. spar: SPAR-7M or SPAR-7M-RGBD (docs/spar.md)."""
    root: Path | None = None
    """Folder of the posed RGB-D frames (kind rgbd) or of the unpacked archives (kind spar), or a dataset made by
    `hatch data build` (any kind)."""
    tasks: list[str] = []
    """Question types, by name; rooms and rgbd also take the groups multi and single (by number of views). Empty means
    every task over several views that the data can give."""
    formats: Annotated[list[Literal["fill", "select"]], Field(min_length=1)] = ["fill"]
    """rooms, rgbd: fill is the bare value, select a letter. A task that has both of those asked for gives them in turn;
    one that has none of them keeps its own."""
    samples: Positive = 1500
    """Training samples to draw."""
    heldout_samples: Positive = 300
    """Held-out samples to draw."""
    heldout_fraction: Fraction = 0.25
    """rgbd: the last part of each sequence, by time, that is held out. spar, scenes: the share of rooms or scenes held
    out; of a scene that stands alone as with rgbd."""
    gap_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """rgbd, scenes: frames left out between train and held-out, so that neighbours do not leak."""
    frame_step: Positive = 1
    """rgbd, scenes: use every n-th frame."""
    image_size: Annotated[int, Field(ge=0, multiple_of=28)] = 0
    """rgbd: width and height of a view, cut from the middle, then resized (intrinsics too); 0 keeps the native."""
    max_views: Annotated[int, Field(ge=2, le=3)] = 3
    """Views in one question, at most: SPAR's `_mv` tasks have 3, a tiny model may be asked over 2."""
    min_overlap: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Least overlap (share of reprojected pixels that agree) of two views of one question."""
    max_overlap: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Greatest overlap of two views of one question."""
    convention: str = ""
    """rgbd, spar: what poses, depth and intrinsics of the files mean, where it is not ours: parts by commas of
    world_to_camera, transposed, rotation_transposed, opengl, ros, unity, translation*FACTOR, depth*FACTOR,
    intrinsics_to_size. `hatch data check ROOT` names the one that fits. scenes: translation*FACTOR, the metres of a
    source's unit of length."""
    check_geometry: bool = True
    """rgbd, spar: compare some near views in depth, and refuse files that agree too little."""
    rooms: RoomsConfig = RoomsConfig()
    """The rendered rooms."""
    spar: SparConfig = SparConfig()
    """SPAR-7M."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.min_overlap >= self.max_overlap:
            raise ValueError("data.min_overlap must be below data.max_overlap")
        Convention.parse(self.convention)
        return self


class Trained(Section):
    """What every training stage has."""

    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the stage's samples, where max_steps is 0."""
    max_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps of the stage, in place of epochs: fewer than one pass or several. 0: by epochs."""
    batch_size: Positive = 1
    """Samples (PaStA: pairs) in one optimizer step, over all workers."""
    lr: Rate = 1e-5
    """Peak learning rate."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Linear warm-up."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The paper keeps the rate fixed; cosine falls to zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    trainable: Literal["all", "language", "vision"] = "all"
    """What learns: everything, all but the image encoder, or the image encoder alone. PaStA trains the encoder only,
    and LoRA its adapters; both leave this at "all"."""
    grad_clip: Rate = 1.0
    """Largest gradient norm."""
    save_every: Positive = 50
    """Optimizer steps between resumable checkpoints."""


class PastaConfig(Trained):
    grid: Positive = 4
    """n: each view is an n x n grid of patches (paper: best n = 4)."""
    tau_target: Rate = 0.1
    """tau_1 of eq. 2."""
    tau_model: Rate = 0.1
    """tau_2 of eq. 3."""
    min_row_overlap: Annotated[float, Field(ge=0)] = 0.05
    """Rows of S with a smaller sum carry no correspondence and are left out; 0 keeps all rows as eq. 5 is printed."""
    pixel_stride: Positive = 4
    """Every n-th pixel of the depth grid is reprojected."""


class SftConfig(Trained):
    fraction: Fraction = 1.0
    """Share of the training samples that the stage uses (cold start: 0.1)."""


class RewardConfig(Section):
    action_weight: Annotated[float, Field(ge=0)] = 1.0
    """lambda_1 of eq. 8."""
    answer_weight: Annotated[float, Field(ge=0)] = 1.0
    """lambda_2 of eq. 8."""
    format_weight: Annotated[float, Field(ge=0)] = 1.0
    """lambda_3 of eq. 8."""
    tau_t: Rate = 1.0
    """Metres, eq. 10 (not given by the paper)."""
    tau_r: Rate = 30.0
    """Degrees, eq. 10 (not given by the paper)."""
    punish_stop: bool = True
    """Zero for a plan that stays (< 0.05 m and < 2 deg) while the gold one moves (> 0.2 m or > 10 deg)."""


class GrpoConfig(Trained):
    group_size: Annotated[int, Field(ge=2)] = 8
    """G: completions per prompt."""
    prompts_per_step: Positive = 4
    """Prompt groups in one optimizer step, over all workers; `batch_size` is not used by GRPO."""
    redraw: Annotated[int, Field(ge=0)] = 0
    """Times in a step that other prompts are drawn for the groups whose replies all earned the same (DAPO's dynamic
    sampling); groups without variance that are left then are trained as ever, with advantage 0."""
    beta: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the KL term (k3 estimator) to the stage's first model; 0 leaves it out."""
    clip: Rate = 0.2
    """epsilon of the clipped ratio."""
    clip_high: Annotated[float, Field(ge=0)] = 0.0
    """Another epsilon for ratios above 1 (DAPO's clip-higher: 0.28 beside clip 0.2); 0: the same."""
    ratio: Literal["token", "sequence"] = "token"
    """The ratio to the policy that sampled: each token's, or one a reply, the geometric mean of its tokens' (GSPO: its
    epsilons are about 3e-4 and 4e-4)."""
    mean: Literal["token", "sequence"] = "token"
    """The loss is the mean over all tokens of a step, or over its replies of the mean over each one's tokens."""
    temperature: Rate = 1.0
    """Sampling temperature of the rollouts."""
    max_new_tokens: Positive = 1024
    """Longest completion."""
    max_staleness: Annotated[int, Field(ge=0)] = 0
    """Versions that a group may lag behind the learner; 0 is synchronous."""
    importance_cap: Rate = 2.0
    """Upper bound of the correction between the learner's and vLLM's probability of a token (truncated)."""
    fraction: Fraction = 1.0
    """Share of the training samples that GRPO draws from."""
    updates_per_step: Positive = 1
    """Optimizer steps on each batch of rollouts (GRPO's mu); the clip can act from the second on."""
    token_budget: Positive = 8192
    """Tokens in one forward and backward pass of a worker: as many whole groups as fit (prompt once, completions, and
    each image's tokens once more for the encoder's work on its patches)."""
    bad_steps: Positive = 3
    """Steps in a row with a loss or gradient that is not finite that end the run. Such a step is skipped (weights and
    optimizer stay as they were) and its batch kept in RUN/bad_batches for `tools.replay`; so many steps are kept."""
    shared_prefix: bool = True
    """Compute a group's prompt and images once. False: again for every completion, the reference to compare with."""


class Placed(Section):
    """What every role has that Ray places on nodes."""

    resources: dict[str, Rate] = {}
    """Ray resources beside CPUs and GPUs that each process takes, such as {rollout: 1}: it runs only on nodes that have
    them (cluster.yaml's node types, or `ray start --resources`). Empty: anywhere."""

    @field_validator("resources")
    @classmethod
    def _named(cls, resources: dict[str, float]) -> dict[str, float]:
        for name in resources:
            if name in ("CPU", "GPU", "memory", "object_store_memory"):
                raise ValueError(f"{name} is not a resource of your own; set cpus or gpus of the section instead")
        return resources


class RolloutConfig(Placed):
    actors: Positive = 1
    """vLLM engines."""
    dtype: Precision = "float32"
    """Weights and activations of the engines, the service's too. bfloat16 on GPUs."""
    cpus: Annotated[float, Field(gt=0)] = 1
    """CPUs of each engine (Ray's count; in synchronous mode engines and learner take turns, so shares may be < 1)."""
    gpus: Gpus = 0
    """GPUs of each engine: 1, a share of one (several processes have it then), or none."""
    prompts_per_call: Annotated[int, Field(ge=0)] = 0
    """Prompts that an engine is given at once. 0: an equal part of the step for each engine, which is fastest. A fixed
    number makes batches that do not depend on how many engines there are."""
    kv_cache_mb: Positive = 128
    """Key-value cache of a CPU engine, MiB."""
    image_cache_mb: Positive = 512
    """Processed images that an engine keeps for the next prompt that shows them, MiB. A replica of the service has them
    twice: in its own process and in its engine's."""
    gpu_memory_utilization: Fraction = 0.85
    """Share of a GPU's memory that an engine may take."""
    weights: WeightsCarrier = "object_store"
    """What carries new weights from the learner: object_store (through the machines' memory) or nixl (an engine reads
    them from the learner's GPU by NVLink or RDMA, or from its memory; needs the package nixl, and a core of its own in
    each process)."""


class RewardActorsConfig(Placed):
    actors: Positive = 1
    """CPU verifiers, at the start."""
    cpus: Annotated[float, Field(gt=0)] = 0.1
    """CPUs of each."""
    min: Annotated[int, Field(ge=0)] = 0
    """The fewest that the queue may leave; 0 means `actors`."""
    max: Annotated[int, Field(ge=0)] = 0
    """The most that the queue may call for; 0 means `actors`, so that their number is fixed (docs/cluster.md)."""
    queue_seconds: Rate = 2.0
    """Work that may wait for each actor, seconds: more of it calls for more actors."""

    @model_validator(mode="after")
    def _check(self) -> RewardActorsConfig:
        if self.min > self.actors or 0 < self.max < self.actors:
            raise ValueError(
                f"reward_actors.actors={self.actors} must lie between reward_actors.min={self.min} and "
                f"reward_actors.max={self.max}"
            )
        return self


class LearnerConfig(Placed):
    workers: Positive = 1
    """Ray Train workers."""
    master: Precision = "float32"
    """Weights, gradients and AdamW's moments of what learns, and the models that a stage leaves. bfloat16 halves them
    and loses most of a small step to rounding (docs/method.md#precision). LoRA's adapters are always float32."""
    compute: Precision = "float32"
    """Matrix products of the training stages, and weights that do not learn (the reference; with LoRA the base model).
    bfloat16 on GPUs."""
    recompute: bool | None = None
    """Compute each layer's activations again in the backward pass: much less memory, about a third more time. None: on
    GPUs."""
    sharding: Literal["none", "full", "hybrid"] = "none"
    """Several workers: each holds the whole model (none), an equal part of weights, gradients and moments (full), or of
    what its node holds whole (hybrid). docs/memory.md says what fits."""
    workers_per_node: Annotated[int, Field(ge=0)] = 0
    """sharding=hybrid: how many workers a node has, which divide the model."""
    offload_reference: bool = False
    """Keep the reference of the KL term in the CPU's memory, and on the GPU only while it is asked, once a batch."""
    cpus: Annotated[float, Field(gt=0)] = 1
    """CPUs of each worker (Ray's count)."""
    gpus: Gpus = 0
    """GPUs of each worker: 1, a share of one, or none."""
    gpu_gb: Rate | None = None
    """Memory of each GPU of the run, GB. None: by the accelerator type that Ray reports. A run that does not fit by
    count is refused before it starts (docs/memory.md)."""
    together: Literal["PACK", "STRICT_PACK"] = "PACK"
    """Ray places the workers on as few nodes as it can, or (STRICT_PACK) all on one node or not at all."""

    @model_validator(mode="after")
    def _check(self) -> LearnerConfig:
        each = self.workers_per_node
        if self.sharding != "hybrid" and each:
            raise ValueError(
                f"learner.workers_per_node={each} is for learner.sharding=hybrid, not {self.sharding}; leave it out"
            )
        if self.sharding == "hybrid" and (not each or self.workers % each):
            raise ValueError(
                f"learner.sharding=hybrid divides the model among the workers of a node: set learner.workers_per_node "
                f"(it is {each}) to a number that divides learner.workers={self.workers}"
            )
        return self


class RecoveryConfig(Section):
    """Deaths and samples that kill: what a run gets over by itself."""

    in_a_row: Annotated[int, Field(ge=0)] = 8
    """Processes that may be lost without a finished step between them; one more stops the run."""
    aside_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the samples that may be set aside, because they failed three processes; more stops the run."""


class CheckpointsConfig(Section):
    keep_last: Positive = 2
    """Newest resumable states of a stage that stay; an older one is used when the newest is damaged."""
    keep_best: bool = False
    """Keep the best state too: greatest mean total reward (GRPO) or smallest mean loss (other stages) of the steps
    since the state before it."""


class DeadlinesConfig(Section):
    start_seconds: Rate = 600.0
    """An engine or a learner may take this long to start, seconds."""
    nodes_seconds: Annotated[float, Field(ge=0)] = 0.0
    """How long to wait for nodes that the run needs and the cluster does not have yet, seconds: an autoscaler is asked
    for them, or they join by hand. 0: a shortage ends the command at once."""
    call_seconds: Rate = 1800.0
    """The longest that one call may work, or one process wait for the others in a collective (a step's rollouts, an
    update of the weights, a gradient), seconds. Then the run stops, naming who waits for what (RUN/stacks)."""

    @property
    def join_seconds(self) -> float:
        """How long a new actor may take that needs a node which is still to come."""
        return self.start_seconds + self.nodes_seconds


class StorageConfig(Section):
    """For a run_dir in a bucket."""

    work_dir: Path = Path("~/.cache/hatch-ray/runs")
    """The run is worked on in WORK_DIR/BUCKET/FOLDER, which the driver and every learner worker must see."""
    mirror_seconds: Rate = 30.0
    """Seconds between two looks for what is to be pushed."""


class EvalConfig(Section):
    samples: Positive = 300
    """Held-out samples to answer (all when there are fewer)."""
    bootstrap: Positive = 2000
    """Resamples for the 95 % intervals."""
    max_new_tokens: Positive = 1024
    """Longest completion (greedy)."""


class ServeConfig(Section):
    host: str = "127.0.0.1"
    """Address that the service listens on; the default is reachable from this machine only."""
    port: Annotated[int, Field(gt=0, lt=65536)] = 8000
    """Port of POST /reason."""
    replicas: Positive = 1
    """Ray Serve replicas, one vLLM engine each; the fewest where max_replicas is larger."""
    max_replicas: Annotated[int, Field(ge=0)] = 0
    """Most replicas that Ray Serve starts under load; 0 keeps their number at `replicas`."""
    target_ongoing_requests: Rate = 16.0
    """Requests in flight per replica above which another one is started."""
    cpus: Annotated[float, Field(gt=0)] = 1
    """CPUs of each replica."""
    gpus: Gpus = 0
    """GPUs of each replica: 1, a share of one, or none."""
    max_new_tokens: Positive = 1024
    """Longest completion."""
    max_running: Positive = 64
    """Requests that a replica works on at once."""
    max_waiting: Annotated[int, Field(ge=0)] = 128
    """Requests that wait for a place of a replica; more get 429 at once."""
    deadline_seconds: Rate = 120.0
    """A request that has no reply after this long, waiting included, gets 504, and its generation ends. A stop waits
    this long for what runs."""
    max_body_mb: Positive = 64
    """Largest request body, MiB; base64 makes an image a third larger."""
    body_seconds: Rate = 30.0
    """A body must have arrived within this time."""
    api_key_env: str = ""
    """Name of the environment variable that holds the API key; empty: all who reach the service may ask."""
    cors_origins: list[str] = []
    """Origins whose pages may call the service from a browser, such as https://example.org; none by default."""
    haproxy: bool = False
    """HAProxy, which Ray Serve brings along, in place of Serve's own proxy: less time a request, other errors while a
    replica is lost, and two more ports that listen on every address (docs/serving.md)."""
    log_requests: bool = False
    """Log a line for each request (path, status, seconds, bytes); never what it holds."""
    follow: bool = False
    """Take over newer models of the run while serving (`hatch serve --follow`)."""
    follow_seconds: Rate = 5.0
    """Seconds between two looks for a newer model."""

    @model_validator(mode="after")
    def _check(self) -> ServeConfig:
        if 0 < self.max_replicas < self.replicas:
            raise ValueError(f"serve.max_replicas={self.max_replicas} is below serve.replicas={self.replicas}")
        return self
