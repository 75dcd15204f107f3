"""These tests compile ahead of time, without a GPU, which needs a process without the interpreter:

python -m pytest tests/kernels/ahead
"""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    collect_ignore_glob = ["test_*.py"]
