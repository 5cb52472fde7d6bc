"""Recipes: plain data that says completely how a model is quantized.

A recipe holds no weights, data, paths or Python callables. It goes to YAML and JSON and back without loss,
and equal digests mean equal configurations. Decisions that are costly to reverse:

* The digest is taken over the canonical JSON *without the fields that stand at their default*, so that a
  field which a later version adds does not change the digest of recipes written before. Defaults therefore
  never change; a better default is a new stage or a new version.
* A scheme holds only the fields that take effect in its mode; anything else is refused instead of ignored.
* Overrides are ordered and the last match wins. A match on a module covers everything inside it.
* A call of a function goes by the name that the layer table gives it: ``block.add``, ``block.add#2``.
* What can be written here is what some backend carries out; which one, ``qtrack.backends.capabilities`` says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from qtrack.errors import RecipeError
from qtrack.reading import load_yaml, parse

BackendName = Literal["fx", "eager", "pt2e", "torchao"]
Engine = Literal["x86", "fbgemm", "onednn", "qnnpack"]
Granularity = Literal["per_tensor", "per_channel", "per_group"]
Mode = Literal["static", "dynamic", "weight_only", "float16", "float"]
Bits = Annotated[int, Field(ge=2, le=8)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Epochs = Annotated[int, Field(ge=1, le=10_000)]
Epoch = Annotated[int, Field(ge=0, le=10_000)]
Rate = Annotated[float, Field(gt=0, le=1000)]


class Frozen(BaseModel):
    """Base of all parts of a recipe: immutable, strict about what it knows."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def having(self, **changes: Any) -> Self:
        """A checked copy with these fields changed."""
        return type(self).model_validate({**dict(self), **changes})


