"""These tests run Triton's kernels in its interpreter, which needs a process of its own:

TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted
"""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    from interpreter import repair

    repair()
else:
    collect_ignore_glob = ["test_*.py"]
