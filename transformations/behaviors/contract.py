"""What a behavior table's columns mean: the contract between a team's raw table and this package."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from feast_embeddings.models.errors import DeclarationError

IdType = Literal["int64", "string"]
_COLUMN_ROLES = ("entity", "item", "behavior_type", "event_time", "value", "created_time", "dedup_id")
_REQUIRED_ROLES = ("entity", "item", "event_time")


@dataclass(frozen=True, slots=True)
class BehaviorType:
    """One kind of behavior: view, cart, buy, like and so on.

    Attributes:
        name: The name in the type column, and the prefix of the activity features.
        weight: How much a behavior of this type counts in training, >= 0 and finite.
        cancels: Name of the type whose latest earlier behavior on the same item this one takes back.
        aliases: Other spellings of the name in the type column.

    Raises:
        DeclarationError: The name is empty, or the weight is negative or not finite.
    """

    name: str
    weight: float = 1.0
    cancels: str | None = None
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "aliases", tuple(self.aliases))
        if not self.name or not all(self.aliases):
            raise DeclarationError("A behavior type has an empty name or alias; give it the text of the type column.")
        object.__setattr__(self, "weight", float(self.weight))
        if not math.isfinite(self.weight) or self.weight < 0:
            raise DeclarationError(
                f"Behavior type {self.name!r} has weight {self.weight}; give it a finite weight of 0 or more."
            )
        if self.cancels == self.name:
            raise DeclarationError(f"Behavior type {self.name!r} cancels itself; name the type that it takes back.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BehaviorContract:
    """Which column is what, and which behavior types there are.

    Attributes:
        join_key: Feast join key of the entity whose behaviors these are.
        entity: Source column of the entity's id.
        item: Source column of the item's id.
        event_time: Source column of the time at which the behavior happened, a timestamp.
        types: The behavior types. A type's position is its int32 code, so the tuple may only grow at its end.
        behavior_type: Source column of the type's name; None where every row is of ``default_type``.
        value: Source column of a number (price, rating, seconds, …), optional.
        created_time: Source column of the time at which the row was written, optional.
        dedup_id: Source column of an id that deliveries of one behavior share, optional.
        entity_dtype: "int64" or "string".
        item_dtype: "int64" or "string".
        default_type: Type of every row where the source has no type column.
        naive_time_zone: IANA zone of timestamps stored without one. While None, rows of such a column are
            quarantined.

    Raises:
        DeclarationError: The declaration cannot be right; the message says what to change.
    """

    join_key: str
    entity: str
    item: str
    event_time: str
    types: tuple[BehaviorType, ...]
    behavior_type: str | None = None
    value: str | None = None
    created_time: str | None = None
    dedup_id: str | None = None
    entity_dtype: IdType = "int64"
    item_dtype: IdType = "int64"
    default_type: str | None = None
    naive_time_zone: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "types", tuple(self.types))
        _check_columns(self)
        _check_types(self.types)
        _check_default_type(self)
        _check_dtypes(self)

    @property
    def columns(self) -> dict[str, str]:
        """Canonical name → source column, for the columns that the source has."""
        roles = {role: getattr(self, role) for role in _COLUMN_ROLES}
        return {role: column for role, column in roles.items() if column is not None}

    @property
    def type_names(self) -> tuple[str, ...]:
        """Names of the behavior types; a name's position is its code."""
        return tuple(kind.name for kind in self.types)

    @property
    def type_codes(self) -> dict[str, int]:
        """Name or alias → code."""
        return {text: code for code, kind in enumerate(self.types) for text in (kind.name, *kind.aliases)}

    @property
    def cancellations(self) -> dict[int, int]:
        """Code of a cancelling type → code of the type that it takes back."""
        codes = self.type_codes
        return {codes[kind.name]: codes[kind.cancels] for kind in self.types if kind.cancels is not None}

    def to_json(self) -> str:
        """The contract as JSON with sorted keys: equal contracts give equal text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> BehaviorContract:
        """The contract that ``to_json`` wrote.

        Raises:
            DeclarationError: The text is not JSON, or not that of a contract.
        """
        content = _json_object(text)
        try:
            content["types"] = tuple(BehaviorType(**kind) for kind in content["types"])
            return cls(**content)
        except (KeyError, TypeError) as error:
            known = ", ".join(field.name for field in fields(cls))
            raise DeclarationError(
                f"The JSON is not a behavior contract: {error}. A contract has the keys {known}."
            ) from error


def _json_object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DeclarationError(f"The behavior contract is not JSON ({error}); write it with to_json().") from error
    if not isinstance(content, dict):
        raise DeclarationError("The behavior contract's JSON is not an object; write it with to_json().")
    return content


def _check_columns(contract: BehaviorContract) -> None:
    for name in ("join_key", *_REQUIRED_ROLES):
        if not getattr(contract, name):
            raise DeclarationError(f"The behavior contract has no {name}; name it: {name}='…'.")
    roles: dict[str, str] = {}
    for role, column in contract.columns.items():
        if not column:
            raise DeclarationError(f"The behavior contract's {role} is empty; name a column, or leave it None.")
        if column in roles:
            raise DeclarationError(
                f"Column {column!r} stands for both {roles[column]} and {role} in the behavior contract; "
                "each needs a column of its own."
            )
        roles[column] = role


def _check_types(types: tuple[BehaviorType, ...]) -> None:
    if not types:
        raise DeclarationError("The behavior contract has no types; list them: types=(BehaviorType('view'), …).")
    seen: set[str] = set()
    for text in (text for kind in types for text in (kind.name, *kind.aliases)):
        if text in seen:
            raise DeclarationError(f"Behavior type name or alias {text!r} is declared twice; names are unique.")
        seen.add(text)
    names = {kind.name: kind for kind in types}
    for kind in types:
        if kind.cancels is None:
            continue
        if kind.cancels not in names:
            raise DeclarationError(
                f"Behavior type {kind.name!r} cancels {kind.cancels!r}, which is not declared; "
                f"the types are {', '.join(names)}."
            )
        if names[kind.cancels].cancels is not None:
            raise DeclarationError(
                f"Behavior type {kind.name!r} cancels {kind.cancels!r}, which is itself a cancellation; "
                "a cancellation takes back a behavior, not another cancellation."
            )


def _check_default_type(contract: BehaviorContract) -> None:
    if (contract.behavior_type is None) == (contract.default_type is None):
        raise DeclarationError(
            "The behavior contract needs either behavior_type='<column>' or default_type='<name>' "
            "(every row is of that type), and not both."
        )
    if contract.default_type is not None and contract.default_type not in contract.type_names:
        raise DeclarationError(
            f"default_type {contract.default_type!r} is not declared; the types are {', '.join(contract.type_names)}."
        )


def _check_dtypes(contract: BehaviorContract) -> None:
    for name in ("entity_dtype", "item_dtype"):
        if getattr(contract, name) not in ("int64", "string"):
            raise DeclarationError(f"{name} is {getattr(contract, name)!r}; it is 'int64' or 'string'.")
    if contract.naive_time_zone is None:
        return
    try:
        ZoneInfo(contract.naive_time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise DeclarationError(
            f"naive_time_zone {contract.naive_time_zone!r} is not a time zone; use an IANA name such as 'UTC'."
        ) from error
