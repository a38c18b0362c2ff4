"""The names that outside code may rely on."""

import types

import feast_embeddings.transformations as face


def test_all_and_the_module_agree() -> None:
    public = {
        name
        for name, value in vars(face).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(face.__all__) - {
        # `activity` and `prepare` name a module and the function that hides it.
        name
        for name in face.__all__
        if isinstance(vars(face)[name], types.ModuleType)
    }
    assert len(face.__all__) == len(set(face.__all__))
    assert not any(isinstance(vars(face)[name], types.ModuleType) for name in face.__all__)
