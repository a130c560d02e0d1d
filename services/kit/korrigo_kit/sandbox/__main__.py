"""Entry of the zygote: `python -m korrigo_kit.sandbox`, started by `Sandbox` only."""

from __future__ import annotations

from korrigo_kit.sandbox.zygote import main

if __name__ == "__main__":
    main()
