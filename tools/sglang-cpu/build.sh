#!/usr/bin/env bash
# Makes LINK point to a virtual environment with a CPU SGLang, building it where no earlier one has the same pins.
# usage: build.sh PYTHON LINK
#
# Environments lie outside of checkouts, in $MAPPA_HOME or ~/.cache/mappa, named by what they are made of. The stamp is
# written last, so an interrupted build is made anew; the lock keeps two builds of one environment apart.
set -euo pipefail
python=$1 link=$2
here=$(cd "$(dirname "$0")" && pwd)
home=${MAPPA_HOME:-$HOME/.cache/mappa}
version=$("$python" -c 'import sys; print(".".join(map(str, sys.version_info[:3])))')
hash=$({ echo "$version"; cat "$here/requirements.txt"; } | sha256sum | cut -c1-16)
env=$home/sglang-$hash

mkdir -p "$home"
exec 9>"$env.lock"
flock 9
if [ ! -e "$env/.complete" ]; then
  echo "Setting up SGLang for CPU servers in $env (once; a few minutes, 2.3 GB)"
  rm -rf "$env"
  "$python" -m venv "$env"
  "$env/bin/python" -m pip install -qq --disable-pip-version-check pip==26.1
  "$env/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --only-binary :all: \
    -r "$here/requirements.txt"
  "$env/bin/python" -c 'import importlib.metadata as m; print("sglang", m.version("sglang"), "torch", m.version("torch"))'
  touch "$env/.complete"
fi
ln -sfn "$env" "$link"
