"""`python -m korrigo_images`: what `make images`, `make image-context` and `make audit-dependencies` run."""

from korrigo_images.command import main

raise SystemExit(main())
