"""The names that outside code may rely on."""

import types

import feast_embeddings.transformations as face


def test_all_and_the_module_agree() -> None:
    # `activity` and `prepare` name a function here, and the module behind it only in imports.
    promised = vars(face)["__all__"]
    public = {
        name
        for name, value in vars(face).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(promised)
    assert len(promised) == len(public)