class _Tagged(Frozen):
    """One variant of a union: its tag is written even where defaults are left out."""

    tag: ClassVar[str]

    @model_serializer(mode="wrap")
    def _with_tag(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        return {self.tag: getattr(self, self.tag)} | fields


class _Observer(_Tagged):
    tag = "kind"


class MinMax(_Observer):
    """The smallest and largest value ever seen."""

    kind: Literal["min_max"] = "min_max"


class MovingAverage(_Observer):
    """Exponential moving average of each batch's smallest and largest value."""

    kind: Literal["moving_average"] = "moving_average"
    averaging_constant: float = Field(0.01, gt=0, le=1)


class Histogram(_Observer):
    """The range that minimises the squared quantization error over a histogram of all values."""

    kind: Literal["histogram"] = "histogram"
    bins: int = Field(2048, ge=16, le=65536)


class Percentile(_Observer):
    """The range that holds this share of all values, half of the rest cut off on either side.

    Where more than that lies in the outermost of the bins, as zeros behind a ReLU, nothing is cut off.
    """

    kind: Literal["percentile"] = "percentile"
    quantile: float = Field(0.9999, gt=0, le=1)
    bins: int = Field(2048, ge=16, le=65536)


def _tagged(tag: str) -> BeforeValidator:
    """Let a variant without options be written as its bare name."""
    return BeforeValidator(lambda value: {tag: value} if isinstance(value, str) else value)


Observer = Annotated[
    MinMax | MovingAverage | Histogram | Percentile, Field(discriminator="kind"), _tagged("kind")
]


class _Transform(_Tagged):
    tag = "kind"


class FoldBatchNorm(_Transform):
    """BatchNorm into the layer before it, also past what does nothing in evaluation, such as Dropout."""

    kind: Literal["fold_batch_norm"] = "fold_batch_norm"


class Equalize(_Transform):
    """Cross-layer equalization (Nagel et al. 2019, section 4.1): adjacent layers get equal channel ranges.

    BatchNorm is folded first.
    """

    kind: Literal["equalize"] = "equalize"


class CorrectBias(_Transform):
    """Empirical bias correction (Nagel et al. 2019, section 4.2): the mean error of weights off the bias.

    BatchNorm is folded first. It comes last, because what comes after it would change the weights again.
    """

    kind: Literal["correct_bias"] = "correct_bias"


TransformKind = Literal["fold_batch_norm", "equalize", "correct_bias"]
AnyTransform = FoldBatchNorm | Equalize | CorrectBias
Transform = Annotated[AnyTransform, Field(discriminator="kind"), _tagged("kind")]
LAST = "correct_bias"


class WeightSpec(Frozen):
    """Weights: signed integers with a scale per tensor, per output channel, or per group within a channel."""

    bits: Bits = 8
    symmetric: bool = True
    granularity: Granularity = "per_tensor"
    group_size: int | None = Field(
        None, ge=1, lt=2**31, description="inputs that share a scale; per_group alone"
    )
    observer: Observer = MinMax()

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        if self.granularity != "per_tensor" and self.observer.kind in ("histogram", "percentile"):
            raise ValueError(f"observer: {self.observer.kind} has no {self.granularity} form; use min_max")
        if self.granularity == "per_group" and self.group_size is None:
            raise ValueError("group_size: per_group needs it, such as 32")
        if self.granularity != "per_group" and self.group_size is not None:
            raise ValueError(f"group_size: takes effect with per_group alone, not with {self.granularity}")
        return self


class ActivationSpec(Frozen):
    """Activations: unsigned integers with one scale per tensor.

    ``reduce_range`` gives up one bit so that engines without VNNI cannot overflow their 16-bit accumulators.
    """

    bits: Bits = 8
    symmetric: bool = False
    reduce_range: bool = False
    observer: Observer = Histogram()


class _Scheme(_Tagged):
    tag = "mode"


class Static(_Scheme):
    """Integer weights and activations; activation ranges are fixed by calibration."""

    mode: Literal["static"] = "static"
    weight: WeightSpec = WeightSpec()
    activation: ActivationSpec = ActivationSpec()


class Dynamic(_Scheme):
    """Integer weights; each batch's activation ranges are found as it runs (linear and recurrent layers)."""

    mode: Literal["dynamic"] = "dynamic"
    weight: WeightSpec = WeightSpec()


class WeightOnly(_Scheme):
    """Integer weights, arithmetic in float32."""

    mode: Literal["weight_only"] = "weight_only"
    weight: WeightSpec = WeightSpec()


class Float16(_Scheme):
    """Weights stored in float16, arithmetic in float32."""

    mode: Literal["float16"] = "float16"


class Torchao(_Scheme):
    """A configuration of torchao's in its own JSON form (``config_to_dict``), for what no other mode says."""

    mode: Literal["torchao"] = "torchao"
    config: dict[str, JsonValue]

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class Float(_Scheme):
    """Left as it is."""

    mode: Literal["float"] = "float"


AnyScheme = Static | Dynamic | WeightOnly | Float16 | Torchao | Float
Scheme = Annotated[AnyScheme, Field(discriminator="mode"), _tagged("mode")]
SCHEMES: dict[str, type[Static | Dynamic | WeightOnly | Float16 | Float]] = {
    "static": Static,
    "dynamic": Dynamic,
    "weight_only": WeightOnly,
    "float16": Float16,
    "float": Float,
}


class Module(NamedTuple):
    """Where a module stands: its dotted name and the name of its class."""

    name: str
    type: str


class Call(NamedTuple):
    """Where a function is called: its name in the layer table (``block.add#2``), and the function's own."""

    name: str
    function: str


WAYS = ("layer", "glob", "type", "function", "call")


class Override(Frozen):
    """Another scheme for what one of the ways names: modules, or calls of functions (static or float)."""

    layer: str | None = Field(None, min_length=1, description="exact dotted name of a module")
    glob: str | None = Field(
        None, min_length=1, description="shell pattern over dotted names, such as blocks.*.project"
    )
    type: str | None = Field(None, min_length=1, description="class name of a module, such as Conv2d")
    function: str | None = Field(
        None, min_length=1, description="a function wherever it is called: add, torch.add"
    )
    call: str | None = Field(
        None, min_length=1, description="one call, by its name in the layer table: block.add#2"
    )
    scheme: Scheme

    @model_validator(mode="after")
    def _one_way_to_match(self) -> Self:
        if sum(getattr(self, way) is not None for way in WAYS) != 1:
            raise ValueError(f"name exactly one of {', '.join(WAYS)}")
        if self.names_calls and self.scheme.mode not in ("static", "float"):
            raise ValueError(f"scheme: a function runs static or float; {self.scheme.mode} is for weights")
        return self

    @property
    def way(self) -> str:
        """The field by which it names what it is for."""
        return next(way for way in WAYS if getattr(self, way) is not None)

    @property
    def names_calls(self) -> bool:
        """Is it for calls of functions, and not for modules?"""
        return self.function is not None or self.call is not None

    def matches(self, place: Module | Call) -> bool:
        """Does this override name the module or the call itself (whatever is inside it follows)?"""
        if isinstance(place, Call):
            return place.name == self.call or (
                self.function is not None and place.function == bare_name(self.function)
            )
        return self._matches_module(place)

    def _matches_module(self, module: Module) -> bool:
        if self.layer is not None:
            return module.name == self.layer
        if self.glob is not None:
            return fnmatchcase(module.name, self.glob)
        return self.type is not None and module.type == self.type

    def __str__(self) -> str:
        return f"{self.way} {getattr(self, self.way)!r}"


def bare_name(function: str) -> str:
    """``add`` for ``torch.add``, ``operator.add``, ``__iadd__`` and ``add``."""
    name = function.rpartition(".")[2].strip("_")
    return name.removeprefix("i") if name in ("iadd", "imul") else name


Choice = Literal["first", "random", "class_balanced", "outlier_inclusive", "typical"]


class Calibration(Frozen):
    """Which samples the observers see; ``samples`` None means all.

    ``outlier_inclusive`` takes half of them by chance and half as those whose inputs are most extreme,
    ``typical`` those whose inputs are least so.
    """

    source: Literal["calibration", "training"] = Field(
        "calibration", description="training: one pass over that split, seeded as training seeds it"
    )
    samples: int | None = Field(None, ge=1, lt=2**63)
    choice: Choice = "first"
    seed: Seed | None = Field(None, description="None: the recipe's seed")


class Training(Frozen):
    """Quantization-aware training. Absent from a recipe means post-training quantization.

    Observers and BatchNorm statistics move until they freeze: 0 from the start, n after n epochs, None never.
    """

    epochs: Epochs = 4
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Rate = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    freeze_observers: Epoch | None = None
    freeze_bn_stats: Epoch | None = 0
    seed: Seed | None = Field(None, description="None: the recipe's seed")


class Recipe(Frozen):
    """How a model is quantized, completely."""

    version: Literal[1] = 1
    backend: BackendName = "fx"
    engine: Engine | None = Field(
        None, description="None: the machine's default, settled before the recipe is executed"
    )
    seed: Seed = 0
    default: Scheme = Static()
    overrides: tuple[Override, ...] = ()
    non_traceable: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="exact dotted names of modules that are kept whole: not looked into, left in float"
    )
    transforms: tuple[Transform, ...] = Field(
        (), description="what happens to the float model first, in this order; each at most once"
    )
    calibration: Calibration = Calibration()
    training: Training | None = None

    @model_validator(mode="after")
    def _fields_take_effect(self) -> Self:
        modes = {scheme.mode for scheme in self.schemes()}
        if self.training and "static" not in modes:
            raise ValueError("training: needs a static scheme; fake quantization covers no other mode")
        if not self.training and any(_weight_kind(s) == "moving_average" for s in self.schemes()):
            raise ValueError(
                "weight.observer: moving_average needs training; without it a weight is seen once"
            )
        return self

    @model_validator(mode="after")
    def _transforms_fit(self) -> Self:
        kinds = [transform.kind for transform in self.transforms]
        twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
        if twice:
            raise ValueError(f"transforms: {twice} stands there twice; once is enough")
        if LAST in kinds[:-1]:
            raise ValueError(
                f"transforms: {LAST} must be the last: {kinds[-1]} would change the weights again"
            )
        if LAST in kinds and self.training:
            raise ValueError(
                f"transforms: {LAST} does not go with training, which moves the biases by itself"
            )
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON; equal digest means equal configuration."""
        plain = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def quantizes(self) -> bool:
        """Is any module asked to leave float?"""
        return any(scheme.mode != "float" for scheme in self.schemes())

    @property
    def reads_training(self) -> bool:
        """Do training data go into the model?"""
        return self.quantizes and (self.training is not None or self.calibration.source == "training")

    @property
    def training_seed(self) -> int:
        """Of the order, and whatever else of training data is left to chance."""
        own = self.training.seed if self.training else None
        return self.seed if own is None else own

    def applies(self, kind: TransformKind) -> bool:
        """Does the transform happen? None does where nothing is quantized."""
        return self.quantizes and any(transform.kind == kind for transform in self.transforms)

    def schemes(self) -> Iterator[AnyScheme]:
        """The default, then each override's."""
        yield self.default
        yield from (override.scheme for override in self.overrides)

    def scheme_for(self, lineage: Iterable[Module | Call]) -> AnyScheme:
        """The scheme of the last module, or call, of a lineage that runs from the root down to it."""
        override = self.override_for(lineage)
        return self.default if override is None else override.scheme

    def override_for(self, lineage: Iterable[Module | Call]) -> Override | None:
        """The override that decides it; None where the default does."""
        lineage = tuple(lineage)
        matching = (o for o in reversed(self.overrides) if any(map(o.matches, lineage)))
        return next(matching, None)

    def with_mode(self, mode: Mode) -> Recipe:
        """The whole model in this mode, weights and activations as they were if it has any; no training.

        The transforms stay, but in float, where they would not happen.
        """
        kept = {
            part: getattr(self.default, part)
            for part in ("weight", "activation")
            if hasattr(self.default, part) and part in SCHEMES[mode].model_fields
        }
        if "weight" in kept and kept["weight"].observer.kind == "moving_average":
            kept["weight"] = kept["weight"].having(observer=MinMax())
        transforms = () if mode == "float" else self.transforms
        return self.having(default=SCHEMES[mode](**kept), overrides=(), training=None, transforms=transforms)

    def with_transform(self, kind: TransformKind) -> Recipe:
        """This transform after those that there are, but before the one that must be the last."""
        if any(transform.kind == kind for transform in self.transforms):
            return self
        return self.having(transforms=sorted((*self.transforms, kind), key=_comes_last))

    def with_weights(self, **changes: Any) -> Recipe:
        """These fields of the weight specification changed, in the default and in every override."""
        if changes.get("granularity", "per_group") != "per_group":
            changes = {"group_size": None, **changes}
        return self._each_scheme("weight", changes)

    def with_activations(self, **changes: Any) -> Recipe:
        """These fields of the activation specification changed, in the default and in every override."""
        return self._each_scheme("activation", changes)

    def keeping_float(self, *layers: str) -> Recipe:
        """These layers, by exact name, left in float."""
        return self.having(
            overrides=(*self.overrides, *(Override(layer=name, scheme=Float()) for name in layers))
        )

    def _each_scheme(self, part: str, changes: dict[str, Any]) -> Recipe:
        def changed(scheme: Any) -> Any:
            return (
                scheme.having(**{part: getattr(scheme, part).having(**changes)})
                if hasattr(scheme, part)
                else scheme
            )

        overrides = tuple(override.having(scheme=changed(override.scheme)) for override in self.overrides)
        return self.having(default=changed(self.default), overrides=overrides)


def _comes_last(transform: AnyTransform | str) -> bool:
    return LAST in (transform, getattr(transform, "kind", None))


def _weight_kind(scheme: Any) -> str | None:
    return scheme.weight.observer.kind if hasattr(scheme, "weight") else None


def recipe_to_yaml(recipe: Recipe) -> str:
    """Every field written out, so that the file says it all without knowing any default."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def recipe_from_yaml(text: str, where: str = "recipe") -> Recipe:
    """Read a recipe; raises RecipeError with every fault and its path. JSON is YAML too."""
    return parse(Recipe, load_yaml(text, where, RecipeError), where, RecipeError)
