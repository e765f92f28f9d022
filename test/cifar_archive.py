"""A stand-in for CIFAR-10's archive: its layout and format, few images, and a server for it."""
import contextlib
import hashlib
import http.server
import io
import pickle
import tarfile
import threading

import numpy as np

NAME = "cifar-10-python.tar.gz"
REQUESTS = 2
"""What torchvision sends for one download: one that looks for a redirection, one for the file."""
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = [f"data_batch_{n}" for n in range(1, 6)]


def write(folder, images=16):
    """Write the archive: five training files and one of tests, each of so many random images.

    Returns:
        The attributes of torchvision's CIFAR10 that describe it: address (to be completed), sums.
    """
    random = np.random.RandomState(0)
    files = {"batches.meta": pickle.dumps({"label_names": CLASSES}, protocol=2)}
    for name in [*BATCHES, "test_batch"]:
        pixels = random.randint(0, 256, (images, 3 * 32 * 32)).astype(np.uint8)
        labels = [index % 10 for index in range(images)]
        files[name] = pickle.dumps({"data": pixels, "labels": labels}, protocol=2)
    with tarfile.open(str(folder / NAME), "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo("cifar-10-batches-py/" + name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    return {
        "url": NAME,
        "tgz_md5": hashlib.md5((folder / NAME).read_bytes()).hexdigest(),
        "train_list": [[name, sums[name]] for name in BATCHES],
        "test_list": [["test_batch", sums["test_batch"]]],
        "meta": {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]},
    }


@contextlib.contextmanager
def served(folder):
    """Serve a folder on this host; gives (address, list of the paths asked for by GET)."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self):  # noqa: N802 (the name that the base class calls)
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *arguments):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *arguments):
            """torchvision looks for a redirection first, and hangs up."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
