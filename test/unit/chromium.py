"""Headless Chromium for the tests of pages, and pictures of pages.

    python test/unit/chromium.py PAGE.html PICTURE.png --width 1280 --height 900 [--dark]

It is driven by selenium through Debian's chromium-driver, or whatever is on PATH under these names.
"""
import argparse
import base64
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--disable-dev-shm-usage", "--hide-scrollbars")


def missing():
    """What is missing to start it, or nothing.

    Raises:
        RuntimeError: something is, and CHROMIUM_REQUIRED=1 says that it must be there.
    """
    found = ""
    try:
        import selenium  # noqa: F401
    except ImportError as error:
        found = f"selenium is not installed ({error})"
    if not any(map(shutil.which, NAMES)) or not shutil.which("chromedriver"):
        found = "there is no chromium with its chromedriver: apt-get install chromium-driver"
    # Where it is installed for sure, as in CI, a skip would hide that nothing was tested.
    if found and os.environ.get("CHROMIUM_REQUIRED") == "1":
        raise RuntimeError(found)
    return found


class Browser:
    """A browser without a window; `close` it."""

    def __init__(self):
        from selenium import webdriver
        from selenium.webdriver.chrome.options import Options
        from selenium.webdriver.chrome.service import Service

        options, self._profile = Options(), tempfile.mkdtemp()
        options.binary_location = next(filter(None, map(shutil.which, NAMES)))
        for flag in (*FLAGS, f"--user-data-dir={self._profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(
            shutil.which("chromedriver")))

    def look(self, dark=False, width=1280, height=900):
        """Set the reader's theme and the size of the window."""
        self._do("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self._do("Emulation.setDeviceMetricsOverride", width=width, height=height,
                 deviceScaleFactor=1, mobile=width < 600)

    def open(self, page):
        """Open a file and wait until its curves are drawn."""
        self.driver.get(Path(page).resolve().as_uri())
        self.wait("document.documentElement.dataset.drawn === 'yes'")

    def run(self, script, *arguments):
        """The value of a JavaScript expression; arguments are `arguments[0]` and so on."""
        return self.driver.execute_script(f"return {script}", *arguments)

    def wait(self, condition, seconds=20.0):
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"waited {seconds} s for {condition}: {self.errors()}"
            time.sleep(0.05)

    def errors(self):
        """What the console said since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def picture(self):
        """The window as PNG."""
        return base64.b64decode(self._do("Page.captureScreenshot", format="png")["data"])

    def close(self):
        self.driver.quit()
        shutil.rmtree(self._profile, ignore_errors=True)

    def _do(self, command, **parameters):
        return self.driver.execute_cdp_cmd(command, parameters)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=900, help="0: the whole page")
    parser.add_argument("--dark", action="store_true")
    arguments = parser.parse_args(argv)
    if missing():
        parser.error(missing())
    browser = Browser()
    try:
        browser.look(arguments.dark, arguments.width, arguments.height or 900)
        browser.open(arguments.page)
        if not arguments.height:
            height = browser.run("document.documentElement.scrollHeight")
            browser.look(arguments.dark, arguments.width, height)
        time.sleep(1.0)  # what comes into view is drawn
        arguments.picture.write_bytes(browser.picture())
        print("\n".join(browser.errors()) or "no messages on the console")
    finally:
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
