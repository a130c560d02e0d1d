#!/bin/sh
# Installs one lock into the image: only wheels of the context, every hash checked, no index asked. Called by the
# Containerfile, with the context mounted at /mnt; what an earlier layer installed is left as it is.
set -eu
/mnt/bin/uv pip install --quiet --offline --no-cache --no-index --find-links /mnt/wheels --no-deps --require-hashes \
  --link-mode copy --python /opt/korrigo/bin/python --requirements "/opt/korrigo/requirements/$1.lock"
# uv's, for whoever installs at the same time
rm -f /opt/korrigo/.lock
# the libraries' own tests
find /opt/korrigo/lib -depth -type d -name tests -path '*/site-packages/*' -exec rm -rf {} +
/opt/korrigo/bin/python /mnt/compile.py /opt/korrigo/lib
