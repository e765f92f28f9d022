"""For all tests."""
import os
import signal

import pytest

# As the package itself does, but before a test imports torch: an installed torch_npu without CANN
# must not end the suite.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

# A shell without job control starts what runs in the background with SIGINT ignored, and so would
# be every command here: none could show what Ctrl-C does.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """Files of slow tests start first: one that started last would run alone to the end."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    def is_long(file):
        text = (config.rootpath / file).read_text(encoding="utf-8")
        return "test/e2e/" in file or "pytest.mark.slow" in text

    class LongFirst(LoadFileScheduling):
        def _assign_work_unit(self, node):
            for file in filter(is_long, self.workqueue):
                self.workqueue.move_to_end(file, last=False)
                break
            super()._assign_work_unit(node)

    return LongFirst(config, log)
