"""For all tests."""
import os

# As the package itself does, but before a test imports torch: an installed torch_npu without CANN
# must not end the suite.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
