"""What pictures need."""


def fault() -> str:
    """Why nothing can be drawn; "" where it can."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        return f"matplotlib is not installed ({error}): pip install matplotlib"
    return ""
